"""RaCNN, a convolutional net of 3x3 kernels with a sparse, weight-mediated global receptive field.

Source: "RaCNN", ICLR 2025 submission, known from its abstract, reviews and rebuttals; neither code nor weights are
public, so this is a reconstruction. `docs/models/racnn.md` says of every choice whether it is the source's or ours.
A block is x += RaFFN(BN(x)); x += RaGLU(BN(x)); only 3x3 convolutions gather space, and RPWConv and Region
Attention give every pixel weights that saw the whole map. Every part can be replaced by its plain counterpart, so
that the full ablation is a matter of arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.layers import SEModule
from torch import nn

from fullfield.errors import ConfigError
from fullfield.layers import FFN, ConvNorm, RaFFN, RaGLU, RegionAttention, RegionPWConv, ResidualBranch
from fullfield.models.backbone import Backbone, Stage, drop_path_rates
from fullfield.models.config import FamilyConfig
from fullfield.models.registry import register_family
from fullfield.ops.dispatch import one_of
from fullfield.ops.dynamic_pwconv import SIMILARITIES
from fullfield.ops.region_gate import PLACEMENTS

__all__ = ["CHANNEL_MIXERS", "TOKEN_MIXERS", "VARIANTS", "RaCNN", "RaCNNConfig"]

TOKEN_MIXERS = ("rpwconv", "depthwise", "ffn")
CHANNEL_MIXERS = ("raglu", "raglu_se", "glu", "ffn")


@dataclass(frozen=True)
class RaCNNConfig(FamilyConfig):
    """The architecture of one RaCNN."""

    region_size: int | tuple[int, ...] = (7, 7, 7, 1)
    """r of RPWConv and Region Attention, one for all stages or one each. The source has 7 throughout; 1 in the last
    stage is ours, because there a 224-pixel image leaves one pixel a window."""
    heads: int | tuple[int, ...] = 0
    """Heads of RPWConv, one number for all stages or one each. 0 splits into heads of the first stage's width
    (ours, it bounds the softmax); 1 is the source's operator."""
    similarity: str = "cosine"
    """"cosine" (source) or "inner"."""
    placement: str = "nearest"
    """Where a gate of Region Attention acts: "nearest" (source) or "modulo"."""
    token_mixer: str = "rpwconv"
    """"rpwconv" is RaFFN; "depthwise" is RaFFN with a depthwise 3x3 in RPWConv's place; "ffn" is a plain FFN."""
    channel_mixer: str = "raglu"
    """"raglu" is RaGLU; "raglu_se" has squeeze-and-excite in RA's place, "glu" nothing; "ffn" is a plain FFN."""
    inner_residual: bool = True
    """RaFFN computes x + RPWConv(x) (ours) rather than RPWConv(x)."""
    stem_stride: int = 4
    """4, or 2 or 1 for small images."""
    layer_scale: float | None = None
    """Start value of LayerScale; None for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.per_stage("region_size", 1)
        self.per_stage("heads", 0)
        one_of("similarity", self.similarity, SIMILARITIES)
        one_of("placement", self.placement, PLACEMENTS)
        one_of("token_mixer", self.token_mixer, TOKEN_MIXERS)
        one_of("channel_mixer", self.channel_mixer, CHANNEL_MIXERS)
        for stage, dim in enumerate(self.dims):
            if self.token_mixer == "rpwconv" and dim % self.heads_at(stage):
                raise ConfigError(
                    f"heads must divide the channels: stage {stage} has {dim} channels and"
                    f" {self.heads_at(stage)} heads; set heads= to one int a stage that does"
                )
        if self.stem_stride not in (1, 2, 4):
            raise ConfigError(f"stem_stride must be 4, 2 or 1, got {self.stem_stride!r}")

    def region_size_at(self, stage: int) -> int:
        """Return r of a stage."""
        return self.per_stage("region_size", 1)[stage]

    def heads_at(self, stage: int) -> int:
        """Return the heads of a stage's RPWConv; 0 stands for as many as have the first stage's width."""
        return self.per_stage("heads", 0)[stage] or max(1, self.dims[stage] // self.dims[0])


def token_mixer(cfg: RaCNNConfig, stage: int, **dd: Any) -> nn.Module:
    """Return the first body of a block: RaFFN or its plain counterpart."""
    dim = cfg.dims[stage]
    if cfg.token_mixer == "ffn":
        return FFN(dim, **dd)
    if cfg.token_mixer == "depthwise":
        mixer: nn.Module = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
    else:
        mixer = RegionPWConv(dim, cfg.region_size_at(stage), cfg.heads_at(stage), cfg.similarity, **dd)
    return RaFFN(dim, mixer, inner_residual=cfg.inner_residual, **dd)


def channel_mixer(cfg: RaCNNConfig, stage: int, **dd: Any) -> nn.Module:
    """Return the second body of a block: RaGLU or its plain counterpart."""
    dim = cfg.dims[stage]
    if cfg.channel_mixer == "ffn":
        return FFN(dim, **dd)
    if cfg.channel_mixer == "raglu":
        attention: nn.Module = RegionAttention(2 * dim, cfg.region_size_at(stage), placement=cfg.placement, **dd)
    elif cfg.channel_mixer == "raglu_se":
        attention = SEModule(2 * dim, rd_channels=max(1, 2 * dim // 16), act_layer=nn.GELU, **dd)
    else:
        attention = nn.Identity()
    return RaGLU(dim, attention, **dd)


class RaCNNBlock(nn.Sequential):
    """x += token_mixer(BN(x)); x += channel_mixer(BN(x)), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, cfg: RaCNNConfig, stage: int, drop_path: float = 0.0, **dd: Any) -> None:
        dim = cfg.dims[stage]
        super().__init__(
            ResidualBranch(dim, token_mixer(cfg, stage, **dd), cfg.layer_scale, drop_path, **dd),
            ResidualBranch(dim, channel_mixer(cfg, stage, **dd), cfg.layer_scale, drop_path, **dd),
        )


class RaCNN(Backbone):
    """Region-aware CNN.

    Args:
        cfg: The architecture.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0.
        device: Where the parameters live.
        dtype: Their dtype.
        changes: Fields of `RaCNNConfig` to change, e.g. `region_size=4`.

    Raises:
        ConfigError: A changed field does not exist or has an impossible value.
    """

    def __init__(
        self,
        cfg: RaCNNConfig,
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
        strides = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[cfg.stem_stride]
        width = cfg.dims[0]
        stem = nn.Sequential(
            ConvNorm(in_chans, width // 2, stride=strides[0], **dd),
            nn.GELU(),
            ConvNorm(width // 2, width, stride=strides[1], **dd),
        )
        rates = drop_path_rates(drop_path_rate, cfg.depths)
        stages = [
            Stage(
                nn.Identity() if i == 0 else ConvNorm(cfg.dims[i - 1], dim, stride=2, **dd),
                [RaCNNBlock(cfg, i, rate, **dd) for rate in rates[i]],
            )
            for i, dim in enumerate(cfg.dims)
        ]
        super().__init__(
            stem,
            stages,
            dims=cfg.dims,
            stem_stride=cfg.stem_stride,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **dd,
        )
        self.cfg = cfg


_TINY = RaCNNConfig(dims=(64, 128, 256, 512), depths=(2, 3, 10, 3))

VARIANTS = {
    "racnn_pico": RaCNNConfig(dims=(32, 64, 128, 256), depths=(3, 4, 13, 4)),
    "racnn_nano": RaCNNConfig(dims=(48, 96, 192, 384), depths=(4, 4, 7, 4)),
    "racnn_tiny": _TINY,
    "racnn_small": RaCNNConfig(dims=(72, 144, 288, 576), depths=(3, 3, 12, 4)),
    "racnn_base": RaCNNConfig(dims=(96, 192, 384, 768), depths=(4, 4, 13, 4)),
    # the source's equations to the letter: one head, r = 7 in every stage
    "racnn_tiny_literal": _TINY.replace(region_size=7, heads=1),
    # r halves with the map, so that every stage has windows of 49 pixels at 224
    "racnn_tiny_grid": _TINY.replace(region_size=(8, 4, 2, 1)),
}

register_family(
    __name__, RaCNN, VARIANTS, first_conv="stem.0.conv", classifier="head.fc", interpolation="bicubic", crop_pct=0.95
)
