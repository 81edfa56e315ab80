"""MogaNet: convolutional stages that gate a context of several receptive fields and reallocate channels.

Source: Li et al., "MogaNet: Multi-order Gated Aggregation Network" (ICLR 2024, arXiv:2211.03295), and the
authors' code, github.com/Westlake-AI/MogaNet. A block is, with n = BN(x),
x += gamma * (n + aggregation(n)); x += gamma * FFN(BN(x)), its FFN with a depthwise 3x3 and channel aggregation.
Patches overlap, and every stage ends with a BatchNorm, so that the head only pools. `docs/models/moganet.md` says what
differs from the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fullfield.errors import ConfigError
from fullfield.layers import ConvNorm, PoolHead, ResidualBranch
from fullfield.layers.channel_aggregation import ChannelAggregationFFN
from fullfield.layers.initialise import initialise_by_fan_out
from fullfield.layers.multi_order import MultiOrderGatedAggregation, split_channels
from fullfield.layers.shortcut_branch import ShortcutBranch
from fullfield.models.backbone import Backbone, Stage, drop_path_rates
from fullfield.models.config import FamilyConfig, are_ints
from fullfield.models.registry import OfficialFormat, register_family

__all__ = ["VARIANTS", "MogaNet", "MogaNetConfig"]


@dataclass(frozen=True)
class MogaNetConfig(FamilyConfig):
    """The architecture of one MogaNet."""

    mlp_ratio: int | tuple[int, ...] = (8, 8, 4, 4)
    """Hidden width of the FFN over the stage's, one number for all stages or one each."""
    dilations: tuple[int, int, int] = (1, 2, 3)
    """Dilations of the three depthwise kernels, 5x5, 5x5 and 7x7."""
    channel_split: tuple[int, int, int] = (1, 3, 4)
    """Ratio of the channels that end with the first, second and third of them."""
    layer_scale: float = 1e-5
    """Start value of the factor gamma on each branch; 0 for no factor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.per_stage("mlp_ratio", 1)
        for name in ("dilations", "channel_split"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or len(values) != 3 or not are_ints(values, 1):
                raise ConfigError(f"{name} must be three ints of at least 1, one a depthwise kernel, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        for dim in self.dims:
            split_channels(dim, self.channel_split)


class MogaNetBlock(nn.Sequential):
    """n = BN(x); x += gamma * (n + aggregation(n)); x += gamma * FFN(BN(x)), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, cfg: MogaNetConfig, stage: int, drop_path: float = 0.0, **dd: Any) -> None:
        dim = cfg.dims[stage]
        aggregation = MultiOrderGatedAggregation(dim, cfg.dilations, cfg.channel_split, **dd)
        ffn = ChannelAggregationFFN(dim, cfg.per_stage("mlp_ratio", 1)[stage], **dd)
        super().__init__(
            ShortcutBranch(dim, aggregation, cfg.layer_scale or None, drop_path, **dd),
            ResidualBranch(dim, ffn, cfg.layer_scale or None, drop_path, **dd),
        )


class MogaNet(Backbone):
    """Multi-order gated aggregation network.

    Args:
        cfg: The architecture.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0.
        device: Where the parameters live.
        dtype: Their dtype.
        changes: Fields of `MogaNetConfig` to change, e.g. `dilations=(1, 1, 1)`.

    Raises:
        ConfigError: A changed field does not exist or has an impossible value.
    """

    def __init__(
        self,
        cfg: MogaNetConfig,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
        **changes: Any,
    ) -> None:
        cfg = cfg.replace(**changes)
        dd = {"device": device, "dtype": dtype}
        width = cfg.dims[0]
        stem = nn.Sequential(
            ConvNorm(in_chans, width // 2, stride=2, bias=True, **dd),
            nn.GELU(),
            ConvNorm(width // 2, width, stride=2, bias=True, **dd),
        )
        rates = drop_path_rates(drop_path_rate, cfg.depths)
        stages = [
            Stage(
                nn.Identity() if i == 0 else ConvNorm(cfg.dims[i - 1], dim, stride=2, bias=True, **dd),
                [MogaNetBlock(cfg, i, rate, **dd) for rate in rates[i]],
                nn.BatchNorm2d(dim, **dd),
            )
            for i, dim in enumerate(cfg.dims)
        ]
        super().__init__(
            stem,
            stages,
            dims=cfg.dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=PoolHead(cfg.dims[-1], num_classes, global_pool, drop_rate, **dd),
            **dd,
        )
        self.cfg = cfg
        initialise_by_fan_out(self)


VARIANTS = {
    "moganet_xtiny": MogaNetConfig(dims=(32, 64, 96, 192), depths=(3, 3, 10, 2)),
    "moganet_tiny": MogaNetConfig(dims=(32, 64, 128, 256), depths=(3, 3, 12, 2)),
    "moganet_small": MogaNetConfig(dims=(64, 128, 320, 512), depths=(2, 3, 12, 2)),
    "moganet_base": MogaNetConfig(dims=(64, 160, 320, 512), depths=(4, 6, 22, 3)),
    "moganet_large": MogaNetConfig(dims=(64, 160, 320, 640), depths=(4, 6, 44, 4)),
    "moganet_xlarge": MogaNetConfig(dims=(96, 192, 480, 960), depths=(6, 6, 44, 4)),
}

OFFICIAL = OfficialFormat(
    renames=(
        # the authors count stages from 1
        (r"^patch_embed1\.projection\.0\.", "stem.0.conv."),
        (r"^patch_embed1\.projection\.1\.", "stem.0.norm."),
        (r"^patch_embed1\.projection\.3\.", "stem.2.conv."),
        (r"^patch_embed1\.projection\.4\.", "stem.2.norm."),
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^blocks{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(4)),
        (r"\.downsample\.projection\.", ".downsample.conv."),
        (r"\.norm1\.", ".0.norm."),
        (r"\.layer_scale_1$", ".0.gamma.gamma"),
        (r"\.attn\.proj_1\.", ".0.body.project_in."),
        (r"\.attn\.sigma\.scale$", ".0.body.sigma"),
        (r"\.attn\.gate\.", ".0.body.gate."),
        (r"\.attn\.value\.DW_conv(\d)\.", r".0.body.orders.depthwise.\1."),
        (r"\.attn\.value\.PW_conv\.", ".0.body.orders.pointwise."),
        (r"\.attn\.proj_2\.", ".0.body.project_out."),
        (r"\.norm2\.", ".1.norm."),
        (r"\.layer_scale_2$", ".1.gamma.gamma"),
        (r"\.mlp\.fc1\.", ".1.body.expand."),
        (r"\.mlp\.dwconv\.", ".1.body.depthwise."),
        (r"\.mlp\.decompose\.", ".1.body.common."),
        (r"\.mlp\.sigma\.scale$", ".1.body.sigma"),
        (r"\.mlp\.fc2\.", ".1.body.project."),
        (r"^head\.", "head.fc."),
    ),
)

register_family(
    __name__,
    MogaNet,
    VARIANTS,
    official=OFFICIAL,
    first_conv="stem.0.conv",
    classifier="head.fc",
    interpolation="bicubic",
    crop_pct=0.9,
)
