"""The gate of Region Attention: which cell each pixel reads, at every size, and the product with the map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfield.errors import ConfigError
from fullfield.ops import region_gate, region_pool

from . import oracle
from .cases import ALL_DTYPES, SIZES, float64, grads, normal, paths, paths_and_rule

PATHS = paths("region_gate")
PATHS_AND_RULE = paths_and_rule("region_gate")
PLACEMENTS = ["nearest", "modulo"]


def fitting_paths(size: Sequence[int], gate_size: Sequence[int]) -> list[str | None]:
    """Return the paths that run at these sizes: "broadcast" needs cells that divide the map."""
    divides = all(pixels % cells == 0 for pixels, cells in zip(size, gate_size, strict=True))
    return [path for path in PATHS_AND_RULE if divides or path != "broadcast"]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("size", [*SIZES, (14, 28), (8, 12)], ids=str)
def test_every_path_equals_the_loop_over_pixels(size, placement):
    for cells in (1, 2, 4, 7):
        x = normal(2, 3, *size)
        gate = normal(2, 3, min(cells, size[0]), min(cells, size[1]), seed=1)
        expected = oracle.region_gate(x.numpy(), gate.numpy(), placement)
        for path in fitting_paths(size, gate.shape[2:]):
            y = region_gate(x, gate, placement=placement, path=path)
            np.testing.assert_array_equal(y.numpy(), expected, err_msg=str(path))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_each_pixel_reads_the_cell_of_integer_arithmetic_at_every_size(placement):
    # Interpolation by a float factor picks the neighbour where i * gh / H is rounded across an integer.
    for cells in range(1, 10):
        gate = torch.arange(cells * cells, dtype=torch.float64).reshape(1, 1, cells, cells)
        for size in range(cells, 81):
            cell = np.array([oracle.gate_cell(i, size, cells, placement) for i in range(size)])
            expected = cell[:, None] * cells + cell[None, :]
            for path in fitting_paths((size,), (cells,)):
                y = region_gate(torch.ones(1, 1, size, size).double(), gate, placement=placement, path=path)
                assert np.array_equal(y[0, 0].numpy(), expected), f"{cells} cells on {size} pixels, {path}"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_equals_the_loop_over_pixels(data):
    height, width = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 16))
    gate_size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    placement = data.draw(st.sampled_from(PLACEMENTS))
    path = data.draw(st.sampled_from(fitting_paths((height, width), gate_size)))
    x, gate = normal(batch, channels, height, width), normal(batch, channels, *gate_size, seed=1)
    expected = oracle.region_gate(x.numpy(), gate.numpy(), placement)
    np.testing.assert_array_equal(region_gate(x, gate, placement=placement, path=path).numpy(), expected)


@pytest.mark.parametrize("size", [(11, 7), (12, 8)], ids=str)
def test_modulo_placement_gates_each_pixel_by_its_own_window(size):
    # A map that is constant within each window, gated by its own means, is its square.
    cells = normal(2, 3, 4, 4)
    x = cells.repeat(1, 1, 3, 2)[:, :, : size[0], : size[1]]
    for path in fitting_paths(size, (4, 4)):
        y = region_gate(x, region_pool(x, 4), placement="modulo", path=path)
        torch.testing.assert_close(y, x.square(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
def test_nearest_placement_is_the_default(path):
    x, gate = normal(1, 2, 8, 12), normal(1, 2, 4, 4, seed=1)
    assert torch.equal(region_gate(x, gate, path=path), region_gate(x, gate, placement="nearest", path=path))
    assert not torch.equal(region_gate(x, gate, path=path), region_gate(x, gate, placement="modulo", path=path))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("size", [(15, 10), (14, 21)], ids=str)
def test_product_is_rounded_once_in_every_dtype(size, dtype, placement):
    x, gate = normal(2, 3, *size).to(dtype), normal(2, 3, 7, 7, seed=1).to(dtype)
    expected = torch.from_numpy(oracle.region_gate(float64(x), float64(gate), placement)).to(dtype)
    for path in fitting_paths(size, (7, 7)):
        y = region_gate(x, gate, placement=placement, path=path)
        assert y.dtype == dtype
        torch.testing.assert_close(y, expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("size", "gate_size"), [((5, 7), (2, 3)), ((3, 2), (3, 2)), ((4, 6), (2, 3))])
def test_gradients_equal_finite_differences(size, gate_size, placement):
    x = normal(1, 2, *size).requires_grad_()
    gate = normal(1, 2, *gate_size, seed=1).requires_grad_()
    for path in fitting_paths(size, gate_size):
        assert torch.autograd.gradcheck(
            lambda x, g: region_gate(x, g, placement=placement, path=path),  # noqa: B023
            (x, gate),
        )


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("size", [(11, 9), (8, 10)], ids=str)
def test_gradient_of_a_cell_sums_the_pixels_that_read_it(size, placement):
    x, upstream = normal(1, 2, *size), normal(1, 2, *size, seed=1)
    gate = normal(1, 2, 4, 5, seed=2).requires_grad_()
    expected = np.zeros((1, 2, 4, 5))
    for row in range(size[0]):
        for column in range(size[1]):
            i = oracle.gate_cell(row, size[0], 4, placement)
            j = oracle.gate_cell(column, size[1], 5, placement)
            expected[:, :, i, j] += (x * upstream)[:, :, row, column].numpy()
    for path in fitting_paths(size, (4, 5)):
        (d_gate,) = grads(region_gate(x, gate, placement=placement, path=path), upstream, (gate,))
        np.testing.assert_allclose(d_gate.numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("size", [(14, 14), (15, 10), (7, 8), (7, 7), (7, 14)], ids=str)
def test_channels_last_stays_channels_last_with_equal_values(size, placement):
    x, gate = normal(2, 6, *size), normal(2, 6, 7, 7, seed=1)
    for path in fitting_paths(size, (7, 7)):
        for gate_format in (torch.contiguous_format, torch.channels_last):
            stored = gate.contiguous(memory_format=gate_format)
            contiguous = region_gate(x, stored, placement=placement, path=path)
            last = region_gate(x.to(memory_format=torch.channels_last), stored, placement=placement, path=path)
            assert contiguous.is_contiguous(), (path, gate_format)
            assert last.is_contiguous(memory_format=torch.channels_last), (path, gate_format)
            assert torch.equal(last, contiguous)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("gate_size", [(3, 4), (2, 7), (8, 2), (8, 14)], ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2, :8, :14],
        lambda x: x[:, :2, 1:15, 1:9].transpose(2, 3),
        lambda x: x[:1, :2, :8, 2:].expand(2, -1, -1, -1),
        lambda x: x[:, :1, :8, 2:].expand(-1, 2, -1, -1),
        lambda x: x.permute(0, 2, 3, 1)[:, :2, :8].repeat(1, 1, 1, 4)[..., 1:15],
    ],
    ids=["sliced", "transposed", "expanded batch", "expanded channels", "permuted"],
)
def test_strided_views_give_the_values_of_their_copies(view, gate_size, placement):
    x = view(normal(2, 4, 16, 16))
    assert x.shape == (2, 2, 8, 14)
    gate = normal(2, 2, 14, 8, seed=1).transpose(2, 3)[:, :, : gate_size[0], -gate_size[1] :]
    for path in fitting_paths((8, 14), gate_size):
        y = region_gate(x, gate, placement=placement, path=path)
        copy = region_gate(
            x.clone(memory_format=torch.contiguous_format), gate.contiguous(), placement=placement, path=path
        )
        assert torch.equal(y, copy)


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_a_map_of_another_precision_than_its_gate_keeps_its_own(path):
    # Under autocast the gate comes from convolutions in bfloat16 while the map may be float32.
    for x_dtype, gate_dtype in [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]:
        x, gate = normal(1, 2, 8, 8).to(x_dtype), normal(1, 2, 4, 4).to(gate_dtype)
        assert region_gate(x, gate, path=path).dtype == x_dtype


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_inputs_are_left_as_they_were(path):
    x, gate = normal(1, 2, 8, 8), normal(1, 2, 4, 4, seed=1)
    x_before, gate_before = x.clone(), gate.clone()
    region_gate(x, gate, path=path)
    assert torch.equal(x, x_before)
    assert torch.equal(gate, gate_before)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("size", [(15, 10), (14, 14)], ids=str)
def test_no_images_and_meta_tensors_give_the_shape(size, placement):
    x, gate = torch.empty(2, 6, *size, device="meta"), torch.empty(2, 6, 7, 7, device="meta")
    for path in fitting_paths(size, (7, 7)):
        empty = region_gate(torch.zeros(0, 6, *size), torch.zeros(0, 6, 7, 7), placement=placement, path=path)
        assert empty.shape == (0, 6, *size)
        assert region_gate(x, gate, placement=placement, path=path).shape == x.shape


@pytest.mark.parametrize("path", PATHS_AND_RULE)
def test_autocast_works_with_finite_gradients(path):
    x = normal(2, 3, 8, 12, dtype=torch.float32).requires_grad_()
    gate = normal(2, 3, 4, 4, seed=1, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = region_gate(x, gate, path=path)
    assert oracle.relative_error(float64(y), oracle.region_gate(float64(x), float64(gate))) <= 1e-2
    assert all(g.isfinite().all() for g in grads(y, torch.ones_like(y), (x, gate)))


@pytest.mark.parametrize("size", [(9, 8), (8, 9)], ids=str)
def test_forced_broadcast_names_sizes_that_do_not_divide(size):
    # A forced path never gives way to another silently.
    with pytest.raises(ValueError, match=r"broadcast.*(9.*4|4.*9)"):
        region_gate(normal(1, 2, *size), normal(1, 2, 4, 4), path="broadcast")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    ("x", "gate"),
    [
        (torch.zeros(1, 4, 6, 8), torch.zeros(1, 4, 7, 7)),
        (torch.zeros(1, 4, 8, 6), torch.zeros(1, 4, 7, 7)),
        (torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 0, 7)),
        (torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 7, 7)),
        (torch.zeros(2, 4, 8, 8), torch.zeros(3, 4, 7, 7)),
        (torch.zeros(1, 4, 8, 8), torch.zeros(4, 7, 7)),
        (torch.zeros(4, 8, 8), torch.zeros(4, 7, 7)),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), torch.zeros(1, 4, 7, 7)),
        (torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 7, 7, dtype=torch.int64)),
    ],
    ids=[
        "more cells than rows",
        "more cells than columns",
        "no cells",
        "other channels",
        "other batch",
        "gate of rank 3",
        "x of rank 3",
        "integer x",
        "integer gate",
    ],
)
def test_bad_input_is_a_value_or_type_error(x, gate, placement):
    for path in PATHS_AND_RULE:
        with pytest.raises((ValueError, TypeError)) as caught:
            region_gate(x, gate, placement=placement, path=path)
        assert len(str(caught.value)) > 20


def test_too_many_cells_are_named_with_the_map():
    with pytest.raises(ValueError, match=r"(?s)7.*3|3.*7"):
        region_gate(torch.zeros(1, 4, 3, 9), torch.zeros(1, 4, 7, 7))


def test_unknown_placement_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"(?s)'neares'.*'nearest'"):
        region_gate(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 7, 7), placement="neares")
