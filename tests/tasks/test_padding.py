"""keep_padding_out: in a padded batch every image has the features of the image alone, and what can't is named.

The reference is the same net on each image by itself, in float64, where all that is left of a difference is a leak.
"""

from __future__ import annotations

import csv
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fullfield.errors import ConfigError
from fullfield.layers import GRN, RegionAttention, RegionPWConv
from fullfield.tasks.features import FeatureBackbone
from fullfield.tasks.padding import keep_padding_out
from fullfield.tasks.padding_leaks import unmasked_modules

SIZES = ((96, 64), (64, 100))  # 100 is no multiple of 32: that image has 128 columns
PADDED = (128, 160)
ROOT = Path(__file__).parents[2]
NARROW: dict[str, Any] = {"dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}
SHORT: dict[str, Any] = {"depths": (1, 1, 2, 1)}
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "racnn_pico": ("racnn_pico", {}),
    "racnn_nano": ("racnn_nano", {"depths": (1, 1, 2, 1)}),
    "racnn_pico, inner products, gates by phase": (
        "racnn_pico",
        {"similarity": "inner", "placement": "modulo", **SHORT},
    ),
    "convnext_atto": ("convnext_atto", {}),
    "convnextv2_atto": ("convnextv2_atto", {}),
    "resnet18": ("resnet18", {}),
    "efficientnet_b0": ("efficientnet_b0", {}),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (2, 2, 2, 2)}),
    "replknet_31b, narrow": ("replknet_31b", NARROW),
    "van_b0": ("van_b0", SHORT),
    "moganet_xtiny": ("moganet_xtiny", SHORT),
    "slak_tiny, narrow": ("slak_tiny", NARROW),
    "unireplknet_a": ("unireplknet_a", SHORT),
    "hornet_tiny": ("hornet_tiny", SHORT),
    "hornet_tiny_gf": ("hornet_tiny_gf", SHORT),
}
ALSO_COVERED = ("convnextv2_atto", "efficientnet_b0", "racnn_nano")
"""Their parts are those of other nets."""


def backbone(name: str, dtype: torch.dtype = torch.float64, **arguments: Any) -> FeatureBackbone:
    """A net in which nothing is hidden: biases, LayerScales and statistics as if it had been trained."""
    model = FeatureBackbone(name, **arguments).to(dtype)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for norm in norms:
            norm.momentum = 1.0
        model.train()(torch.randn(2, 3, 128, 128, dtype=dtype))
    return model.eval()


def padded_batch(sizes: Sequence[tuple[int, int]], padded: tuple[int, int], dtype: torch.dtype) -> Tensor:
    images = [torch.randn(3, height, width, dtype=dtype) for height, width in sizes]
    return torch.stack([F.pad(x, (0, padded[1] - x.shape[2], 0, padded[0] - x.shape[1])) for x in images])


def each_alone(model: Callable[[Tensor], Any], batch: Tensor, sizes: Sequence[tuple[int, int]]) -> list[list[Tensor]]:
    """The maps of every image by itself, padded to a multiple of 32."""
    own = [(-(-height // 32) * 32, -(-width // 32) * 32) for height, width in sizes]
    return [as_list(model(batch[i : i + 1, :, :h, :w].contiguous())) for i, (h, w) in enumerate(own)]


def as_list(maps: Any) -> list[Tensor]:
    return list(maps.values()) if isinstance(maps, dict) else [maps] if isinstance(maps, Tensor) else list(maps)


def differences(maps: Any, alone: list[list[Tensor]]) -> list[float]:
    """Of each map, the largest difference on any image's own area, relative to the largest value there."""
    found = []
    for level, of_batch in enumerate(as_list(maps)):
        pairs = [(of_batch[i : i + 1, :, : y.shape[2], : y.shape[3]], y) for i, y in enumerate(a[level] for a in alone)]
        found.append(max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs))
    return found


@pytest.mark.parametrize(
    "net", [pytest.param(net, marks=pytest.mark.slow if net in ALSO_COVERED else ()) for net in NETS]
)
@torch.no_grad()
def test_every_map_of_an_image_in_a_padded_batch_is_that_of_the_image_alone(net: str) -> None:
    name, arguments = NETS[net]
    model = backbone(name, **arguments)
    batch = padded_batch(SIZES, PADDED, torch.float64)
    alone = each_alone(model, batch, SIZES)
    with keep_padding_out(model, SIZES, PADDED):
        maps = model(batch)
    assert [tuple(y.shape[2:]) for y in maps] == [(PADDED[0] // s, PADDED[1] // s) for s in model.strides]
    assert max(differences(maps, alone)) < 1e-9
    assert max(differences(model(batch), alone)) > 1e-4, "without it nothing leaks, so this test would see nothing"


@pytest.mark.parametrize("name", ["racnn_pico", "convnext_atto"])
@torch.no_grad()
def test_in_float32_it_holds_to_rounding_in_either_layout(name: str) -> None:
    # RaCNN's windows have more than one pixel here, see the next test
    sizes, padded = ((256, 320), (320, 256)), (320, 320)
    model = backbone(name, torch.float32)
    batch = padded_batch(sizes, padded, torch.float32)
    alone = each_alone(model, batch, sizes)
    for layout in (torch.contiguous_format, torch.channels_last):
        with keep_padding_out(model, sizes, padded):
            maps = model(batch.contiguous(memory_format=layout))
        assert max(differences(maps, alone)) < 1e-4


@torch.no_grad()
def test_without_it_an_eighth_of_racnns_largest_value_leaks() -> None:
    sizes, padded = ((256, 320), (320, 256)), (320, 320)
    model = backbone("racnn_pico", torch.float32)
    batch = padded_batch(sizes, padded, torch.float32)
    leak = differences(model(batch), each_alone(model, batch, sizes))
    assert min(leak) > 0.05
    assert max(leak) > 0.125


@torch.no_grad()
def test_of_windows_of_one_pixel_float32_keeps_as_much_as_of_the_image_alone() -> None:
    # x / |x| of a single pixel is its sign, so that a value near 0 hangs on the last digit, padded or not
    model = backbone("racnn_pico", torch.float32)
    batch = padded_batch(SIZES, PADDED, torch.float32)
    alone = each_alone(model, batch, SIZES)
    other_digit = each_alone(model, batch * (1 + 1e-7 * torch.randn_like(batch)), SIZES)
    with keep_padding_out(model, SIZES, PADDED):
        maps = model(batch)
    rounding = [
        max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(*p, strict=True))
        for p in zip(map(list, zip(*other_digit, strict=True)), map(list, zip(*alone, strict=True)), strict=True)
    ]
    assert all(d < 50 * r for d, r in zip(differences(maps, alone), rounding, strict=True))


class Pyramid(nn.Module):
    """Strides 4 to 128 on a small net, with a one-stage head whose norms see the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = FeatureBackbone("racnn_pico", depths=(1, 1, 1, 1))
        self.fpn = FeaturePyramidNetwork(list(self.backbone.channels), 8, LastLevelP6P7(8, 8))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.Conv2d(8, 5, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.fpn(OrderedDict((str(i), y) for i, y in enumerate(self.backbone(x))))
        return [*maps.values(), *(self.head(y) for y in maps.values())]


# 160 and 224 have odd maps at stride 32, 96 a last map of one pixel
@pytest.mark.parametrize("sizes", [((160, 96), (224, 130)), ((64, 224), (32, 32)), ((96, 256), (256, 256))])
@torch.no_grad()
def test_it_holds_for_a_pyramid_to_stride_128_and_a_head_with_group_norm(sizes: Sequence[tuple[int, int]]) -> None:
    model = Pyramid().double().eval()
    padded = (256, 288)
    batch = padded_batch(sizes, padded, torch.float64)
    alone = each_alone(model, batch, sizes)
    assert len(alone[0]) == 12
    assert alone[0][5].shape[2:] == tuple(-(-side // 128) for side in sizes[0])
    with keep_padding_out(model, sizes, padded):
        maps = model(batch)
    assert max(differences(maps, alone)) < 1e-9


def test_gradients_are_those_of_the_images_alone() -> None:
    model = backbone("racnn_pico", depths=(1, 1, 1, 1))
    batch = padded_batch(SIZES, PADDED, torch.float64)
    alone = each_alone(model, batch, SIZES)
    torch.stack([y.square().sum() for maps in alone for y in maps]).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    areas = [[y.shape[2:] for y in maps] for maps in alone]
    model.zero_grad()
    with keep_padding_out(model, SIZES, PADDED):
        maps = model(batch)
    losses = [
        y[i, :, :h, :w].square().sum() for i, sizes in enumerate(areas) for y, (h, w) in zip(maps, sizes, strict=True)
    ]
    torch.stack(losses).sum().backward()
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-9)


@torch.no_grad()
def test_logits_of_a_padded_batch_are_those_of_the_images_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).double()
    batch = padded_batch(SIZES, PADDED, torch.float64)
    alone = each_alone(model, batch, SIZES)
    with keep_padding_out(model, SIZES, PADDED):
        torch.testing.assert_close(model(batch), torch.cat([logits for (logits,) in alone]))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 5, stride=2, padding=2, padding_mode="replicate"),
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1),
        nn.MaxPool2d(5, 2, 2),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.InstanceNorm2d(8),
        RegionPWConv(8, 7),
        RegionAttention(8, 7),
        GRN(8),
    ],
    ids=lambda layer: type(layer).__name__,
)
@torch.no_grad()
def test_each_layer_alone_is_covered(layer: nn.Module) -> None:
    layer = layer.double()
    for parameter in layer.parameters():
        parameter.add_(torch.rand_like(parameter))
    batch = torch.randn(2, 8, *PADDED, dtype=torch.float64)  # noise outside, too
    alone = each_alone(layer, batch, SIZES)
    with keep_padding_out(layer, SIZES, PADDED):
        maps = layer(batch)
    assert maps.shape == layer(batch).shape
    assert max(differences(maps, alone)) < 1e-12
    assert max(differences(layer(batch), alone)) > 1e-3


@pytest.mark.parametrize("name", ["racnn_pico", "slak_tiny", "unireplknet_a"])
@torch.no_grad()
def test_it_holds_for_fused_nets(name: str) -> None:
    model = backbone(name, **NARROW)
    model.model.fuse()  # type: ignore[operator]
    batch = padded_batch(SIZES, PADDED, torch.float64)
    alone = each_alone(model, batch, SIZES)
    with keep_padding_out(model, SIZES, PADDED):
        assert max(differences(model(batch), alone)) < 1e-9


@torch.no_grad()
def test_a_batch_without_padding_is_left_as_it_is() -> None:
    model = backbone("resnet18", torch.float32)
    batch = torch.randn(2, 3, 64, 64)
    expected = model(batch)
    with keep_padding_out(model, [(64, 64), (50, 64)], (64, 64)):
        assert all(map(torch.equal, model(batch), expected))


@torch.no_grad()
def test_afterwards_the_net_is_as_before_even_if_the_call_failed() -> None:
    model = backbone("racnn_pico", torch.float32)
    batch = padded_batch(SIZES, PADDED, torch.float32)
    expected = model(batch)
    with pytest.raises(ConfigError, match="batch of 1"), keep_padding_out(model, SIZES, PADDED):
        model(batch[:1])
    assert all(map(torch.equal, model(batch), expected))
    assert not any("forward" in part.__dict__ or part._forward_pre_hooks for part in model.modules())


def test_of_what_is_covered_nothing_is_named() -> None:
    # in their start, GRN and LayerScale of these are next to 0
    for name in ("racnn_pico", "convnextv2_atto", "moganet_xtiny"):
        assert unmasked_modules(FeatureBackbone(name, depths=(1, 1, 1, 1))) == []
    assert unmasked_modules(Pyramid()) == []


@pytest.mark.parametrize(
    ("name", "leak"), [("pvt_v2_b0", "model.stages.0"), ("edgenext_xx_small", "model.stages.1.blocks.1.pos_embd")]
)
def test_what_is_not_covered_is_named(name: str, leak: str) -> None:
    assert unmasked_modules(FeatureBackbone(name)) == [leak]


class MeanOfMap(nn.Module):
    """A mean over the map that no type gives away, behind a factor of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * x.mean((2, 3), keepdim=True)


def test_a_leak_behind_a_factor_of_zero_is_found() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), MeanOfMap(), nn.Conv2d(4, 4, 3, padding=1))
    assert unmasked_modules(model, in_chans=1) == ["1"]
    assert unmasked_modules(MeanOfMap()) == ["MeanOfMap"]
    assert float(model[1].gamma.detach()) == 0, "the net itself is left alone"


def test_a_net_without_maps_is_not_called_covered() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match="gives no maps"):
        unmasked_modules(model)


@pytest.mark.parametrize(
    ("sizes", "padded", "words"),
    [
        ([(64, 64)], (100, 128), "multiples of 32, got .100, 128"),
        ([(64, 64)], (0, 64), "multiples of 32"),
        ([], (64, 64), "got none"),
        ([(65, 64)], (64, 64), "65x64 pixels does not fit a batch padded to 64x64"),
        ([(0, 64)], (64, 64), "0x64"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: list[tuple[int, int]], padded: tuple[int, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words), keep_padding_out(nn.Conv2d(3, 3, 3), sizes, padded):
        pass


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 3, 64, 96), "0 was called with a batch of 3, .* sizes of 2 images; leave modules that work on crops out"),
        ((2, 3, 14, 14), "map of 14x14, which is the batch of 64x96 pixels at no stride"),
        ((3, 64, 96), "tensor of shape .3, 64, 96."),
    ],
)
def test_a_map_whose_areas_are_unknown_is_refused_by_the_modules_name(shape: tuple[int, ...], words: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    with keep_padding_out(model, [(64, 64), (32, 96)], (64, 96)):
        model(torch.randn(2, 3, 64, 96))
        with pytest.raises(ConfigError, match=words):
            model(torch.randn(shape))


def test_a_net_that_would_recompute_its_blocks_afterwards_is_refused() -> None:
    model = FeatureBackbone("racnn_pico").train()
    model.model.set_grad_checkpointing()  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"model\.stages\.0 has gradient checkpointing on"):
        keep_padding_out(model, SIZES, PADDED).__enter__()
    with torch.no_grad(), keep_padding_out(model.eval(), SIZES, PADDED):
        pass


def test_a_compiled_net_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    with pytest.raises(ConfigError, match="is compiled"):
        keep_padding_out(torch.compile(model), SIZES, PADDED).__enter__()
    model[0].compile()
    with pytest.raises(ConfigError, match="0 is compiled"):
        keep_padding_out(model, SIZES, PADDED).__enter__()


def test_the_page_has_the_figures_of_the_stored_file() -> None:
    with (ROOT / "benchmarks" / "results" / "padding_cpu.csv").open(newline="", encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    page = (ROOT / "docs" / "padding.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\S+) × \| (\S+) × \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    assert [row[:2] for row in rows] == [(row["model"], row["layout"]) for row in stored]
    assert {row["images"] for row in stored} == {"256x320 320x256"}
    assert {row["padded"] for row in stored} == {"320x320"}
    for told, row in zip(rows, stored, strict=True):
        assert float(told[2]) == pytest.approx(float(row["masked_to_unmasked"]), abs=0.0051)
        assert float(told[3]) == pytest.approx(float(row["alone_to_unmasked"]), abs=0.0051)
        assert told[4:] == (row["leak_unmasked"], row["leak_masked"])
