"""UniRepLKNet's sizes are the official ones, its fused form is the official "deploy" form, and what arguments do."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import LayerScale2d
from torch import Tensor, nn

import fullfield
from fullfield.errors import ConfigError
from fullfield.layers import DepthwiseConv2d
from fullfield.layers.grn import GRN
from fullfield.layers.reparam import ReparamDepthwiseConv
from fullfield.measure import cost
from fullfield.models import unireplknet
from tests.contract.zoo import randomise_norms, relative_error

# parameters with deploy=False and deploy=True, counted from the official code (commit b5677d8)
OFFICIAL_PARAMS = {
    "unireplknet_a": (4_649_060, 4_437_300),
    "unireplknet_f": (6_489_328, 6_235_216),
    "unireplknet_p": (11_080_520, 10_741_704),
    "unireplknet_n": (18_818_880, 18_318_560),
    "unireplknet_t": (31_693_420, 31_037_980),
    "unireplknet_s": (56_456_704, 55_645_984),
    "unireplknet_b": (99_089_416, 98_008_456),
    "unireplknet_l": (220_076_056, 218_454_616),
    "unireplknet_xl": (388_690_984, 386_529_064),
}
# pixels, parameters (M) and MACs (G)
PUBLISHED = [
    ("unireplknet_a", 224, "4.4", "0.6"),
    ("unireplknet_f", 224, "6.2", "0.9"),
    ("unireplknet_p", 224, "10.7", "1.6"),
    ("unireplknet_n", 224, "18.3", "2.8"),
    ("unireplknet_t", 224, "31", "4.9"),
    ("unireplknet_s", 224, "56", "9.1"),
    ("unireplknet_s", 384, "56", "26.7"),
    ("unireplknet_b", 384, "98", "47.2"),
    ("unireplknet_l", 384, "218", "105.4"),
    ("unireplknet_xl", 384, "386", "187"),
]
SMALL: dict[str, Any] = {"dims": (8, 12, 16, 20), "num_classes": 5, "dtype": torch.float64}
EVERY_KERNEL = (3, 5, *unireplknet.BRANCHES)


def small(name: str = "unireplknet_a", **changes: Any) -> Any:
    """Make a narrow UniRepLKNet with all its kernels, after some training."""
    torch.manual_seed(0)
    model = fullfield.create_model(name, **SMALL | changes).eval()
    randomise_norms(model)
    return model


def photo(height: int = 70, width: int = 50, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def of_type(model: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def kernel_sizes(model: Any) -> list[list[int]]:
    """Return the kernel size of every block, stage by stage, from the tensors themselves."""
    return [
        [max(p.shape[-1] for p in block.depthwise.parameters() if p.ndim == 4) for block in stage.blocks]
        for stage in model.stages
    ]


@functools.cache
def fused(name: str) -> Any:
    return fullfield.create_model(name, device="meta").fuse()


@pytest.mark.parametrize("name", unireplknet.VARIANTS)
def test_parameters_are_those_of_the_official_code_before_and_after_fusing(name: str) -> None:
    training = fullfield.create_model(name, device="meta")
    assert tuple(sum(p.numel() for p in m.parameters()) for m in (training, fused(name))) == OFFICIAL_PARAMS[name]


@pytest.mark.parametrize(("name", "side", "params_m", "gmacs"), PUBLISHED)
def test_fused_nets_have_the_published_sizes(name: str, side: int, params_m: str, gmacs: str) -> None:
    """Published: the tables of the official README, whose FLOPs are MACs, of the form after re-parameterisation.

    XL's 386.53 M is cut off there, not rounded.
    """
    counted = cost(fused(name), image_size=side)
    digits = len(params_m.partition(".")[2])
    rounded = counted.params // 1_000_000 if name == "unireplknet_xl" else round(counted.params / 1e6, digits)
    assert f"{rounded:.{digits}f}" == params_m
    assert f"{counted.macs / 1e9:.{len(gmacs.partition('.')[2])}f}" == gmacs


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("unireplknet_a", [[3] * 2, [13] * 2, [13] * 6, [13] * 2]),
        ("unireplknet_n", [[3] * 2, [13] * 2, [13] * 8, [13] * 2]),
        ("unireplknet_t", [[3] * 3, [13] * 3, [13, 3] * 9, [13] * 3]),
        ("unireplknet_xl", [[3] * 3, [13] * 3, [13, 3, 3] * 9, [13] * 3]),
    ],
)
def test_kernels_are_the_official_ones_in_either_form(name: str, stages: list[list[int]]) -> None:
    assert kernel_sizes(fullfield.create_model(name, device="meta")) == stages
    assert kernel_sizes(fused(name)) == stages


# narrowed, F and P are A, and B, L and XL are S
@pytest.mark.parametrize("name", ["unireplknet_a", "unireplknet_n", "unireplknet_t", "unireplknet_s"])
def test_merged_and_fused_nets_equal_the_unmerged_one(name: str) -> None:
    model, x = small(name), photo()
    y = model(x)
    assert relative_error(model.merge_branches()(x), y) < 1e-10
    assert relative_error(model.fuse()(x), y) < 1e-10


@pytest.mark.parametrize("kernel_size", EVERY_KERNEL)
def test_a_block_of_any_kernel_is_the_same_fused_on_maps_smaller_and_larger_than_it(kernel_size: int) -> None:
    model = small(kernel_sizes=kernel_size, depths=(1, 1, 1, 1))
    x = photo(96, 40)  # maps of 24 x 10 to 3 x 2
    y = model(x)
    assert kernel_sizes(model.fuse()) == [[kernel_size]] * 4
    assert relative_error(model(x), y) < 1e-10


def test_merging_keeps_every_norm_that_follows_the_sum_of_branches() -> None:
    model = small().merge_branches()
    assert len(of_type(model, nn.BatchNorm2d)) == 2 * 12  # after DW and after W2, in each of 12 blocks
    assert all(m.merged is not None for m in of_type(model, ReparamDepthwiseConv))


def test_fusing_leaves_no_batch_norm_no_layer_scale_and_no_shift_in_grn() -> None:
    model = small().fuse()
    assert of_type(model, nn.BatchNorm2d, LayerScale2d) == []
    assert {name for grn in of_type(model, GRN) for name, _ in grn.named_parameters()} == {"gamma"}


def test_every_depthwise_convolution_takes_our_operator() -> None:
    model = small("unireplknet_t")
    grouped = [m for m in of_type(model, nn.Conv2d) if m.groups > 1]
    assert len(grouped) == 12 + 15 * 6  # 3x3 blocks have one, 13x13 blocks six
    assert all(isinstance(m, DepthwiseConv2d) for m in grouped)


def test_without_branches_the_fused_net_has_the_same_form() -> None:
    plain = small(dilated_branches=False)
    assert all(len(m.branches) == 0 for m in of_type(plain, ReparamDepthwiseConv))
    x = photo()
    y = plain(x)
    assert relative_error(plain.fuse()(x), y) < 1e-10
    branched = small().fuse().state_dict()
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in branched.items()}


def test_a_pattern_of_kernels_is_repeated_over_the_blocks_of_its_stage() -> None:
    model = small(kernel_sizes=(3, 7, (13, 3, 5), (9,)), depths=(1, 2, 7, 2))
    assert kernel_sizes(model) == [[3], [7, 7], [13, 3, 5, 13, 3, 5, 13], [9, 9]]
    assert kernel_sizes(small(kernel_sizes=5, depths=(1, 1, 2, 1))) == [[5], [5], [5, 5], [5]]


def test_ratios_and_layer_scale_reach_the_layers_they_name() -> None:
    model = small(ffn_ratio=3, se_reduction=2, layer_scale=0)
    block = model.stages[1].blocks[0]
    assert (block.expand.out_channels, block.se.fc1.out_channels) == (3 * 12, 12 // 2)
    assert of_type(model, LayerScale2d) == []
    x = photo()
    y = model(x)
    assert relative_error(model.fuse()(x), y) < 1e-10


def test_weights_start_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    model = fullfield.create_model("unireplknet_a")
    drawn = of_type(model, nn.Conv2d, nn.Linear)
    for layer in drawn:
        assert layer.bias is None or not layer.bias.any()
        if layer.weight.numel() > 1000:
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert len(drawn) == 2 + 3 + 12 * 4 + 2 + 10 * 6 + 1  # stem, downsampling, 1x1s, 3x3s, 13x13s and branches, head
    assert all(torch.equal(m.gamma, torch.full_like(m.gamma, 1e-6)) for m in of_type(model, LayerScale2d))
    assert not any(p.any() for m in of_type(model, GRN) for p in m.parameters())


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    model = fullfield.create_model("unireplknet_a", drop_path_rate=0.3, device="meta")
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.3, 12, dtype=torch.float64).tolist())


def test_a_net_with_a_pattern_of_kernels_comes_back_from_its_file_fused_or_not(tmp_path: Path) -> None:
    model, x = small("unireplknet_t", depths=(1, 1, 2, 1)), photo()
    for file in (tmp_path / "model.safetensors", tmp_path / "fused.safetensors"):
        loaded = fullfield.load(fullfield.save(model, file))
        assert kernel_sizes(loaded) == [[3], [13], [13, 3], [13]]
        assert torch.equal(loaded(x), model(x))
        model.fuse()


def test_norms_of_dense_heads_are_ignored_and_nothing_else() -> None:
    (ignored,) = unireplknet.OFFICIAL.ignored
    assert all(re.search(ignored, f"norm{stage}.weight") for stage in range(4))
    assert not any(re.search(ignored, name) for name in ("norm.weight", "stages.0.0.norm.weight"))


def test_a_config_is_read_only_and_takes_lists_as_json_gives_them() -> None:
    sizes: Any = [3, 13, [13, 3], 13]
    cfg = unireplknet.UniRepLKNetConfig(dims=(8, 8, 8, 8), depths=(1, 1, 3, 1), kernel_sizes=sizes)
    assert [cfg.kernel_sizes_at(stage) for stage in range(4)] == [(3,), (13,), (13, 3, 13), (13,)]
    assert hash(cfg) == hash(cfg.replace(kernel_sizes=(3, 13, (13, 3), 13)))
    with pytest.raises(AttributeError):
        cfg.kernel_sizes = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_size": 7}, r"UniRepLKNet has no argument 'kernel_size'; did you mean 'kernel_sizes'"),
        ({"kernel_sizes": 31}, r"kernel_sizes must be .* out of 3, 5, 7, 9, 11, 13, 15, 17, got 31"),
        ({"kernel_sizes": (3, 13, 13)}, r"kernel_sizes must be one int, or 4 .*got \(3, 13, 13\)"),
        ({"kernel_sizes": (3, 13, (13, 4), 13)}, r"kernel_sizes must be .*\(13, 4\)"),
        ({"kernel_sizes": (3, 13, (), 13)}, r"kernel_sizes must be .*got \(3, 13, \(\), 13\)"),
        ({"kernel_sizes": "13"}, r"kernel_sizes must be .*got '13'"),
        ({"kernel_sizes": 13.0}, r"kernel_sizes must be .*got 13.0"),
        ({"ffn_ratio": 0}, r"ffn_ratio must be an int of at least 1, got 0"),
        ({"se_reduction": 0.25}, r"se_reduction must be an int of at least 1, got 0.25"),
        ({"dilated_branches": "no"}, r"dilated_branches must be True or False, got 'no'"),
        ({"layer_scale": "1e-6"}, r"layer_scale must be a number above 0, or 0 .*got '1e-6'"),
        ({"layer_scale": -1e-6}, r"layer_scale must be .*got -1e-06"),
        ({"dims": (8, 12, 16)}, r"depths .* and dims .* one entry a stage"),
    ],
    ids=str,
)
def test_an_impossible_argument_is_named_with_the_way_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)
