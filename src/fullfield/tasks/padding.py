"""Keeping the padding of a batch out of the features of its images.

A batch of images of several sizes is padded with zeros, right and below, to one size. Behind the first bias the
padding is zero no longer: it reaches the images through every convolution at their edge, and in RaCNN through every
sparse global window and region mean. `keep_padding_out` makes the maps of each image what they are for the image
alone, up to rounding. It has two ways, by the type of a module:

- zeroed: what lies outside each image's own area is set to zero before a module that adds up what it sees:
  convolutions, which put zeros there anyway, and RPWConv, whose Gram matrices zeros leave as they are. All maps that
  such a module reads are those of its input, so a sum of convolutions is zeroed once.
- alone: the module runs on each image's own area by itself. For means and norms over the map, pooling, padding that
  is not zeros, Fourier filters and shifted windows, whose result depends on where the map ends.

A map at stride s, a power of two, is the padded size / s rounded up, and an image's own area the same of its own size.
It is exact because sizes are multiples of 32. `unmasked_modules` in `padding_leaks.py` says which modules of a net
neither way covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import EcaModule, EffectiveSEModule, GatherExcite, GlobalContext, SEModule, SqueezeExcite
from timm.layers.grn import GlobalResponseNorm
from timm.models._efficientnet_blocks import SqueezeExcite as EfficientNetSqueezeExcite
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from fullfield.errors import ConfigError
from fullfield.layers import (
    GRN,
    BandDepthwiseConv,
    GlobalLocalFilter,
    MultiOrderGatedAggregation,
    RegionAttention,
    RegionPWConv,
    ReparamDepthwiseConv,
)
from fullfield.ops.layout import is_channels_last

__all__ = ["SIZE_MULTIPLE", "keep_padding_out"]

SIZE_MULTIPLE = 32
"""Sizes are rounded up to a multiple of this, the stride of the coarsest map of a backbone."""

LARGEST_STRIDE = 1024

ZEROED = (BandDepthwiseConv, ReparamDepthwiseConv, RegionPWConv)
"""Zeroed as a whole; convolutions with a kernel of more than one pixel are, too."""

RESIZING = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
"""Run alone; they have a stride."""

KEEPING_SIZE = (
    RegionAttention,
    MultiOrderGatedAggregation,
    GlobalLocalFilter,
    GRN,
    GlobalResponseNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
    SEModule,
    EffectiveSEModule,
    EcaModule,
    GlobalContext,
    GatherExcite,
    SqueezeExcite,
    EfficientNetSqueezeExcite,
    SqueezeExcitation,
    SwinTransformerBlock,
)
"""Run alone; their output has the size of their input."""

TO_FIXED_SIZE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""Run alone; their output has one size for all."""

Way = Literal["zeroed", "alone"]


@contextmanager
def keep_padding_out(module: nn.Module, sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> Iterator[None]:
    """Within it, each image of a padded batch has the features that it has alone, on its own area.

    "Alone" is the image by itself, padded with zeros to its own size rounded up to a multiple of 32. Outside an
    image's own area features mean nothing. Gradients are those of the image alone as well. What `unmasked_modules`
    lists is not covered. Not covered either: the statistics of BatchNorm in training mode, which count every pixel of
    the batch, padding included; freeze those norms to keep it out.

    Every call within it must be of one batch of len(sizes) images. Heads that work on crops (the second stage of
    Faster R-CNN) are not part of `module`; the pyramid and one-stage heads may be.

    Args:
        module: From images or maps (B, C, H, W) to whatever it returns. It is changed inside the context only.
        sizes: Height and width of each image, pixels; rounded up to a multiple of 32 here.
        padded: Height and width of the batch, pixels, multiples of 32.

    Raises:
        ConfigError: Sizes do not fit; the module is compiled, or would recompute its blocks after the context
            (gradient checkpointing in training); or, from a call within: the batch has another number of images, or
            a map is at no stride that is a power of two.
    """
    areas = _Areas(sizes, padded)
    _check_runs_as_it_is(module)
    if areas.is_full():
        yield
        return
    handles: list[Any] = []
    forwards: list[tuple[nn.Module, Any]] = []
    try:
        for name, part, way in _parts(module):
            if way == "zeroed":
                handles.append(part.register_forward_pre_hook(partial(_zero_first_input, areas, name)))
            else:
                forwards.append((part, part.__dict__.get("forward")))
                part.forward = partial(_run_alone, areas, name, part, part.forward)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for part, forward in forwards:
            if forward is None:
                del part.forward
            else:
                part.forward = forward


class _Areas:
    """The area of each image at any stride.

    Args:
        sizes: Height and width of each image, pixels.
        padded: Height and width of the batch, pixels.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> None:
        if len(padded) != 2 or any(side < 1 or side % SIZE_MULTIPLE for side in padded):
            raise ConfigError(f"padded must be height and width, multiples of {SIZE_MULTIPLE}, got {tuple(padded)}")
        if not sizes:
            raise ConfigError("sizes must name the height and width of each image of the batch, got none")
        self.padded = (int(padded[0]), int(padded[1]))
        self.own = [_rounded_up(size, self.padded) for size in sizes]
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def is_full(self) -> bool:
        """Whether no image is padded."""
        return all(size == self.padded for size in self.own)

    def at(self, batch: int, height: int, width: int, name: str) -> list[tuple[int, int]]:
        """Return height and width of each image's area on a map of that size.

        Raises:
            ConfigError: The map is at no power-of-two stride, or the batch is another one.
        """
        if batch != len(self.own):
            raise ConfigError(
                f"{name} was called with a batch of {batch}, and keep_padding_out was given the sizes of"
                f" {len(self.own)} images; leave modules that work on crops out of it"
            )
        stride = 1
        while stride <= LARGEST_STRIDE:  # below one pixel all strides have the same areas, so the first will do
            if _divided(self.padded, stride) == (height, width):
                return [_divided(size, stride) for size in self.own]
            stride *= 2
        raise ConfigError(
            f"{name} was called with a map of {height}x{width}, which is the batch of {self.padded[0]}x"
            f"{self.padded[1]} pixels at no stride that is a power of two, so the images' areas on it are unknown"
        )

    def zero_outside(self, x: Tensor, name: str) -> Tensor:
        """Return x, (B, C, H, W), with zeros outside each image's area."""
        batch, _, height, width = _map_shape(x, name)
        # in the map's dtype and as a factor: several times faster than filling through a bool mask
        key = (height, width, x.dtype, x.device)
        if key not in self._masks:
            areas = torch.tensor(self.at(batch, height, width, name), device=x.device)  # (B, 2)
            rows = torch.arange(height, device=x.device) < areas[:, :1]  # (B, H)
            columns = torch.arange(width, device=x.device) < areas[:, 1:]  # (B, W)
            self._masks[key] = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.dtype)
        elif batch != len(self.own):
            self.at(batch, height, width, name)  # says what is wrong
        return x * self._masks[key]


def _rounded_up(size: tuple[int, int], padded: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-int(side) // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
    if min(height, width) < 1 or height > padded[0] or width > padded[1]:
        raise ConfigError(
            f"an image of {size[0]}x{size[1]} pixels does not fit a batch padded to {padded[0]}x{padded[1]}; sizes"
            " are height and width in pixels, at least 1 and at most those of the batch"
        )
    return height, width


def _divided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _map_shape(x: Tensor, name: str) -> torch.Size:
    if x.ndim != 4:
        raise ConfigError(
            f"{name} was called with a tensor of shape {tuple(x.shape)}; inside keep_padding_out it needs a batch of"
            " maps, four axes"
        )
    return x.shape


def _check_runs_as_it_is(module: nn.Module) -> None:
    """Refuse what would run without our changes, and so let the padding in without a word."""
    for name, part in module.named_modules():
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            raise ConfigError(
                f"{name or 'the module'} is compiled, and a compiled module does not see what keep_padding_out"
                " changes; give it the module as it was before torch.compile"
            )
        checkpointing = getattr(part, "grad_checkpointing", False) or getattr(part, "gradient_checkpointing", False)
        if checkpointing is True and part.training and torch.is_grad_enabled():
            raise ConfigError(
                f"{name or 'the module'} has gradient checkpointing on, which runs its blocks again in the backward"
                " pass, when keep_padding_out is over; turn it off with set_grad_checkpointing(False), or train"
                " without masking the padding"
            )


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module, Way]]:
    """Yield the name, the module and the way of all that must be changed; nothing inside such a module is."""
    todo, seen = [("", module)], set()
    while todo:
        name, part = todo.pop()
        if part in seen:  # a module may have two names
            continue
        seen.add(part)
        way = way_of(part)
        if way is not None:
            yield name or type(part).__name__, part, way
        else:
            todo += [(f"{name}.{key}" if name else key, child) for key, child in part.named_children()]


def way_of(module: nn.Module) -> Way | None:
    """Return how padding is kept out of a module, by its type; None where nothing is done to it."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.padding_mode != "zeros":
            return "alone"
        return "zeroed" if max(module.kernel_size) > 1 else None
    if isinstance(module, ZEROED):
        return "zeroed"
    return "alone" if isinstance(module, (*RESIZING, *KEEPING_SIZE, *TO_FIXED_SIZE)) else None


def _zero_first_input(areas: _Areas, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Zero what is outside each image: a forward pre-hook."""
    return (areas.zero_outside(inputs[0], name), *inputs[1:])


def _run_alone(areas: _Areas, name: str, module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a module's own forward on each image's area and put the results, padded with zeros, together again."""
    rows, columns = _spatial_axes(module)
    shape = _map_shape(x, name)
    height, width = shape[rows], shape[columns]
    outputs = []
    for index, (h, w) in enumerate(areas.at(shape[0], height, width, name)):
        own = x[index : index + 1].narrow(rows, 0, h).narrow(columns, 0, w)
        outputs.append(forward(own.contiguous(memory_format=_layout(x))))
    if isinstance(module, TO_FIXED_SIZE):
        return torch.cat(outputs)
    down, across = _strides(module)
    target = -(-height // down), -(-width // across)
    return torch.cat([_padded(y, rows, columns, target) for y in outputs])


def _spatial_axes(module: nn.Module) -> tuple[int, int]:
    """Return the axes of rows and columns of a module's input."""
    channels_first = not isinstance(module, SwinTransformerBlock) and getattr(module, "channel_dim", 1) == 1
    return (2, 3) if channels_first else (1, 2)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def _strides(module: nn.Module) -> tuple[int, int]:
    if not isinstance(module, (*RESIZING, nn.Conv2d)):
        return 1, 1
    stride: Any = module.stride
    return (stride, stride) if isinstance(stride, int) else (stride[0], stride[1])


def _padded(y: Tensor, rows: int, columns: int, target: tuple[int, int]) -> Tensor:
    missing = target[0] - y.shape[rows], target[1] - y.shape[columns]
    behind = [0, 0] * (3 - columns)  # F.pad counts axes from the last
    return F.pad(y, (*behind, 0, missing[1], 0, missing[0]))
