"""The feature pyramid of a detector and what depends on its strides: anchors and the pooling of regions.

All three are torchvision's with the strides made known. torchvision divides sizes to find them, which gives 48 for a
stride of 64 where an image is 96 pixels high, or a scale of 1/2 for 1/4 where an image of 37 is padded to 64; the
anchors of an image would depend on what it is batched with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from fullfield.tasks.features import STRIDES

__all__ = ["FeaturePyramid", "RegionPool", "StridedAnchors", "crop_maps", "full_precision"]


def full_precision(x: Tensor) -> Tensor:
    """Return what a layer predicted as float32 at least.

    Boxes are computed from it, and bfloat16 knows positions near 1000 pixels to 4 pixels only.
    """
    return x if x.dtype == torch.float64 else x.float()


def crop_maps(maps: dict[str, Tensor], strides: Sequence[int], index: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the part of one image of a padded batch: (B, C, H, W) each -> (1, C, h, w) each.

    Args:
        maps: Of the pyramid, finest first.
        strides: Of the maps.
        index: Of the image in the batch.
        size: Its height and width, rounded up to what the batch is padded to multiples of.
    """
    return {
        name: x[index : index + 1, :, : -(-size[0] // stride), : -(-size[1] // stride)]
        for (name, x), stride in zip(maps.items(), strides, strict=True)
    }


class WideP6P7(LastLevelP6P7):
    """torchvision's two coarsest maps, in float32 under autocast on a CPU.

    In bfloat16 on a CPU the weight gradient of a convolution of stride 2 on a map of one pixel is made of memory that
    nobody wrote (torch 2.15), and the maps may be that small. They cost next to nothing.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the maps `p` of the pyramid, and their names."""
        if p[-1].device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(p, c, names)  # type: ignore[no-any-return]
        with torch.autocast("cpu", enabled=False):
            added, names = super().forward([p[-1].float()], [c[-1].float()], names)
        return [*p, *(x.to(p[-1].dtype) for x in added[1:])], names


class FeaturePyramid(nn.Module):
    """Feature pyramid network (Lin et al., 2017) with coarser maps on top, [(B, C_i, H_i, W_i)] -> {name: map}.

    Args:
        in_channels: Of each map of the backbone, finest first.
        channels: Of every map of the pyramid.
        strides: Of the backbone's maps; each is double the one before.
        convolved: Two more maps by 3x3 convolutions of stride 2 from the coarsest map of the pyramid (RetinaNet,
            FCOS); otherwise one more, every second pixel of the coarsest (Faster R-CNN).

    Attributes:
        strides: Of the pyramid's maps.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, strides: Sequence[int], convolved: bool) -> None:
        super().__init__()
        top = WideP6P7(channels, channels) if convolved else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels, extra_blocks=top)
        last = strides[-1]
        self.strides = (*strides, *((2 * last, 4 * last) if convolved else (2 * last,)))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the maps, finest first, (B, channels, ceil(H / stride), ceil(W / stride)) each."""
        return self.fpn({str(index): x for index, x in enumerate(maps)})  # type: ignore[no-any-return]


class StridedAnchors(AnchorGenerator):
    """torchvision's anchors at given strides, in float32 whatever the precision of the maps.

    Args:
        sizes: Of each map: the square roots of the anchors' areas, pixels.
        aspect_ratios: Height by width, the same for all maps.
        strides: Of each map.
    """

    def __init__(
        self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float], strides: Sequence[int]
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors (A, 4) of each image; all images of a batch have the same."""
        first = feature_maps[0]
        self.set_cell_anchors(torch.promote_types(first.dtype, torch.float32), first.device)
        sizes = [x.shape[-2:] for x in feature_maps]
        strides = [(stride, stride) for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors for _ in image_list.image_sizes]


class RegionPool(MultiScaleRoIAlign):
    """RoIAlign (He et al., 2017) from the map of the pyramid that fits a region's size, (B, C, H, W) -> (R, C, S, S).

    Args:
        output_size: S.
    """

    def __init__(self, output_size: int) -> None:
        names = [str(index) for index in range(len(STRIDES))]
        super().__init__(names, output_size=output_size, sampling_ratio=2)
        levels = [stride.bit_length() - 1 for stride in STRIDES]
        self.scales = [1 / stride for stride in STRIDES]
        self.map_levels = LevelMapper(levels[0], levels[-1])
