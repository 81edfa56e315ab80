"""The segmenter: any net of `fullfield models` with a decoder that gives every pixel logits.

The net is kept whole under its own names (`FeatureBackbone`), so that weights of a classification run fit. Its maps
are handed to segmentation-models-pytorch's decoders in the layout of that library's encoders: the image, then strides
2 to 32, with a map of no channels where the net has none at stride 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError
from fullfield.tasks.features import STRIDES, FeatureBackbone
from fullfield.tasks.segmentation.heads import HEADS, build_auxiliary, build_head, read_head_arguments

__all__ = ["Segmenter"]

_COARSEST = STRIDES[-1]


class Segmenter(nn.Module):
    """Logits of every pixel, (B, C, H, W) -> (B, num_classes, H, W), for images of any size.

    Images are values from 0 to 1; they are normalised inside, then padded on the right and below to a multiple of 32
    by the mean colour. Logits are upsampled bilinearly to the image's pixels (corners not aligned) and cropped.

    Args:
        model: Name of the net, of `fullfield models`.
        head: Of `HEADS`: upernet, fpn, unet or segformer.
        num_classes: At least 2.
        preprocess: What images are normalised by, and the channels that they have. Resizing is the caller's, see
            `fullfield.tasks.segmentation.inference`.
        head_arguments: See `HeadArguments`.
        **model_arguments: Of the net, such as `drop_path_rate`, `pretrained` or `region_size`.

    Attributes:
        backbone: The net.
        decoder: segmentation-models-pytorch's.
        classifier: Dropout and the last convolution.
        auxiliary: The FCN head on the map of stride 16, or None; its loss has the weight `auxiliary_weight`.

    Raises:
        ConfigError: There is no such head or argument, or the net has no maps at strides 4 to 32.
        ModelNotFoundError: There is no such net.
        MissingExtraError: segmentation-models-pytorch is not installed.
    """

    def __init__(
        self,
        model: str,
        head: str,
        num_classes: int,
        *,
        preprocess: DensePreprocess,
        head_arguments: Mapping[str, Any] | None = None,
        **model_arguments: Any,
    ) -> None:
        super().__init__()
        arguments = read_head_arguments(head, head_arguments)
        if num_classes < 2:
            raise ConfigError(f"num_classes is {num_classes}; segmentation needs at least 2 (background is one)")
        in_chans = model_arguments.setdefault("in_chans", preprocess.channels)
        if in_chans != preprocess.channels:
            raise ConfigError(
                f"in_chans is {in_chans}, and preprocess has {preprocess.channels} channels; make both so"
            )
        self.head_name = head
        self.head_arguments = arguments.to_dict()
        self.num_classes = num_classes
        self.in_chans = preprocess.channels
        self.preprocess = preprocess
        self.backbone = FeatureBackbone(model, optional_strides=(HEADS[head].finest,), **model_arguments)
        at = dict(zip(self.backbone.strides, self.backbone.channels, strict=True))
        self.decoder, self.classifier = build_head(
            head, (self.in_chans, at.get(2, 0), *(at[stride] for stride in STRIDES)), num_classes, arguments
        )
        self.auxiliary_weight = float(arguments.auxiliary)
        self.auxiliary = build_auxiliary(at[16], num_classes, arguments) if self.auxiliary_weight else None
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes, H, W) of images (B, C, H, W) with values from 0 to 1."""
        x = self._prepare(images)
        return self._to_pixels(self._decode(x, self._maps(x)), x, images)

    def forward_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits and those of the auxiliary head, both (B, num_classes, H, W), for training.

        The second is None where there is no auxiliary head.
        """
        x = self._prepare(images)
        maps = self._maps(x)
        logits = self._to_pixels(self._decode(x, maps), x, images)
        if self.auxiliary is None:
            return logits, None
        return logits, self._to_pixels(self.auxiliary(maps[-2]), x, images)

    def _prepare(self, images: Tensor) -> Tensor:
        """Normalise and pad to a multiple of 32: (B, C, H, W) -> (B, C, 32 ceil(H / 32), 32 ceil(W / 32))."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = (images - mean.to(images.dtype)) / std.to(images.dtype)
        height, width = images.shape[-2:]
        return F.pad(x, (0, -width % _COARSEST, 0, -height % _COARSEST))

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps at strides 2 to 32, the first of no channels where the net has none."""
        maps: list[Tensor] = self.backbone(x)
        if self.backbone.strides[0] == STRIDES[0]:
            batch, _, height, width = x.shape
            maps = [x.new_empty(batch, 0, height // 2, width // 2), *maps]
        return maps

    def _decode(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        return self.classifier(self.decoder([x, *maps]))  # type: ignore[no-any-return]

    @staticmethod
    def _to_pixels(logits: Tensor, x: Tensor, images: Tensor) -> Tensor:
        """Upsample to the padded image and crop to the image's own size."""
        if logits.shape[-2:] != x.shape[-2:]:
            logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., : images.shape[-2], : images.shape[-1]]
