"""RaCNN's sizes by formula, its named variants, and every argument of its ablation."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import SEModule
from torch import Tensor, nn

import fullfield
from fullfield.errors import ConfigError
from fullfield.layers import FFN, RaFFN, RaGLU, RegionAttention, RegionPWConv
from fullfield.measure import cost
from fullfield.models.racnn import CHANNEL_MIXERS, TOKEN_MIXERS, RaCNNConfig

# dims, depths, region sizes and heads as the design states them, and the parameters (M) and GMACs of its table
DESIGN: dict[str, tuple[Any, ...]] = {
    "racnn_pico": ((32, 64, 128, 256), (3, 4, 13, 4), (7, 7, 7, 1), (1, 2, 4, 8), 6.02, 0.934),
    "racnn_nano": ((48, 96, 192, 384), (4, 4, 7, 4), (7, 7, 7, 1), (1, 2, 4, 8), 10.85, 1.697),
    "racnn_tiny": ((64, 128, 256, 512), (2, 3, 10, 3), (7, 7, 7, 1), (1, 2, 4, 8), 18.08, 2.801),
    "racnn_small": ((72, 144, 288, 576), (3, 3, 12, 4), (7, 7, 7, 1), (1, 2, 4, 8), 28.13, 4.266),
    "racnn_base": ((96, 192, 384, 768), (4, 4, 13, 4), (7, 7, 7, 1), (1, 2, 4, 8), 51.65, 8.541),
    "racnn_tiny_literal": ((64, 128, 256, 512), (2, 3, 10, 3), (7, 7, 7, 7), (1, 1, 1, 1), None, None),
    "racnn_tiny_grid": ((64, 128, 256, 512), (2, 3, 10, 3), (8, 4, 2, 1), (1, 2, 4, 8), None, None),
}
SMALL: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_classes": 5}


def small(**changes: Any) -> Any:
    """Make a RaCNN of one narrow block a stage."""
    torch.manual_seed(0)
    return fullfield.create_model("racnn_pico", **SMALL, **changes).eval()


def photo(height: int = 64, width: int = 64, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def of_type(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def params_by_hand(name: str) -> int:
    """Add up the layout: stem, downsampling, blocks (RaFFN and RaGLU, each behind a BatchNorm), head."""
    dims, depths, _, heads, *_ = DESIGN[name]
    total = 27 * dims[0] // 2 + 2 * (dims[0] // 2) + 9 * dims[0] // 2 * dims[0] + 2 * dims[0]
    total += sum(9 * a * b + 2 * b for a, b in itertools.pairwise(dims))
    for dim, depth, head in zip(dims, depths, heads, strict=True):
        hidden, squeezed = 2 * dim, 2 * dim // 16
        depthwise, project = 9 * hidden + hidden, hidden * dim + dim
        raffn = 2 * dim + head + (dim * hidden + hidden) + depthwise + project
        attention = (hidden * squeezed + squeezed) + (squeezed * hidden + hidden)
        raglu = 2 * dim + (dim * 2 * hidden + 2 * hidden) + depthwise + attention + project
        total += depth * (raffn + raglu)
    return int(total + 2 * dims[-1] + 1000 * dims[-1] + 1000)


def macs_by_hand(name: str) -> int:
    """Add up the products of one 224-pixel image; RPWConv's two are 2 * HW * C * (C / heads)."""
    dims, depths, regions, heads, *_ = DESIGN[name]
    total = 112**2 * 27 * (dims[0] // 2) + 56**2 * 9 * (dims[0] // 2) * dims[0]
    total += sum((28 // 2**i) ** 2 * 9 * a * b for i, (a, b) in enumerate(itertools.pairwise(dims)))
    for stage, (dim, depth, region, head) in enumerate(zip(dims, depths, regions, heads, strict=True)):
        side = 56 // 2**stage
        assert side % region == 0  # nothing is padded at 224
        dynamic = 2 * dim * (dim // head)
        raffn = 2 * dim * dim + 9 * 2 * dim + 2 * dim * dim
        raglu = 4 * dim * dim + 9 * 2 * dim + 2 * dim * dim
        attention = region**2 * 2 * (2 * dim) * (2 * dim // 16)
        total += depth * (side**2 * (dynamic + raffn + raglu) + attention)
    return int(total + 1000 * dims[-1])


counted_cost = functools.cache(cost)


@pytest.mark.parametrize("name", DESIGN)
def test_parameters_and_macs_are_those_of_the_layout(name: str) -> None:
    counted = counted_cost(name)
    assert counted.params == params_by_hand(name)
    assert counted.macs == macs_by_hand(name)


@pytest.mark.parametrize("name", [name for name, row in DESIGN.items() if row[4]])
def test_parameters_are_within_1_and_macs_within_2_percent_of_the_design_s_table(name: str) -> None:
    counted = counted_cost(name)
    assert counted.params / 1e6 == pytest.approx(DESIGN[name][4], rel=0.01)
    assert counted.macs / 1e9 == pytest.approx(DESIGN[name][5], rel=0.02)


@pytest.mark.parametrize("name", DESIGN)
def test_every_block_has_its_stage_s_region_size_and_heads(name: str) -> None:
    _, depths, regions, heads, *_ = DESIGN[name]
    model = fullfield.create_model(name, device="meta")
    for stage, depth, region, head in zip(model.stages, depths, regions, heads, strict=True):
        assert [(m.region_size, m.heads) for m in of_type(stage, RegionPWConv)] == [(region, head)] * depth
        assert [m.region_size for m in of_type(stage, RegionAttention)] == [region] * depth


def test_the_literal_variant_has_one_head_and_r_7_throughout() -> None:
    model = fullfield.create_model("racnn_tiny_literal", device="meta")
    assert {(m.heads, m.region_size) for m in of_type(model, RegionPWConv)} == {(1, 7)}


@pytest.mark.parametrize(("token_mixer", "channel_mixer"), list(itertools.product(TOKEN_MIXERS, CHANNEL_MIXERS)))
def test_every_pair_of_mixers_is_built_of_its_parts_and_learns(token_mixer: str, channel_mixer: str) -> None:
    model = small(token_mixer=token_mixer, channel_mixer=channel_mixer).train()
    parts = {kind: len(of_type(model, kind)) for kind in (RaFFN, RegionPWConv, RaGLU, RegionAttention, SEModule, FFN)}
    assert parts == {
        RaFFN: 4 * (token_mixer != "ffn"),
        RegionPWConv: 4 * (token_mixer == "rpwconv"),
        RaGLU: 4 * (channel_mixer != "ffn"),
        RegionAttention: 4 * (channel_mixer == "raglu"),
        SEModule: 4 * (channel_mixer == "raglu_se"),
        FFN: 4 * (token_mixer == "ffn") + 4 * (channel_mixer == "ffn"),
    }
    model(photo()).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    model.eval()
    y = model(photo())
    torch.testing.assert_close(model.fuse()(photo()), y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"region_size": 3},
        {"region_size": (4, 2, 2, 1)},
        {"heads": 1},
        {"heads": (1, 4, 2, 8)},
        {"similarity": "inner"},
        {"placement": "modulo"},
        {"inner_residual": False},
        {"layer_scale": 0.1},
        {"stem_stride": 2},
    ],
    ids=str,
)
def test_every_argument_changes_what_the_same_weights_compute(changes: dict[str, Any]) -> None:
    plain, changed = small().double(), small(**changes).double()
    fits = {k: v for k, v in plain.state_dict().items() if v.shape == changed.state_dict()[k].shape}
    changed.load_state_dict(fits, strict=False)
    y = changed(photo().double())
    assert y.isfinite().all()
    assert not torch.allclose(y, plain(photo().double()), rtol=1e-6)


def test_arguments_reach_the_layers_they_name() -> None:
    model = small(region_size=(4, 3, 2, 1), heads=(1, 4, 2, 8), similarity="inner", placement="modulo")
    mixers, attentions = of_type(model, RegionPWConv), of_type(model, RegionAttention)
    assert [(m.region_size, m.heads) for m in mixers] == [(4, 1), (3, 4), (2, 2), (1, 8)]
    assert [m.region_size for m in attentions] == [4, 3, 2, 1]
    assert {m.similarity for m in mixers} == {"inner"}
    assert {m.placement for m in attentions} == {"modulo"}


def test_heads_have_the_first_stage_s_width_whatever_the_widths() -> None:
    assert [m.heads for m in of_type(small(), RegionPWConv)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("stem_stride", "reductions"), [(4, [4, 8, 16, 32]), (2, [2, 4, 8, 16]), (1, [1, 2, 4, 8])])
def test_stem_stride_sets_the_reductions_of_all_stages(stem_stride: int, reductions: list[int]) -> None:
    model = timm.create_model("racnn_pico", features_only=True, stem_stride=stem_stride, **SMALL).eval()
    assert model.feature_info.reduction() == reductions
    maps = model(photo(33, 20))
    assert [m.shape[2:] for m in maps] == [(math.ceil(33 / r), math.ceil(20 / r)) for r in reductions]


def test_layer_scale_is_a_factor_on_both_branches_of_every_block() -> None:
    gammas = [p for n, p in small(layer_scale=1e-2).named_parameters() if "gamma" in n]
    assert len(gammas) == 2 * 4
    assert all(torch.allclose(g, torch.tensor(1e-2)) for g in gammas)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_sise": 7}, r"no argument 'region_sise'; did you mean 'region_size'"),
        ({"token_mixer": "rpw"}, r"unknown token_mixer 'rpw'.*did you mean 'rpwconv'"),
        ({"channel_mixer": "ragl"}, r"unknown channel_mixer 'ragl'.*did you mean 'raglu'"),
        ({"similarity": "cosin"}, r"unknown similarity 'cosin'.*did you mean 'cosine'"),
        ({"placement": "nearst", "channel_mixer": "ffn"}, r"unknown placement 'nearst'.*did you mean 'nearest'"),
        ({"depths": (1, 1, 1)}, r"depths \(1, 1, 1\) and dims .* one entry a stage"),
        ({"depths": 2}, r"depths must be one int a stage"),
        ({"depths": (1, 1, 0, 1)}, r"depths must be .* at least 1, got \(1, 1, 0, 1\)"),
        ({"dims": ()}, r"dims must be one int a stage"),
        ({"region_size": (7, 7)}, r"region_size must be one int or 4 of them.*got \(7, 7\)"),
        ({"region_size": 0}, r"region_size must be .* at least 1, got 0"),
        ({"region_size": "7"}, r"region_size must be .*got '7'"),
        ({"heads": (1, 2, 4)}, r"heads must be one int or 4 of them"),
        ({"heads": 3}, r"heads must divide the channels: stage 0 has 32 channels and 3 heads"),
        ({"heads": -1}, r"heads must be .* at least 0, got -1"),
        ({"stem_stride": 3}, r"stem_stride must be 4, 2 or 1, got 3"),
    ],
    ids=str,
)
def test_an_impossible_argument_is_named_with_the_way_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fullfield.create_model("racnn_pico", device="meta", **changes)


def test_a_config_is_read_only_and_takes_lists_as_json_gives_them() -> None:
    cfg = RaCNNConfig(dims=[8, 16], depths=[1, 1], region_size=[7, 1])  # type: ignore[arg-type]
    assert (cfg.dims, cfg.depths, cfg.region_size_at(1)) == ((8, 16), (1, 1), 1)
    with pytest.raises(AttributeError):
        cfg.dims = (1, 2)  # type: ignore[misc]


@pytest.mark.parametrize(("dtype", "side", "tolerance"), [(torch.float64, 50, 1e-10), (torch.float32, 224, 1e-4)])
@torch.no_grad()
def test_racnn_tiny_is_the_same_in_either_layout_and_at_any_batch(
    dtype: torch.dtype, side: int, tolerance: float
) -> None:
    model = fullfield.create_model("racnn_tiny").to(dtype).eval()
    x = photo(side, side, batch=8).to(dtype)
    y = model(x)
    alone = torch.cat([model(image) for image in x.split(1)])
    last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert float((alone - y).norm() / y.norm()) < tolerance
    assert float((last - y).norm() / y.norm()) < tolerance


@pytest.mark.parametrize("device", ["meta", pytest.param("cpu", marks=pytest.mark.slow)])
@torch.no_grad()
def test_features_of_four_channels_at_800_by_1333(device: str) -> None:
    model = timm.create_model("racnn_tiny", features_only=True, in_chans=4, device=device).eval()
    maps = model(torch.zeros(1, 4, 800, 1333, device=device))
    assert [tuple(m.shape) for m in maps] == [
        (1, 64, 200, 334),
        (1, 128, 100, 167),
        (1, 256, 50, 84),
        (1, 512, 25, 42),
    ]
    assert device == "meta" or all(m.isfinite().all() for m in maps)
