"""UniRepLKNet, few 13x13 depthwise convolutions that see wide, and many 3x3 ones that go deep.

Source: "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image
Recognition" (CVPR 2024, arXiv 2311.15599). A block is

    x + gamma BN(W2 GRN(GELU(W1 SE(BN(DW(x))))))

where DW is 3x3 (the paper's SmaK block), or KxK beside dilated smaller convolutions, each with a BatchNorm (its LarK
block with the dilated reparam block), which together are one KxK kernel (equation 1). In the third stage of the larger
nets one or two SmaK blocks follow each LarK block. For inference all that is linear is folded, GRN's beta and
LayerScale too: `fuse` gives the form that the official code calls "deploy", whose parameters the authors publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from timm.layers import DropPath, LayerScale2d, SEModule
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers import ConvNorm, DepthwiseConv2d, LayerNorm2d, fold_norm_into_conv
from fullfield.layers.grn import GRN
from fullfield.layers.reparam import Branch, ReparamDepthwiseConv
from fullfield.models.backbone import Backbone, Stage, drop_path_rates
from fullfield.models.config import FamilyConfig, are_ints
from fullfield.models.registry import OfficialFormat, register_family

__all__ = ["BRANCHES", "OFFICIAL", "VARIANTS", "UniRepLKNet", "UniRepLKNetConfig"]

BRANCHES = {
    7: (Branch(5), Branch(3, 2), Branch(3, 3)),
    9: (Branch(5), Branch(5, 2), Branch(3, 3), Branch(3, 4)),
    11: (Branch(5), Branch(5, 2), Branch(3, 3), Branch(3, 4), Branch(3, 5)),
    13: (Branch(5), Branch(7, 2), Branch(3, 3), Branch(3, 4), Branch(3, 5)),
    15: (Branch(5), Branch(7, 2), Branch(3, 3), Branch(3, 5), Branch(3, 7)),
    17: (Branch(5), Branch(9, 2), Branch(3, 4), Branch(3, 5), Branch(3, 7)),
}
"""Size of a large kernel -> the convolutions that the official code trains beside it."""
PLAIN_KERNELS = (3, 5)


@dataclass(frozen=True)
class UniRepLKNetConfig(FamilyConfig):
    """The architecture of one UniRepLKNet."""

    kernel_sizes: int | tuple[int | tuple[int, ...], ...] = (3, 13, 13, 13)
    """Of the depthwise convolutions: one for all, or one a stage. A tuple in a stage's place is a pattern that its
    blocks repeat: (13, 3) alternates. 3 and 5 are plain; 7, 9, ..., 17 have the branches of `BRANCHES`."""
    dilated_branches: bool = True
    """Train large kernels beside their branches. Without them the fused net has the same form."""
    ffn_ratio: int = 4
    """Width of the hidden layer over the channels."""
    se_reduction: int = 4
    """Channels over the width between the two layers of squeeze-and-excite (SE)."""
    layer_scale: float = 1e-6
    """Start value of LayerScale; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.kernel_sizes
        stages = sizes if isinstance(sizes, tuple | list) else (sizes,) * len(self.dims)
        patterns = [tuple(stage) if isinstance(stage, tuple | list) else (stage,) for stage in stages]
        known = (*PLAIN_KERNELS, *BRANCHES)
        if len(patterns) != len(self.dims) or not all(p and are_ints(p, 3) and set(p) <= {*known} for p in patterns):
            raise ConfigError(
                f"kernel_sizes must be one int, or {len(self.dims)} ints or tuples of ints, one a stage, out of"
                f" {', '.join(map(str, known))}, got {sizes!r}"
            )
        object.__setattr__(self, "kernel_sizes", tuple(patterns))
        for name in ("ffn_ratio", "se_reduction"):
            if not are_ints([getattr(self, name)], 1):
                raise ConfigError(f"{name} must be an int of at least 1, got {getattr(self, name)!r}")
        if self.dilated_branches not in (True, False):
            raise ConfigError(f"dilated_branches must be True or False, got {self.dilated_branches!r}")
        scale: object = self.layer_scale
        if not isinstance(scale, int | float) or not scale >= 0:
            raise ConfigError(f"layer_scale must be a number above 0, or 0 for no LayerScale, got {scale!r}")

    def kernel_sizes_at(self, stage: int) -> tuple[int, ...]:
        """Return the kernel size of every block of a stage."""
        assert isinstance(self.kernel_sizes, tuple)  # noqa: S101 - __post_init__ made it so
        pattern: Any = self.kernel_sizes[stage]
        return tuple(islice(cycle(pattern), self.depths[stage]))


class UniRepLKNetBlock(nn.Module):
    """Depthwise convolution, squeeze-and-excite, channel MLP with GRN, in one residual, (B, C, H, W) -> (B, C, H, W).

    Args:
        cfg: The architecture.
        dim: Channels C.
        kernel_size: Of the depthwise convolution.
        drop_path: Probability that a sample skips the block in training (stochastic depth).
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(self, cfg: UniRepLKNetConfig, dim: int, kernel_size: int, drop_path: float = 0.0, **dd: Any) -> None:
        super().__init__()
        hidden = cfg.ffn_ratio * dim
        self.depthwise: nn.Module
        if kernel_size in PLAIN_KERNELS:
            self.depthwise = DepthwiseConv2d(dim, kernel_size, bias=False, **dd)
        else:
            branches = BRANCHES[kernel_size] if cfg.dilated_branches else ()
            self.depthwise = ReparamDepthwiseConv(dim, kernel_size, branches, **dd)
        self.norm: nn.Module = nn.BatchNorm2d(dim, **dd)
        self.se = SEModule(dim, rd_channels=max(1, dim // cfg.se_reduction), **dd)
        self.expand = nn.Conv2d(dim, hidden, 1, **dd)
        self.act = nn.GELU()
        self.grn = GRN(hidden, **dd)
        self.project = ConvNorm(hidden, dim, 1, **dd)
        self.gamma: nn.Module = nn.Identity()
        if cfg.layer_scale:
            self.gamma = LayerScale2d(dim, cfg.layer_scale, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Gather space, gate and mix channels, add."""
        y = self.se(self.norm(self.depthwise(x)))
        y = self.project(self.grn(self.act(self.expand(y))))
        return x + self.drop_path(self.gamma(y))  # type: ignore[no-any-return]

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold both norms, GRN's beta and LayerScale into the convolutions, in place; a second call does nothing."""
        if isinstance(self.depthwise, ReparamDepthwiseConv):
            self.depthwise.merge_branches()
        if isinstance(self.norm, nn.BatchNorm2d):
            conv: Any = getattr(self.depthwise, "merged", self.depthwise)
            fold_norm_into_conv(conv, self.norm)
            self.norm = nn.Identity()
        self.project.fuse()
        weight, bias = self.project.conv.weight, self.project.conv.bias
        assert bias is not None  # noqa: S101 - the folded norm gave it one
        if self.grn.beta is not None:
            shift = weight[:, :, 0, 0].double() @ self.grn.beta.double()
            bias.copy_(bias.double() + shift)
            self.grn.beta = None
        if isinstance(self.gamma, LayerScale2d):
            weight.mul_(self.gamma.gamma[:, None, None, None])
            bias.mul_(self.gamma.gamma)
            self.gamma = nn.Identity()


class UniRepLKNet(Backbone):
    """Universal perception large-kernel ConvNet.

    Args:
        cfg: The architecture.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0.
        device: Where the parameters live.
        dtype: Their dtype.
        changes: Fields of `UniRepLKNetConfig` to change, e.g. `kernel_sizes=(3, 13, (13, 3), 13)`.

    Raises:
        ConfigError: A changed field does not exist or has an impossible value.
    """

    def __init__(
        self,
        cfg: UniRepLKNetConfig,
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
            *_downsample(in_chans, width // 2, **dd),
            nn.GELU(),
            *_downsample(width // 2, width, **dd),
        )
        rates = drop_path_rates(drop_path_rate, cfg.depths)
        stages = [
            Stage(
                nn.Identity() if i == 0 else _downsample(cfg.dims[i - 1], dim, **dd),
                [
                    UniRepLKNetBlock(cfg, dim, kernel_size, rate, **dd)
                    for kernel_size, rate in zip(cfg.kernel_sizes_at(i), rates[i], strict=True)
                ],
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
            **dd,
        )
        self.cfg = cfg
        self.apply(_start)


def _downsample(dim: int, dim_out: int, **dd: Any) -> nn.Sequential:
    """3x3 of stride 2, then LayerNorm over the channels, (B, dim, H, W) -> (B, dim_out, ceil(H/2), ceil(W/2))."""
    return nn.Sequential(nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, **dd), LayerNorm2d(dim_out, **dd))


def _start(module: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers as the official code does."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_LARGE = UniRepLKNetConfig(dims=(96, 192, 384, 768), depths=(3, 3, 27, 3), kernel_sizes=(3, 13, (13, 3, 3), 13))

VARIANTS = {
    "unireplknet_a": UniRepLKNetConfig(dims=(40, 80, 160, 320), depths=(2, 2, 6, 2)),
    "unireplknet_f": UniRepLKNetConfig(dims=(48, 96, 192, 384), depths=(2, 2, 6, 2)),
    "unireplknet_p": UniRepLKNetConfig(dims=(64, 128, 256, 512), depths=(2, 2, 6, 2)),
    "unireplknet_n": UniRepLKNetConfig(dims=(80, 160, 320, 640), depths=(2, 2, 8, 2)),
    "unireplknet_t": UniRepLKNetConfig(
        dims=(80, 160, 320, 640), depths=(3, 3, 18, 3), kernel_sizes=(3, 13, (13, 3), 13)
    ),
    "unireplknet_s": _LARGE,
    "unireplknet_b": _LARGE.replace(dims=(128, 256, 512, 1024)),
    "unireplknet_l": _LARGE.replace(dims=(192, 384, 768, 1536)),
    "unireplknet_xl": _LARGE.replace(dims=(256, 512, 1024, 2048)),
}

OFFICIAL = OfficialFormat(
    renames=(
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.lk_origin\.", ".depthwise.large.conv."),
        (r"\.dwconv\.origin_bn\.", ".depthwise.large.norm."),
        # the branches of kernels up to 13 are in the order of their dilations, without a gap
        *((rf"\.dwconv\.dil_conv_k\d_{d}\.", f".depthwise.branches.{d - 1}.conv.") for d in range(1, 6)),
        *((rf"\.dwconv\.dil_bn_k\d_{d}\.", f".depthwise.branches.{d - 1}.norm.") for d in range(1, 6)),
        (r"\.dwconv\.", ".depthwise."),
        (r"\.se\.down\.", ".se.fc1."),
        (r"\.se\.up\.", ".se.fc2."),
        (r"\.pwconv1\.1\.", ".expand."),
        (r"\.act\.1\.", ".grn."),
        (r"\.pwconv2\.0\.", ".project.conv."),
        (r"\.pwconv2\.2\.", ".project.norm."),
        (r"(\.blocks\.\d+)\.gamma$", r"\1.gamma.gamma"),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ),
    merged=r"\.pwconv2\.0\.bias$",
    merged_renames=((r"\.dwconv\.lk_origin\.", ".depthwise.merged."),),
    merge=lambda model: model.fuse(),
    ignored=(r"^norm[0-3]\.",),  # of the maps that detection and segmentation heads read
)

register_family(
    __name__,
    UniRepLKNet,
    VARIANTS,
    official=OFFICIAL,
    first_conv="stem.0",
    classifier="head.fc",
    interpolation="bicubic",
    crop_pct=0.875,
)
