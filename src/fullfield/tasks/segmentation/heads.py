"""Decoders that turn feature maps into logits: UPerNet, Semantic FPN, U-Net and SegFormer's.

All four are segmentation-models-pytorch's (Xiao et al. 2018; Kirillov et al. 2019; Ronneberger et al. 2015; Xie et
al. 2021), with its initialisation. Their defaults are the library's, but for dropout, 0.1 as in mmsegmentation, and
UPerNet's auxiliary loss, 0.4 as in the paper. The auxiliary head is the FCN of PSPNet (Zhao et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fullfield.errors import ConfigError, MissingExtraError, nearest

__all__ = ["HEADS", "HeadArguments", "build_auxiliary", "build_head", "read_head_arguments"]


@dataclass(frozen=True)
class HeadArguments:
    """How wide a head is and how it is regularised.

    Attributes:
        channels: Of the decoder. U-Net starts with so many and halves them in each of its five blocks; Semantic FPN
            has half of them behind its pyramid.
        dropout: Share of the channels that are dropped before the last convolution, in training.
        auxiliary: Weight of the auxiliary head's loss; 0 for none.
        auxiliary_channels: Of the auxiliary head.

    Raises:
        ConfigError: A value is impossible.
    """

    channels: int = 256
    dropout: float = 0.1
    auxiliary: float = 0.0
    auxiliary_channels: int = 256

    def __post_init__(self) -> None:
        for name in ("channels", "auxiliary_channels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least 1, such as 256")
        for name, most in (("dropout", 1.0), ("auxiliary", float("inf"))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
                limit = "at least 0 and less than 1" if most == 1 else "finite and at least 0"
                raise ConfigError(f"{name} is {value!r}; it must be a number, {limit}")

    def to_dict(self) -> dict[str, Any]:
        """Return the values, fit for JSON and for `head_arguments`."""
        return asdict(self)


@dataclass(frozen=True)
class HeadKind:
    """What is particular to a head.

    Attributes:
        decoder: Module and class in segmentation-models-pytorch.
        multiple: `channels` must be a multiple of this.
        finest: Stride of the finest map that the decoder makes use of where the net has it.
        kernel_size: Of the last convolution.
        defaults: Of the arguments.
    """

    decoder: tuple[str, str]
    multiple: int
    finest: int
    kernel_size: int
    defaults: HeadArguments = HeadArguments()


HEADS: Mapping[str, HeadKind] = {
    "upernet": HeadKind(("upernet", "UPerNetDecoder"), 1, 4, 1, HeadArguments(auxiliary=0.4)),
    # half of them, in 32 groups of at least two: a norm of one value is refused where the map is one pixel
    "fpn": HeadKind(("fpn", "FPNDecoder"), 128, 4, 1),
    "unet": HeadKind(("unet", "UnetDecoder"), 16, 2, 3),
    "segformer": HeadKind(("segformer", "SegformerDecoder"), 1, 2, 1),
}


def read_head_arguments(head: str, arguments: Mapping[str, Any] | None = None) -> HeadArguments:
    """Return the arguments of a head, with its own defaults for what is left out.

    Raises:
        ConfigError: There is no such head or argument (the nearest is named), or a value is impossible.
    """
    if head not in HEADS:
        raise ConfigError(f"there is no segmentation head {head!r}; heads: {', '.join(HEADS)}{nearest(head, HEADS)}")
    kind = HEADS[head]
    known = [field.name for field in fields(HeadArguments)]
    for name in arguments or {}:
        if name not in known:
            raise ConfigError(
                f"the head {head} has no argument {name!r}; it has {', '.join(known)}{nearest(str(name), known)}"
            )
    read = replace(kind.defaults, **(arguments or {}))
    if read.channels % kind.multiple:
        raise ConfigError(f"channels is {read.channels}; the head {head} needs a multiple of {kind.multiple}")
    return read


def build_head(
    head: str, encoder_channels: Sequence[int], num_classes: int, arguments: HeadArguments
) -> tuple[nn.Module, nn.Module]:
    """Return a decoder and the classifier of its map, both initialised.

    Args:
        head: A key of `HEADS`.
        encoder_channels: Of the image and of the maps at strides 2, 4, 8, 16 and 32; 0 where there is no map.
        num_classes: Channels of the logits.
        arguments: As `read_head_arguments` returns them.

    Returns:
        The decoder: list of six such maps -> (B, D, H / s, W / s), s = 1 for unet and 4 for the others; and the
        classifier (B, D, h, w) -> (B, num_classes, h, w).

    Raises:
        MissingExtraError: segmentation-models-pytorch is not installed.
    """
    try:
        from segmentation_models_pytorch import decoders
        from segmentation_models_pytorch.base import SegmentationHead, initialization
    except ImportError as error:
        raise MissingExtraError(
            "segmentation needs segmentation-models-pytorch: pip install 'fullfield[segment]'"
        ) from error
    kind = HEADS[head]
    module, name = kind.decoder
    width = arguments.channels
    shape: dict[str, Any]
    if head == "upernet":
        shape, width_out = {"decoder_channels": width}, width
    elif head == "fpn":
        shape = {"pyramid_channels": width, "segmentation_channels": width // 2, "dropout": 0.0}
        width_out = width // 2
    elif head == "unet":
        shape = {"decoder_channels": [width >> block for block in range(5)]}
        width_out = width >> 4
    else:
        shape, width_out = {"segmentation_channels": width}, width
    decoder = getattr(getattr(decoders, module).decoder, name)(encoder_channels=list(encoder_channels), **shape)
    last = SegmentationHead(width_out, num_classes, kernel_size=kind.kernel_size)
    initialization.initialize_decoder(decoder)
    initialization.initialize_head(last)
    if head == "upernet":
        _allow_one_image(decoder.psp.blocks[0])
    return decoder, nn.Sequential(nn.Dropout2d(arguments.dropout), last[0])


def build_auxiliary(in_channels: int, num_classes: int, arguments: HeadArguments) -> nn.Sequential:
    """Return an FCN head, (B, in_channels, h, w) -> logits (B, num_classes, h, w)."""
    width = arguments.auxiliary_channels
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(arguments.dropout),
        nn.Conv2d(width, num_classes, 1),
    )


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of pooled maps, which normalises by the running statistics where a batch has a single value.

    UPerNet pools the coarsest map to 1 x 1. A batch of one image then has one value a channel, of which torch makes
    an error; it says nothing about a variance.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, (B, C, h, w) -> (B, C, h, w)."""
        if self.training and x.numel() == x.shape[1]:
            mean, var = self.running_mean, self.running_var
            return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(x)


def _allow_one_image(module: nn.Module) -> None:
    """Turn the batch norms inside into `PooledBatchNorm2d`, under their names."""
    for name, child in list(module.named_modules()):
        if isinstance(child, _BatchNorm):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, PooledBatchNorm2d(child.num_features))
