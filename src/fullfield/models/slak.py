"""SLaK, a ConvNeXt with 51x51 depthwise kernels, each a sum of two strips and a small square, and sparse weights.

Source: "More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity" (Liu et al., ICLR 2023,
arXiv:2207.03620) and its code, github.com/VITA-Group/SLaK. A block is x += gamma * MLP(LN(bands(x))). The nets are 1.3
times as wide as ConvNeXt's and 40 % of their weights are zero; those zeros come from training (`layers.sparsity`,
`train.sparsity`), not from the architecture. Patches do not overlap, so odd map sizes lose their last row or column,
as in the official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale, Mlp
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.band_depthwise import BandDepthwiseConv
from fullfield.layers.reparam import Branch, ReparamDepthwiseConv
from fullfield.models.backbone import Backbone, Stage, drop_path_rates
from fullfield.models.config import FamilyConfig, are_ints
from fullfield.models.registry import OfficialFormat, register_family

__all__ = ["OFFICIAL", "VARIANTS", "SLaK", "SLaKConfig"]


@dataclass(frozen=True)
class SLaKConfig(FamilyConfig):
    """The architecture of one SLaK."""

    kernel_sizes: int | tuple[int, ...] = (51, 49, 47, 13)
    """Depthwise kernel size, one for all stages or one each; odd."""
    small_kernel: int = 5
    """Short side of the strips, and side of the small kernel beside them; odd."""
    decomposed: bool = True
    """Two strips and a small kernel; False for a dense large kernel beside the small one, as in RepLKNet. A stage whose
    kernel is no larger than the small one has no small one."""
    layer_scale: float = 1e-6
    """Start value of LayerScale; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.per_stage("kernel_sizes", 1)
        if not all(size % 2 for size in sizes):
            raise ConfigError(f"kernel_sizes must be odd, so that kernels have a centre, got {self.kernel_sizes!r}")
        if not are_ints([self.small_kernel], 1) or self.small_kernel % 2 == 0:
            raise ConfigError(f"small_kernel must be odd and at least 1, got {self.small_kernel!r}")
        if not isinstance(self.decomposed, bool):
            raise ConfigError(f"decomposed must be True or False, got {self.decomposed!r}")
        if (
            isinstance(self.layer_scale, bool)
            or not isinstance(self.layer_scale, int | float)
            or not self.layer_scale >= 0
        ):
            raise ConfigError(f"layer_scale must be a number of at least 0 (none), got {self.layer_scale!r}")
        if self.decomposed and self.small_kernel > min(sizes):
            raise ConfigError(
                f"strips can't be wider than they are long: small_kernel is {self.small_kernel} and the smallest of"
                f" kernel_sizes {min(sizes)}; lower small_kernel or set decomposed=False"
            )

    def kernel_size_at(self, stage: int) -> int:
        """Return the depthwise kernel size of a stage."""
        return self.per_stage("kernel_sizes", 1)[stage]


def large_kernel(cfg: SLaKConfig, stage: int, **dd: Any) -> nn.Module:
    """Return the depthwise convolution of a stage, in strips or dense, with its norms."""
    dim, kernel_size = cfg.dims[stage], cfg.kernel_size_at(stage)
    if cfg.decomposed:
        return BandDepthwiseConv(dim, kernel_size, cfg.small_kernel, **dd)
    branches = [Branch(cfg.small_kernel)] if cfg.small_kernel < kernel_size else []
    return ReparamDepthwiseConv(dim, kernel_size, branches, **dd)


class SLaKBlock(nn.Module):
    """x += gamma * MLP(LN(large_kernel(x))), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, cfg: SLaKConfig, stage: int, drop_path: float = 0.0, **dd: Any) -> None:
        super().__init__()
        dim = cfg.dims[stage]
        self.large_kernel = large_kernel(cfg, stage, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)
        self.gamma = LayerScale(dim, cfg.layer_scale, **dd) if cfg.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Gather space, then mix channels."""
        y = self.large_kernel(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        y = self.gamma(self.mlp(self.norm(y)))
        return x + self.drop_path(y.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold LayerScale into the linear layer before it, in place; a second call does nothing."""
        if isinstance(self.gamma, LayerScale):
            self.mlp.fc2.weight.mul_(self.gamma.gamma[:, None])
            self.mlp.fc2.bias.mul_(self.gamma.gamma)
            self.gamma = nn.Identity()


class SLaK(Backbone):
    """Sparse large-kernel net.

    Args:
        cfg: The architecture.
        in_chans: Channels of the image.
        num_classes: Of the classifier; 0 gives pooled features.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0.
        device: Where the parameters live.
        dtype: Their dtype.
        changes: Fields of `SLaKConfig` to change, e.g. `kernel_sizes=(31, 29, 27, 13)`.

    Raises:
        ConfigError: A changed field does not exist or has an impossible value.
    """

    def __init__(
        self,
        cfg: SLaKConfig,
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
                nn.Identity() if i == 0 else _downsample(cfg.dims[i - 1], dim, **dd),
                [SLaKBlock(cfg, i, rate, **dd) for rate in rates[i]],
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
            min_size=32,
            **dd,
        )
        self.cfg = cfg
        self.apply(_start)

    def merge_dense(self) -> SLaK:
        """Merge all strips into the dense large kernels that they equal, in place, for inference; return the model.

        Outputs in eval mode stay equal up to rounding, at about five times the depthwise products: this is for
        operators that know squares and no strips, and for looking at the kernels. `fuse` keeps the strips. The result
        can't be saved by name.
        """
        self.eval()
        for module in list(self.modules()):
            if isinstance(module, BandDepthwiseConv):
                module.merge_dense()
        self._fullfield_spec = None
        return self


def _downsample(dim: int, dim_out: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(LayerNorm2d(dim, eps=1e-6, **dd), nn.Conv2d(dim, dim_out, 2, stride=2, **dd))


def _start(module: nn.Module) -> None:
    """Initialise as the official code does: weights normal, deviation 0.02, cut at 2; biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _widened(*dims: int) -> tuple[int, ...]:
    """Return ConvNeXt's widths times 1.3, rounded down as the official `width_factor` does."""
    return tuple(int(dim * 1.3) for dim in dims)


VARIANTS = {
    "slak_tiny": SLaKConfig(dims=_widened(96, 192, 384, 768), depths=(3, 3, 9, 3)),
    "slak_small": SLaKConfig(dims=_widened(96, 192, 384, 768), depths=(3, 3, 27, 3)),
    "slak_base": SLaKConfig(dims=_widened(128, 256, 512, 1024), depths=(3, 3, 27, 3)),
    "slak_large": SLaKConfig(dims=_widened(192, 384, 768, 1536), depths=(3, 3, 27, 3)),
}

OFFICIAL = OfficialFormat(
    renames=(
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.LoRA1\.", ".tall."),
        (r"\.LoRA2\.", ".wide."),
        (r"\.small_conv\.", ".small."),
        (r"\.bn\.", ".norm."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"\.gamma$", ".gamma.gamma"),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    ),
    ignored=(r"^norm[0-3]\.",),  # of the maps that detection and segmentation heads read
)

register_family(
    __name__,
    SLaK,
    VARIANTS,
    official=OFFICIAL,
    first_conv="stem.0",
    classifier="head.fc",
    interpolation="bicubic",
    crop_pct=0.875,
)
