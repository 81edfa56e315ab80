"""VAN, the Visual Attention Network: convolutional stages whose attention is a large, decomposed kernel.

Source: Guo et al., "Visual Attention Network" (arXiv:2202.09741), and the authors' code,
github.com/Visual-Attention-Network/VAN-Classification. A block is, with n = BN(x),
x += gamma * (n + 1x1(LKA(GELU(1x1(n))))); x += gamma * FFN(BN(x)), its FFN with a depthwise 3x3. Patches overlap, and
every stage ends with a LayerNorm over channels, so that the head only pools. `docs/models/van.md` says what differs
from the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from torch import Tensor, nn

from fullfield.layers import ConvNorm, DepthwiseConv2d, LayerNorm2d, PoolHead, ResidualBranch
from fullfield.layers.initialise import initialise_by_fan_out
from fullfield.layers.large_kernel_attention import LargeKernelAttention, decomposed_kernel
from fullfield.layers.shortcut_branch import ShortcutBranch
from fullfield.models.backbone import Backbone, Stage, drop_path_rates
from fullfield.models.config import FamilyConfig
from fullfield.models.registry import OfficialFormat, register_family

__all__ = ["VAN", "VARIANTS", "VANConfig"]


@dataclass(frozen=True)
class VANConfig(FamilyConfig):
    """The architecture of one VAN."""

    mlp_ratio: int | tuple[int, ...] = (8, 8, 4, 4)
    """Hidden width of the FFN over the stage's, one number for all stages or one each."""
    kernel_size: int = 21
    """Side K of the kernel that LKA decomposes, in pixels of the stage's map."""
    dilation: int = 3
    """Dilation d of LKA's second depthwise kernel; ceil(K / d) must be odd."""
    layer_scale: float = 1e-2
    """Start value of the factor gamma on each branch; 0 for no factor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.per_stage("mlp_ratio", 1)
        decomposed_kernel(self.kernel_size, self.dilation)


class SpatialAttention(nn.Module):
    """1x1, GELU, large kernel attention, 1x1, (B, C, H, W) -> (B, C, H, W); the shortcut around it is the branch's.

    Args:
        dim: Channels C.
        kernel_size: K of LKA.
        dilation: d of LKA.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(self, dim: int, kernel_size: int, dilation: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)
        self.attention = LargeKernelAttention(dim, kernel_size, dilation, device=device, dtype=dtype)
        self.project_out = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Project, attend, project."""
        return self.project_out(self.attention(F.gelu(self.project_in(x))))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this layer."""
        return self.project_in

    @property
    def last_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the factor after this layer."""
        return self.project_out


class DepthwiseFFN(nn.Module):
    """1x1, depthwise 3x3, GELU, 1x1, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        expansion: Width of the hidden layer over C.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(self, dim: int, expansion: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        hidden = expansion * dim
        self.expand = nn.Conv2d(dim, hidden, 1, device=device, dtype=dtype)
        self.depthwise = DepthwiseConv2d(hidden, 3, device=device, dtype=dtype)
        self.project = nn.Conv2d(hidden, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, gather a 3x3 neighbourhood, activate, project."""
        return self.project(F.gelu(self.depthwise(self.expand(x))))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this layer."""
        return self.expand


class VANBlock(nn.Sequential):
    """n = BN(x); x += gamma * (n + attention(n)); x += gamma * FFN(BN(x)), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, cfg: VANConfig, stage: int, drop_path: float = 0.0, **dd: Any) -> None:
        dim = cfg.dims[stage]
        attention = SpatialAttention(dim, cfg.kernel_size, cfg.dilation, **dd)
        ffn = DepthwiseFFN(dim, cfg.per_stage("mlp_ratio", 1)[stage], **dd)
        super().__init__(
            ShortcutBranch(dim, attention, cfg.layer_scale or None, drop_path, **dd),
            ResidualBranch(dim, ffn, cfg.layer_scale or None, drop_path, **dd),
        )


class VAN(Backbone):
    """Visual Attention Network.

    Args:
        cfg: The architecture.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0.
        device: Where the parameters live.
        dtype: Their dtype.
        changes: Fields of `VANConfig` to change, e.g. `kernel_size=9`.

    Raises:
        ConfigError: A changed field does not exist or has an impossible value.
    """

    def __init__(
        self,
        cfg: VANConfig,
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
        rates = drop_path_rates(drop_path_rate, cfg.depths)
        stages = [
            Stage(
                nn.Identity() if i == 0 else ConvNorm(cfg.dims[i - 1], dim, stride=2, bias=True, **dd),
                [VANBlock(cfg, i, rate, **dd) for rate in rates[i]],
                LayerNorm2d(dim, eps=1e-6, **dd),
            )
            for i, dim in enumerate(cfg.dims)
        ]
        super().__init__(
            ConvNorm(in_chans, cfg.dims[0], 7, stride=4, bias=True, **dd),
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


_WIDTHS = (64, 128, 320, 512)

VARIANTS = {
    "van_b0": VANConfig(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    "van_b1": VANConfig(dims=_WIDTHS, depths=(2, 2, 4, 2)),
    "van_b2": VANConfig(dims=_WIDTHS, depths=(3, 3, 12, 3)),
    "van_b3": VANConfig(dims=_WIDTHS, depths=(3, 5, 27, 3)),
    "van_b4": VANConfig(dims=_WIDTHS, depths=(3, 6, 40, 3)),
    "van_b5": VANConfig(dims=(96, 192, 480, 768), depths=(3, 3, 24, 3)),
    "van_b6": VANConfig(dims=(96, 192, 384, 768), depths=(6, 6, 90, 6)),
}

OFFICIAL = OfficialFormat(
    renames=(
        # the authors count stages from 1
        (r"^patch_embed1\.", "stem."),
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(4)),
        (r"^(stem|stages\.\d\.downsample)\.proj\.", r"\1.conv."),
        (r"\.norm1\.", ".0.norm."),
        (r"\.layer_scale_1$", ".0.gamma.gamma"),
        (r"\.attn\.proj_1\.", ".0.body.project_in."),
        (r"\.attn\.spatial_gating_unit\.conv0\.", ".0.body.attention.depthwise."),
        (r"\.attn\.spatial_gating_unit\.conv_spatial\.", ".0.body.attention.dilated."),
        (r"\.attn\.spatial_gating_unit\.conv1\.", ".0.body.attention.pointwise."),
        (r"\.attn\.proj_2\.", ".0.body.project_out."),
        (r"\.norm2\.", ".1.norm."),
        (r"\.layer_scale_2$", ".1.gamma.gamma"),
        (r"\.mlp\.fc1\.", ".1.body.expand."),
        (r"\.mlp\.dwconv\.dwconv\.", ".1.body.depthwise."),
        (r"\.mlp\.fc2\.", ".1.body.project."),
        (r"^head\.", "head.fc."),
    ),
)

register_family(
    __name__,
    VAN,
    VARIANTS,
    official=OFFICIAL,
    first_conv="stem.conv",
    classifier="head.fc",
    interpolation="bicubic",
    crop_pct=0.9,
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
)
