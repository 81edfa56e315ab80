"""RepLKNet, a convolutional net whose depthwise kernels are as large as 31x31.

Source: "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs" (CVPR 2022, arXiv 2203.06717) and
its official code, github.com/DingXiaoH/RepLKNet-pytorch. A RepLK block is x += PW(ReLU(DW(ReLU(PW(BN(x)))))) with a
large depthwise kernel that is trained with a small one beside it, and each is followed by a ConvFFN,
x += PW(GELU(PW(BN(x)))); every convolution has a BatchNorm. The two alternate in `stages.i.blocks`, as in the
official code, so that checkpoints map name by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers import ConvNorm, PoolHead, ResidualBranch
from fullfield.layers.reparam import Branch, ReparamDepthwiseConv
from fullfield.models.backbone import Backbone, Stage, drop_path_rates
from fullfield.models.config import FamilyConfig, are_ints
from fullfield.models.registry import OfficialFormat, register_family

__all__ = ["OFFICIAL", "VARIANTS", "RepLKNet", "RepLKNetConfig"]


@dataclass(frozen=True)
class RepLKNetConfig(FamilyConfig):
    """The architecture of one RepLKNet. `depths` counts pairs of a RepLK block and a ConvFFN, as the paper does."""

    kernel_sizes: int | tuple[int, ...] = (31, 29, 27, 13)
    """Odd size of the depthwise kernels, one for all stages or one each."""
    small_kernel: int = 5
    """Odd size of the kernel trained beside every larger one (guideline 3); 0 for none."""
    shortcut: bool = True
    """Add a RepLK block's input to its output (guideline 2). Without it these blocks know no stochastic depth, which
    would leave nothing of a sample; ConvFFNs keep their shortcuts."""
    dw_ratio: float = 1.0
    """Channels of the depthwise convolution over those of its stage."""
    ffn_ratio: float = 4.0
    """Channels within a ConvFFN over those of its stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.per_stage("kernel_sizes", 1)
        if not all(size % 2 for size in sizes):
            raise ConfigError(f"kernel_sizes must be odd, so that kernels have a centre, got {self.kernel_sizes!r}")
        if not are_ints([self.small_kernel], 0) or (self.small_kernel and self.small_kernel % 2 == 0):
            raise ConfigError(f"small_kernel must be odd, or 0 for none, got {self.small_kernel!r}")
        if not isinstance(self.shortcut, bool):
            raise ConfigError(f"shortcut must be True or False, got {self.shortcut!r}")
        for name in ("dw_ratio", "ffn_ratio"):
            ratio = getattr(self, name)
            is_number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
            if not (is_number and 1 <= ratio * min(self.dims) < math.inf):
                raise ConfigError(
                    f"{name} must be a number that leaves {min(self.dims)} channels at least one, got {ratio!r}"
                )

    def kernel_size_at(self, stage: int) -> int:
        """Return the depthwise kernel size of a stage."""
        return self.per_stage("kernel_sizes", 1)[stage]


class LargeKernel(nn.Module):
    """The body of a RepLK block: 1x1, ReLU, large depthwise, ReLU, 1x1, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, cfg: RepLKNetConfig, stage: int, **dd: Any) -> None:
        super().__init__()
        dim, kernel_size = cfg.dims[stage], cfg.kernel_size_at(stage)
        width = int(dim * cfg.dw_ratio)
        branches = [Branch(cfg.small_kernel)] if 0 < cfg.small_kernel < kernel_size else []
        self.pw1 = ConvNorm(dim, width, 1, act=nn.ReLU(), **dd)
        self.large_kernel = ReparamDepthwiseConv(width, kernel_size, branches, **dd)
        self.act = nn.ReLU()
        self.pw2 = ConvNorm(width, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, gather space, project."""
        return self.pw2(self.act(self.large_kernel(self.pw1(x))))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this body."""
        return self.pw1.conv


class ConvFFN(nn.Module):
    """The body of a ConvFFN: 1x1, GELU, 1x1, each with a norm, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, cfg: RepLKNetConfig, stage: int, **dd: Any) -> None:
        super().__init__()
        dim = cfg.dims[stage]
        width = int(dim * cfg.ffn_ratio)
        self.pw1 = ConvNorm(dim, width, 1, act=nn.GELU(), **dd)
        self.pw2 = ConvNorm(width, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, activate, project."""
        return self.pw2(self.pw1(x))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this body."""
        return self.pw1.conv


class BranchAlone(ResidualBranch):
    """f(norm(x)), a residual branch without its shortcut; parameters have the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, apply the body."""
        return self.body(self.norm(x))  # type: ignore[no-any-return]


def block_pair(cfg: RepLKNetConfig, stage: int, drop_path: float, **dd: Any) -> list[nn.Module]:
    """Return a RepLK block and the ConvFFN after it, which share one drop probability."""
    dim = cfg.dims[stage]
    large_kernel, ffn = LargeKernel(cfg, stage, **dd), ConvFFN(cfg, stage, **dd)
    block = (
        ResidualBranch(dim, large_kernel, drop_path=drop_path, **dd)
        if cfg.shortcut
        else BranchAlone(dim, large_kernel, **dd)
    )
    return [block, ResidualBranch(dim, ffn, drop_path=drop_path, **dd)]


class RepLKNet(Backbone):
    """RepLKNet.

    Args:
        cfg: The architecture.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last pair of blocks, rising linearly from 0.
        device: Where the parameters live.
        dtype: Their dtype.
        changes: Fields of `RepLKNetConfig` to change, e.g. `kernel_sizes=7`.

    Raises:
        ConfigError: A changed field does not exist or has an impossible value.
    """

    def __init__(
        self,
        cfg: RepLKNetConfig,
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
            ConvNorm(in_chans, width, stride=2, act=nn.ReLU(), **dd),
            ConvNorm(width, width, depthwise=True, act=nn.ReLU(), **dd),
            ConvNorm(width, width, 1, act=nn.ReLU(), **dd),
            ConvNorm(width, width, stride=2, depthwise=True, act=nn.ReLU(), **dd),
        )
        rates = drop_path_rates(drop_path_rate, cfg.depths)
        stages = [
            Stage(
                nn.Identity() if i == 0 else _downsample(cfg.dims[i - 1], dim, **dd),
                [block for rate in rates[i] for block in block_pair(cfg, i, rate, **dd)],
            )
            for i, dim in enumerate(cfg.dims)
        ]
        head = PoolHead(
            cfg.dims[-1], num_classes, global_pool, drop_rate, norm=nn.BatchNorm2d(cfg.dims[-1], **dd), **dd
        )
        super().__init__(
            stem,
            stages,
            dims=cfg.dims,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=head,
        )
        self.cfg = cfg


def _downsample(in_channels: int, out_channels: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(in_channels, out_channels, 1, act=nn.ReLU(), **dd),
        ConvNorm(out_channels, out_channels, stride=2, depthwise=True, act=nn.ReLU(), **dd),
    )


_BASE = RepLKNetConfig(dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2))

_CENTRED = {
    "replknet_31b": _BASE,
    "replknet_31l": _BASE.replace(dims=(192, 384, 768, 1536)),
    # the paper's ablation of the kernel size (its table 5)
    "replknet_3": _BASE.replace(kernel_sizes=3),
    "replknet_7": _BASE.replace(kernel_sizes=7),
    "replknet_13": _BASE.replace(kernel_sizes=13),
    "replknet_25": _BASE.replace(kernel_sizes=(25, 25, 25, 13)),
}
_XL = {
    "replknet_xl": _BASE.replace(
        dims=(256, 512, 1024, 2048), kernel_sizes=(27, 27, 27, 13), small_kernel=0, dw_ratio=1.5
    ),
}
VARIANTS = _CENTRED | _XL

OFFICIAL = OfficialFormat(
    renames=(
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"^transitions\.0\.", "stages.1.downsample."),
        (r"^transitions\.1\.", "stages.2.downsample."),
        (r"^transitions\.2\.", "stages.3.downsample."),
        (r"\.(bn|prelkb_bn|preffn_bn)\.", ".norm."),
        (r"\.(pw1|pw2|large_kernel)\.", r".body.\1."),
        (r"\.lkb_origin\.", ".large."),
        (r"\.small_conv\.", ".branches.0."),
        (r"\.lkb_reparam\.", ".merged."),
    ),
    merged=r"\.lkb_reparam\.",
    # the dense form of XL normalises every stage's map for its detection and segmentation heads
    ignored=(r"^stages\.\d+\.norm\.",),
)

_DEFAULTS: dict[str, Any] = {
    "first_conv": "stem.0.conv",
    "classifier": "head.fc",
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}
register_family(__name__, RepLKNet, _CENTRED, official=OFFICIAL, **_DEFAULTS)
# XL was trained on images normalised to [-1, 1]
register_family(
    __name__,
    RepLKNet,
    _XL,
    official=OFFICIAL,
    **(_DEFAULTS | {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}),
)
