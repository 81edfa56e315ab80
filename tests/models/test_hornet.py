"""HorNet's sizes are the official and the published ones, and every argument switches what it says."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerScale, LayerScale2d
from torch import Tensor, nn

import fullfield
import fullfield.models.hornet as hornet
from fullfield.errors import ConfigError
from fullfield.layers import DepthwiseConv2d
from fullfield.layers.global_filter import GlobalLocalFilter
from fullfield.layers.gnconv import GnConv
from fullfield.measure import cost
from tests.contract.zoo import randomise_norms, relative_error

# parameters with 1000 classes, counted from the official code (commit ac9e210)
OFFICIAL_PARAMS = {
    "hornet_tiny": 22_409_512,
    "hornet_tiny_gf": 22_991_848,
    "hornet_small": 49_528_264,
    "hornet_small_gf": 50_401_768,
    "hornet_base": 87_256_680,
    "hornet_base_gf": 88_421_352,
    "hornet_base_gf_384": 92_099_560,
    "hornet_large": 194_542_504,
    "hornet_large_gf": 196_289_512,
    "hornet_large_gf_384": 201_806_824,
}
# parameters (M) and FLOPs (G) of the official README's tables; its L nets are of ImageNet-22K, in 10,459 classes as
# far as the official map of ImageNet-1K's classes into them tells
PUBLISHED: dict[str, tuple[int, float, int, int]] = {
    "hornet_tiny": (22, 4.0, 224, 1000),
    "hornet_tiny_gf": (23, 3.9, 224, 1000),
    "hornet_small": (50, 8.8, 224, 1000),
    "hornet_small_gf": (50, 8.7, 224, 1000),
    "hornet_base": (87, 15.6, 224, 1000),
    "hornet_base_gf": (88, 15.5, 224, 1000),
    "hornet_large": (209, 34.8, 224, 10_459),
    "hornet_large_gf": (211, 34.7, 224, 10_459),
    "hornet_large_gf_384": (216, 101.8, 384, 10_459),
}
DEPTHS = (2, 3, 18, 2)
SMALL: dict[str, Any] = {"dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "num_classes": 5, "dtype": torch.float64}


def small(name: str = "hornet_tiny_gf", **changes: Any) -> Any:
    """Make a narrow HorNet, after some training."""
    torch.manual_seed(0)
    model = fullfield.create_model(name, **SMALL | changes).eval()
    randomise_norms(model)
    return model


def photo(height: int = 70, width: int = 100, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def of_type(model: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def stages_by_hand(name: str, side: int) -> list[tuple[int, int, int, int, int]]:
    """List (channels, blocks, channels of all gates, side of the map, whether it is filtered) of every stage."""
    first = {"tiny": 64, "small": 96, "base": 128, "large": 192}[name.split("_")[1]]
    stages = []
    for i, depth in enumerate(DEPTHS):
        dim = first * 2**i
        gates = sum(dim // 2**k for k in range(i + 2))  # orders 2, 3, 4, 5
        stages.append((dim, depth, gates, side // (4 * 2**i), int("gf" in name and i >= 2)))
    return stages


def macs_by_hand(name: str, side: int, classes: int) -> int:
    """Add up the products of one image, Fourier transforms left out."""
    stages = stages_by_hand(name, side)
    total = 48 * stages[0][0] * stages[0][3] ** 2 + classes * stages[-1][0]
    total += sum(4 * a[0] * b[0] * b[3] ** 2 for a, b in itertools.pairwise(stages))
    for stage, (dim, depth, gates, pixels, filtered) in enumerate(stages):
        depthwise = 9 * gates // 2 if filtered else 49 * gates
        pointwise = 2 * dim * dim + sum((dim >> k) * (dim >> k + 1) for k in range(stage + 1)) + dim * dim
        total += depth * pixels**2 * (depthwise + pointwise + 8 * dim * dim)
    return total


def official_counter_extras(name: str, side: int) -> int:
    """What the official counter (calc_flops.py, on fvcore) adds: 5 an element of a LayerNorm call, N log N an FFT.

    Its logarithm takes channels x rows for the number of pixels; the norms written out in (B, C, H, W) go uncounted.
    """
    total = 0
    for dim, depth, gates, pixels, filtered in stages_by_hand(name, side):
        half = gates // 2
        log = math.ceil(math.log2(half * pixels))
        fft = half * pixels * (pixels + pixels // 2 + 1) * log
        total += depth * (5 * dim * pixels**2 + filtered * fft)
    return total


@pytest.mark.parametrize("name", hornet.VARIANTS)
def test_parameters_are_those_of_the_official_code(name: str) -> None:
    model = fullfield.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == OFFICIAL_PARAMS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_round_to_the_published_ones(name: str) -> None:
    """Published: the tables of the official README, whose FLOPs are the MACs that the official counter counts."""
    params_m, gmacs, side, classes = PUBLISHED[name]
    counted = cost(name, image_size=side, num_classes=classes)
    assert round(counted.params / 1e6) == params_m
    by_hand = macs_by_hand(name, side, classes)
    assert round((by_hand + official_counter_extras(name, side)) / 1e9, 1) == gmacs
    if "gf" in name:  # the Fourier transforms are less than 1 % of the net, whether counted or not
        assert by_hand <= counted.macs < 1.01 * by_hand
    else:
        assert counted.macs == by_hand


@pytest.mark.parametrize("name", hornet.VARIANTS)
def test_every_stage_has_its_order_and_its_filter(name: str) -> None:
    model = fullfield.create_model(name, device="meta")
    filters = {"gf": (14, 7), "384": (24, 12)}.get(name.rpartition("_")[2])
    for stage, depth in enumerate(DEPTHS):
        layers = of_type(model.stages[stage], GnConv)
        assert [len(layer.widths) for layer in layers] == [stage + 2] * depth
        assert all(layer.scale == pytest.approx(1 / 3) for layer in layers)
        if filters and stage >= 2:
            side = filters[stage - 2]
            shape = (sum(layers[0].widths) // 2, side, side // 2 + 1, 2)
            assert [f.complex_weight.shape for f in of_type(model.stages[stage], GlobalLocalFilter)] == [shape] * depth
        else:
            assert {layer.depthwise.kernel_size for layer in layers} == {(7, 7)}


def test_a_net_starts_as_the_official_one() -> None:
    model = fullfield.create_model("hornet_tiny_gf", depths=(1, 1, 1, 1))
    for layer in of_type(model, nn.Conv2d, nn.Linear):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    for layer in of_type(model, GlobalLocalFilter):
        assert layer.complex_weight.std().item() == pytest.approx(0.02, rel=0.05)
    for layer in of_type(model, LayerScale, LayerScale2d):
        assert torch.equal(layer.gamma, torch.full_like(layer.gamma, 1e-6))


@pytest.mark.parametrize(
    "changes",
    [{"filter_sizes": 0}, {"filter_sizes": (0, 0, 0, 7)}, {"orders": 2}, {"orders": (1, 2, 3, 4)}, {"scale": 1}],
    ids=str,
)
def test_every_argument_changes_what_the_same_weights_compute(changes: dict[str, Any]) -> None:
    plain, changed = small(), small(**changes)
    fits = {k: v for k, v in plain.state_dict().items() if v.shape == getattr(changed.state_dict().get(k), "shape", ())}
    changed.load_state_dict(fits, strict=False)
    y = changed(photo())
    assert y.isfinite().all()
    assert relative_error(y, plain(photo())) > 1e-6


def test_arguments_reach_the_layers_they_name() -> None:
    model = small(orders=(1, 2, 3, 4), filter_sizes=(0, 5, 0, 3), scale=0.5)
    layers = of_type(model, GnConv)
    assert [len(layer.widths) for layer in layers] == [1, 2, 3, 4]
    assert [type(layer.depthwise) for layer in layers] == [DepthwiseConv2d, GlobalLocalFilter] * 2
    assert [layer.size for layer in of_type(model, GlobalLocalFilter)] == [5, 3]
    assert {layer.scale for layer in layers} == {0.5}


def test_layer_scale_is_a_factor_on_both_branches_or_absent() -> None:
    model = fullfield.create_model("hornet_tiny", **SMALL, layer_scale=0.5)
    gammas = [p for n, p in model.named_parameters() if "gamma" in n]
    assert len(gammas) == 2 * 4
    assert all(torch.equal(g, torch.full_like(g, 0.5)) for g in gammas)
    assert not [n for n, _ in small(layer_scale=0).named_parameters() if "gamma" in n]


def test_filters_for_224_give_at_384_what_resized_filters_give() -> None:
    """The official fine-tuning at 384 resizes the filters in the checkpoint; the net does so on the way."""
    old, new = small(filter_sizes=(0, 0, 4, 2)), small(filter_sizes=(0, 0, 6, 3))
    weights = old.state_dict()
    for name, shape in ((n, new.state_dict()[n].shape[1:3]) for n in weights if n.endswith("complex_weight")):
        parts = weights[name].permute(3, 0, 1, 2)
        weights[name] = F.interpolate(parts, shape, mode="bilinear", align_corners=True).permute(1, 2, 3, 0)
    new.load_state_dict(weights)
    assert relative_error(old(photo(96, 96)), new(photo(96, 96))) < 1e-12
    assert relative_error(old(photo(64, 64)), new(photo(64, 64))) > 1e-6


@torch.no_grad()
def test_fusing_leaves_no_scale_to_multiply_maps_by() -> None:
    model, x = small(layer_scale=0.5), photo()
    y = model(x)
    model.fuse()
    assert relative_error(model(x), y) < 1e-12
    assert {layer.scale for layer in of_type(model, GnConv)} == {1.0}
    assert of_type(model, LayerScale, LayerScale2d) == []


@pytest.mark.parametrize("name", ["hornet_tiny", "hornet_tiny_gf"])
def test_maps_lose_the_pixels_that_make_no_whole_patch(name: str) -> None:
    model = timm.create_model(name, features_only=True, device="meta")
    maps = model(torch.zeros(1, 3, 203, 249, device="meta"))
    assert [tuple(m.shape[2:]) for m in maps] == [(50, 62), (25, 31), (12, 15), (6, 7)]
    whole = small(name)
    assert torch.equal(whole(photo(64, 96)), whole(F.pad(photo(64, 96), (0, 3, 0, 3), value=9.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": 3}, r"HorNet has no argument 'order'; did you mean 'orders'"),
        ({"orders": (2, 3)}, r"orders must be one int or 4 of them.*got \(2, 3\)"),
        ({"orders": 0}, r"orders must be .* at least 1, got 0"),
        ({"orders": 8}, r"order 8 halves the channels 7 times, which 64 channels do not allow; use a multiple of 128"),
        ({"filter_sizes": (14, 7)}, r"filter_sizes must be one int or 4 of them"),
        ({"filter_sizes": -1}, r"filter_sizes must be .* at least 0, got -1"),
        (
            {"orders": 7, "filter_sizes": 7},
            r"halves its channels, and stage 0 has 127 \(64 channels at order 7\); lower the order",
        ),
        ({"scale": 0}, r"scale must be a positive number, got 0"),
        ({"scale": "1/3"}, r"scale must be a positive number, got '1/3'"),
        ({"layer_scale": "no"}, r"layer_scale must be a number, 0 for no LayerScale, got 'no'"),
        ({"layer_scale": -1.0}, r"layer_scale must be a number, .*got -1.0"),
        ({"depths": (1, 1)}, r"depths \(1, 1\) and dims .* one entry a stage"),
    ],
    ids=str,
)
def test_an_impossible_argument_is_named_with_the_way_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fullfield.create_model("hornet_tiny", device="meta", **changes)


def test_a_config_takes_lists_as_json_gives_them() -> None:
    cfg = hornet.HorNetConfig(dims=[8, 16], depths=[1, 1], orders=[2, 3], filter_sizes=[0, 7])  # type: ignore[arg-type]
    assert (cfg.order_at(1), cfg.filter_size_at(1)) == (3, 7)
