"""A detector: any backbone, a feature pyramid and one of six heads, from images of their own sizes to objects.

Everything between the pixels of the original and those that the net sees happens here: resizing, normalising, padding
to a common size, and the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError, nearest
from fullfield.tasks.detection.detections import Detections, in_original_pixels
from fullfield.tasks.detection.heads import HEADS
from fullfield.tasks.detection.pyramid import FeaturePyramid, crop_maps
from fullfield.tasks.detection.resize import batch_images, padded_size
from fullfield.tasks.detection.targets import checked_targets
from fullfield.tasks.features import FeatureBackbone
from fullfield.tasks.padding import keep_padding_out

__all__ = ["HEADS", "Detector"]


class Detector(nn.Module):
    """Images (C, H, W) of any sizes, values from 0 to 1 -> losses in training, `Detections` in eval.

    In training images come at their final size. In eval they come at their own, are resized by `preprocess.resized`
    (bilinear, antialiased) and boxes and masks are given in the pixels of the original.

    Args:
        model: Name of the backbone, any of `fullfield models` with maps at strides 4 (two-stage heads), 8, 16 and 32.
        head: One of `HEADS`.
        num_classes: At least 1; without background.
        preprocess: Sides to resize to, mean, standard deviation and channels.
        head_arguments: Settings of the head by name (see `arguments.py`), such as {"fpn_channels": 64}.
        mask_padding: Where the images of a batch differ in size, keep what lies outside an image from reaching it, so
            that an image alone and in a batch gives the same. In eval the head then looks at each image by itself. With
            gradient checkpointing it must be off (see `keep_padding_out`, which raises ConfigError).
        **model_arguments: Of the backbone, such as drop_path_rate or pretrained.

    Attributes:
        backbone: The net without a classifier.
        pyramid: The feature pyramid.
        head: The head.
        head_name: Its name.
        head_arguments: All its settings, fit for JSON; a detector built from them is the same.

    Raises:
        ConfigError: There is no such head or setting, a value is impossible, or the backbone lacks a map.
        ModelNotFoundError: There is no such backbone.
    """

    def __init__(
        self,
        model: str,
        head: str,
        num_classes: int,
        *,
        preprocess: DensePreprocess,
        head_arguments: Mapping[str, Any] | None = None,
        mask_padding: bool = True,
        **model_arguments: Any,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            hint = nearest(str(head), HEADS) or f"; there are {', '.join(HEADS)}"
            raise ConfigError(f"there is no detection head {head!r}{hint}")
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes!r}; a detector needs at least 1, without background")
        in_chans = model_arguments.pop("in_chans", preprocess.channels)
        if in_chans != preprocess.channels:
            raise ConfigError(
                f"in_chans is {in_chans}, but preprocess has {preprocess.channels} channels; make them one"
            )
        kind = HEADS[head]
        arguments = kind.arguments.from_dict(head_arguments or {}, head)
        self.backbone = FeatureBackbone(model, strides=kind.strides, in_chans=in_chans, **model_arguments)
        self.pyramid = FeaturePyramid(
            self.backbone.channels, arguments.fpn_channels, strides=kind.strides, convolved=kind.convolved
        )
        self.head: Any = kind.build(arguments, num_classes)
        self.head_name = head
        self.head_arguments = arguments.to_dict()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.preprocess = preprocess
        self.mask_padding = mask_padding

    @property
    def has_masks(self) -> bool:
        """Whether the head draws outlines, and needs them in training."""
        return HEADS[self.head_name].masks

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Return losses by name in training mode, and the objects in each image in eval mode.

        Args:
            images: (C, H, W) floating point each, values from 0 to 1.
            targets: Of each image boxes (N, 4), labels (N,) from 0, and where there are such crowd (N,) bool and masks
                (N, H, W); N may be 0. Crowd regions are left out, and what lies under them counts as background, as in
                torchvision's references. Not looked at in eval mode.

        Raises:
            DataError: An image has another shape, or a target is impossible; the place in the batch is named.
        """
        if self.training:
            return self.losses(images, targets)
        return self.detect(images)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None) -> dict[str, Tensor]:
        """Return the losses of at least one image at its final size; the module must be in training mode."""
        goals = checked_targets(targets, images, self.num_classes, masks=self.has_masks)
        batch = batch_images(images, self.preprocess, resize=False)
        with self._without_padding(batch, self.backbone, self.pyramid, self.head.dense):
            losses: dict[str, Tensor] = self.head(batch, self.pyramid(self.backbone(batch.tensors)), goals)[1]
        return losses

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Return the objects in each image, in its own pixels; the module must be in eval mode."""
        if not images:
            return []
        batch = batch_images(images, self.preprocess, resize=True)
        with self._without_padding(batch, self.backbone, self.pyramid):
            maps = self.pyramid(self.backbone(batch.tensors))
        found: list[dict[str, Tensor]] = []
        if self.mask_padding and self._uneven(batch):
            for index, size in enumerate(batch.image_sizes):
                own = crop_maps(maps, self.pyramid.strides, index, padded_size(*size))
                found += self.head(ImageList(batch.tensors[index : index + 1], [size]), own)[0]
        else:
            found = self.head(batch, maps)[0]
        return [
            in_original_pixels(one, size, (image.shape[1], image.shape[2]))
            for one, size, image in zip(found, batch.image_sizes, images, strict=True)
        ]

    def _uneven(self, batch: ImageList) -> bool:
        """Return whether some image of the batch is padded further than it would be alone."""
        common = tuple(batch.tensors.shape[-2:])
        return any(padded_size(*size) != common for size in batch.image_sizes)

    @contextmanager
    def _without_padding(self, batch: ImageList, *modules: nn.Module) -> Iterator[None]:
        """Keep what lies outside an image from its maps within the modules, where this is wanted and not so anyway."""
        with ExitStack() as stack:
            if self.mask_padding and self._uneven(batch):
                sizes = [padded_size(*size) for size in batch.image_sizes]
                padded = (int(batch.tensors.shape[-2]), int(batch.tensors.shape[-1]))
                for module in modules:
                    stack.enter_context(keep_padding_out(module, sizes, padded))
            yield
