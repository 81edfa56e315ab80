"""PyTorch's own counter against the closed formula: two products of 2·d·d·n FLOPs a head and window."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fullfield.ops import dynamic_pwconv, region_gate, region_pool, region_pwconv

from . import oracle
from .cases import ALL_DTYPES, SIZES, normal, paths, paths_and_rule

DEVICES = ["cpu", "meta"]


@pytest.fixture(autouse=True)
def _no_path_forced(monkeypatch):
    for operator in ("REGION_PWCONV", "DYNAMIC_PWCONV", "REGION_POOL", "REGION_GATE"):
        monkeypatch.delenv(f"FULLFIELD_PATH_{operator}", raising=False)


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def region_flops(path: str, batch: int, channels: int, heads: int, size: tuple[int, int], region: int) -> int:
    """Count each window's products: over its true pixels on the reference, padded to the largest elsewhere."""
    found = oracle.windows(*size, region)
    padded = math.ceil(size[0] / min(region, size[0])) * math.ceil(size[1] / min(region, size[1]))
    pixels = sum(len(window) if path == "reference" else padded for window in found.values())
    return 2 * 2 * batch * heads * (channels // heads) ** 2 * pixels


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", paths("region_pwconv"))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_region_pwconv_counts_both_products_exactly(size, path, device):
    for region_size in (1, 4, 7):
        for heads in (1, 2, 4):
            x = torch.zeros(2, 8, *size, device=device)
            scale = torch.ones(heads, device=device)
            flops = counted(lambda: region_pwconv(x, scale, region_size=region_size, heads=heads, path=path))  # noqa: B023
            assert flops == region_flops(path, 2, 8, heads, size, region_size), (region_size, heads)


def test_the_formula_is_the_one_of_a_worked_example():
    # 5×6 in regions of 4: 4×4 windows, the largest of 2×2 pixels; 30 pixels in all. 8 channels, 2 heads, B = 3.
    assert region_flops("reference", 3, 8, 2, (5, 6), 4) == 4 * 3 * 2 * 16 * 30
    assert region_flops("bmm", 3, 8, 2, (5, 6), 4) == 4 * 3 * 2 * 16 * (16 * 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", paths("dynamic_pwconv"))
@pytest.mark.parametrize("size", [*SIZES, (11,), (2, 3, 4)], ids=str)
def test_dynamic_pwconv_counts_both_products_exactly(size, path, device):
    for heads in (1, 2, 4):
        x, scale = torch.zeros(2, 8, *size, device=device), torch.ones(heads, device=device)
        flops = counted(lambda: dynamic_pwconv(x, scale, heads=heads, path=path))  # noqa: B023
        assert flops == 2 * 2 * 2 * heads * (8 // heads) ** 2 * math.prod(size)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", paths("region_pwconv"))
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("similarity", ["cosine", "inner"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_count_depends_on_neither_dtype_similarity_nor_training(requires_grad, similarity, dtype, path, device):
    x = torch.ones(2, 8, 9, 10, dtype=dtype, device=device, requires_grad=requires_grad)
    scale = torch.ones(2, device=device)
    flops = counted(lambda: region_pwconv(x, scale, region_size=4, heads=2, similarity=similarity, path=path))
    assert flops == region_flops(path, 2, 8, 2, (9, 10), 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", paths("region_pwconv"))
def test_channels_last_counts_the_same(path, device):
    x = torch.zeros(2, 8, 9, 10, device=device).to(memory_format=torch.channels_last)
    flops = counted(lambda: region_pwconv(x, torch.ones(2, device=device), region_size=4, heads=2, path=path))
    assert flops == region_flops(path, 2, 8, 2, (9, 10), 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_rule_counts_as_one_of_the_paths(size, device):
    x, scale = torch.zeros(2, 8, *size, device=device), torch.ones(2, device=device)
    flops = counted(lambda: region_pwconv(x, scale, heads=2))
    assert flops in {region_flops(path, 2, 8, 2, size, 7) for path in paths("region_pwconv")}


@pytest.mark.parametrize("path", paths("region_pwconv"))
def test_no_images_cost_nothing(path):
    assert counted(lambda: region_pwconv(torch.zeros(0, 8, 9, 10), torch.ones(2), heads=2, path=path)) == 0


@pytest.mark.parametrize("path", paths("region_pwconv"))
def test_counting_leaves_the_values_alone(path):
    x, scale = normal(2, 8, 9, 10), torch.ones(2).double()
    with FlopCounterMode(display=False):
        y = region_pwconv(x, scale, region_size=4, heads=2, path=path)
    assert torch.equal(y, region_pwconv(x, scale, region_size=4, heads=2, path=path))


def test_pool_and_gate_have_no_products_to_count():
    # The counter counts matrix products and convolutions; means and elementwise products are neither.
    for device in DEVICES:
        x, gate = torch.ones(2, 8, 8, 12, device=device), torch.ones(2, 8, 4, 4, device=device)
        for path in paths_and_rule("region_pool"):
            assert counted(lambda: region_pool(x, 4, path=path)) == 0  # noqa: B023
        for path in paths_and_rule("region_gate"):
            assert counted(lambda: region_gate(x, gate, path=path)) == 0  # noqa: B023
