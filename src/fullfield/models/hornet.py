"""HorNet, a ConvNeXt-like net whose token mixer is a recursive gated convolution of order 2 to 5.

Source: "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions" (Rao et al., NeurIPS
2022, arXiv:2207.14284) and its code, github.com/raoyongming/HorNet. A block is x += gamma_1 gnConv(LN(x));
x += gamma_2 MLP(LN(x)). The gates of gnConv are depthwise 7x7; the variants `_gf` have a global-local filter in its
place in the last two stages, whose learned spectrum is resized to any map. Patches do not overlap, so odd map sizes
lose their last row or column, as in the official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale, LayerScale2d, Mlp
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers import DepthwiseConv2d
from fullfield.layers.global_filter import GlobalLocalFilter
from fullfield.layers.gnconv import GnConv, gnconv_widths
from fullfield.models.backbone import Backbone, Stage, drop_path_rates
from fullfield.models.config import FamilyConfig
from fullfield.models.registry import OfficialFormat, register_family

__all__ = ["OFFICIAL", "VARIANTS", "HorNet", "HorNetConfig"]


@dataclass(frozen=True)
class HorNetConfig(FamilyConfig):
    """The architecture of one HorNet."""

    orders: int | tuple[int, ...] = (2, 3, 4, 5)
    """Order n of gnConv, one for all stages or one each."""
    filter_sizes: int | tuple[int, ...] = 0
    """Side of the map that the global-local filter of a stage is learned for, one for all stages or one each; 0 for a
    depthwise 7x7 convolution in its place."""
    scale: float = 1 / 3
    """Factor s on every gate."""
    layer_scale: float = 1e-6
    """Start value of LayerScale; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.per_stage("orders", 1)
        self.per_stage("filter_sizes", 0)
        for stage, dim in enumerate(self.dims):
            width = sum(gnconv_widths(dim, self.order_at(stage)))
            if self.filter_size_at(stage) and width % 2:
                raise ConfigError(
                    f"a global-local filter halves its channels, and stage {stage} has {width} ({dim} channels at"
                    f" order {self.order_at(stage)}); lower the order or set filter_sizes= to 0 there"
                )
        if not _is_number(self.scale) or not self.scale > 0:
            raise ConfigError(f"scale must be a positive number, got {self.scale!r}")
        if not _is_number(self.layer_scale) or not self.layer_scale >= 0:
            raise ConfigError(f"layer_scale must be a number, 0 for no LayerScale, got {self.layer_scale!r}")

    def order_at(self, stage: int) -> int:
        """Return n of a stage."""
        return self.per_stage("orders", 1)[stage]

    def filter_size_at(self, stage: int) -> int:
        """Return the side of the map that a stage's filter is learned for; 0 for a depthwise 7x7."""
        return self.per_stage("filter_sizes", 0)[stage]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def token_mixer(cfg: HorNetConfig, stage: int, **dd: Any) -> GnConv:
    """Return the gnConv of a stage."""
    dim, order, size = cfg.dims[stage], cfg.order_at(stage), cfg.filter_size_at(stage)
    width = sum(gnconv_widths(dim, order))
    depthwise = GlobalLocalFilter(width, size, **dd) if size else DepthwiseConv2d(width, 7, **dd)
    return GnConv(dim, order, depthwise, cfg.scale, **dd)


class HorNetBlock(nn.Module):
    """x += gamma_1 gnConv(LN(x)); x += gamma_2 MLP(LN(x)), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, cfg: HorNetConfig, stage: int, drop_path: float = 0.0, **dd: Any) -> None:
        super().__init__()
        dim = cfg.dims[stage]
        self.norm1 = LayerNorm2d(dim, eps=1e-6, **dd)
        self.gnconv = token_mixer(cfg, stage, **dd)
        self.gamma1 = LayerScale2d(dim, cfg.layer_scale, **dd) if cfg.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)
        self.gamma2 = LayerScale(dim, cfg.layer_scale, **dd) if cfg.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix pixels, then channels."""
        x = x + self.drop_path(self.gamma1(self.gnconv(self.norm1(x))))
        y = self.gamma2(self.mlp(self.norm2(x.permute(0, 2, 3, 1))))  # (B, H, W, C)
        return x + self.drop_path(y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold both LayerScales into the linear layers before them, in place; a second call does nothing."""
        for name, linear in (("gamma1", self.gnconv.proj_out), ("gamma2", self.mlp.fc2)):
            scale = getattr(self, name)
            if isinstance(scale, LayerScale | LayerScale2d):
                linear.weight.mul_(scale.gamma[:, None])
                linear.bias.mul_(scale.gamma)
                setattr(self, name, nn.Identity())


class HorNet(Backbone):
    """High-order spatial interaction net.

    Args:
        cfg: The architecture.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0.
        device: Where the parameters live.
        dtype: Their dtype.
        changes: Fields of `HorNetConfig` to change, e.g. `orders=3`.

    Raises:
        ConfigError: A changed field does not exist or has an impossible value.
    """

    def __init__(
        self,
        cfg: HorNetConfig,
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
        stem = nn.Sequential(
            nn.Conv2d(in_chans, cfg.dims[0], 4, stride=4, **dd), LayerNorm2d(cfg.dims[0], eps=1e-6, **dd)
        )
        rates = drop_path_rates(drop_path_rate, cfg.depths)
        stages = [
            Stage(
                nn.Identity() if i == 0 else downsampling(cfg.dims[i - 1], dim, **dd),
                [HorNetBlock(cfg, i, rate, **dd) for rate in rates[i]],
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
            min_size=2 ** (len(cfg.dims) + 1),  # the reduction of the last map: one pixel of it
            **dd,
        )
        self.cfg = cfg
        self.apply(_start)


def downsampling(dim: int, dim_out: int, **dd: Any) -> nn.Sequential:
    """Return LN and a 2x2 convolution of stride 2, (B, C, H, W) -> (B, C', H // 2, W // 2)."""
    return nn.Sequential(LayerNorm2d(dim, eps=1e-6, **dd), nn.Conv2d(dim, dim_out, 2, stride=2, **dd))


def _start(module: nn.Module) -> None:
    """Initialise as the official code does: weights normal, deviation 0.02, cut at 2; biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_DEPTHS = (2, 3, 18, 2)
_TINY = HorNetConfig(dims=(64, 128, 256, 512), depths=_DEPTHS)
_SMALL = HorNetConfig(dims=(96, 192, 384, 768), depths=_DEPTHS)
_BASE = HorNetConfig(dims=(128, 256, 512, 1024), depths=_DEPTHS)
_LARGE = HorNetConfig(dims=(192, 384, 768, 1536), depths=_DEPTHS)
_GF: dict[str, Any] = {"filter_sizes": (0, 0, 14, 7)}
_GF_384: dict[str, Any] = {"filter_sizes": (0, 0, 24, 12)}

_CROPPED = {
    "hornet_tiny": _TINY,
    "hornet_tiny_gf": _TINY.replace(**_GF),
    "hornet_small": _SMALL,
    "hornet_small_gf": _SMALL.replace(**_GF),
    "hornet_base": _BASE,
    "hornet_base_gf": _BASE.replace(**_GF),
    "hornet_large": _LARGE,
    "hornet_large_gf": _LARGE.replace(**_GF),
}
_WARPED = {"hornet_base_gf_384": _BASE.replace(**_GF_384), "hornet_large_gf_384": _LARGE.replace(**_GF_384)}
VARIANTS = _CROPPED | _WARPED

OFFICIAL = OfficialFormat(
    renames=(
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.gnconv\.dwconv\.dw\.", ".gnconv.depthwise.local."),
        (r"\.gnconv\.dwconv\.", ".gnconv.depthwise."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"\.gamma([12])$", r".gamma\1.gamma"),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ),
    ignored=(r"^norm[0-3]\.",),  # of the maps that detection and segmentation heads read
)

_DEFAULTS: dict[str, Any] = {"first_conv": "stem.0", "classifier": "head.fc", "interpolation": "bicubic"}
register_family(__name__, HorNet, _CROPPED, official=OFFICIAL, crop_pct=0.875, **_DEFAULTS)
# the authors show nets of 384 pixels the whole image, warped to a square
register_family(
    __name__,
    HorNet,
    _WARPED,
    official=OFFICIAL,
    input_size=(3, 384, 384),
    crop_pct=1.0,
    crop_mode="squash",
    **_DEFAULTS,
)
