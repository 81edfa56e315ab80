"""The gradient of one unit of a feature map with respect to the image, for a batch, with the errors that explain.

In eval mode images do not meet, so the gradient of the sum over the batch holds every image's own gradient. The
parameters' gradients are switched off: they would cost memory, and hide a model whose output does not depend on
the image.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import CheckpointError, ConfigError
from fullfield.measure.feature_maps import feature_map, is_out_of_memory

__all__ = ["CHANNELS", "GRADIENTS", "Unit", "contributions", "explain_no_gradient", "is_out_of_memory"]

CHANNELS = ("signs", "relu", "sum")
"""How the channels of a unit become one number: the sum of +-1 times each, of the positive ones, or of all."""
GRADIENTS = ("absolute", "positive", "signed")
"""What of the gradient counts: its magnitude, its positive part, or itself."""


@dataclass(frozen=True)
class Unit:
    """What to take the gradient of, and what of the gradient to keep."""

    layer: str
    """A name of `list_feature_maps`."""
    position: tuple[int, int]
    """(row, column) in the layer's map."""
    channels: str | int
    """One of `CHANNELS`, or the index of one channel."""
    gradient: str
    """One of `GRADIENTS`, applied to each of the image's channels before they are summed."""


def contributions(model: nn.Module, unit: Unit, images: Tensor, signs: Tensor) -> Tensor:
    """Return the contribution of every input pixel to a unit, for each image.

    Args:
        model: Frozen (see `feature_maps.frozen`), on the device of the images.
        unit: Which unit, and what of its gradient.
        images: (B, C, H, W), in the model's dtype.
        signs: (B, c) of +1 and -1, for channels="signs".

    Returns:
        (B, H, W), float64, on the CPU.

    Raises:
        ConfigError: The unit does not depend on the image; the layer that cuts it is named.
        CheckpointError: An activation or the gradient is not finite; the first such layer is named.
    """
    images = images.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        values = _values(model, unit, images)
        if not bool(torch.isfinite(values).all()):
            raise CheckpointError(_not_finite(model, unit, images))
        target = _one_number(values, unit.channels, signs)
        if not target.requires_grad:
            raise ConfigError(explain_no_gradient(model, unit, images))
        (grad,) = torch.autograd.grad(target, images)
    grad = grad.cpu().double()  # MPS has no float64
    if not bool(torch.isfinite(grad).all()):
        raise CheckpointError(
            f"the gradient from {unit.layer!r} to the image is not finite: weights or images leave the range of"
            f" {images.dtype}; try float32, or another checkpoint"
        )
    part = grad.abs() if unit.gradient == "absolute" else grad.relu() if unit.gradient == "positive" else grad
    return part.sum(dim=1)


def _values(model: nn.Module, unit: Unit, images: Tensor) -> Tensor:
    """Return the unit's channels, (B, c)."""
    return feature_map(model, unit.layer, images)[:, :, unit.position[0], unit.position[1]]


def _one_number(values: Tensor, channels: str | int, signs: Tensor) -> Tensor:
    if isinstance(channels, int):
        return values[:, channels].sum()
    if channels == "signs":
        return (values * signs.to(values)).sum()
    return values.relu().sum() if channels == "relu" else values.sum()


def explain_no_gradient(model: nn.Module, unit: Unit, image: Tensor) -> str:
    """Return why no pixel has an influence on a unit: the layer at which the gradient ends.

    Args:
        model: Frozen.
        unit: The unit that has no gradient.
        image: (B, C, H, W).
    """
    image = image.detach().clone().requires_grad_(True)
    cut = ""
    alive: list[str] = []  # in the order of the forward pass, innermost first
    order: list[str] = []

    def watch(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal cut
        label = f"{name or 'the model itself'} ({type(module).__name__})"
        if not isinstance(output, Tensor):
            return
        if output.requires_grad:
            order.append(label)
            output.register_hook(lambda g: alive.append(label) if bool(g.count_nonzero()) else None)
        elif not cut and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
            cut = label

    with torch.enable_grad(), ExitStack() as hooks:
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda m, i, o, name=name: watch(name, m, i, o), prepend=True)
            hooks.callback(hook.remove)
        target = _values(model, unit, image)
        if target.requires_grad:
            torch.autograd.grad(_one_number(target, unit.channels, torch.ones_like(target)), image, allow_unused=True)
            cut = next((label for label in order if label in alive), f"the unit itself, whose {_silence(unit)}")
    return (
        f"{unit.layer!r} of {type(model).__name__} does not depend on the image at {unit.position}: the gradient"
        f" ends at {cut or 'its input, which no layer takes'}. Choose an earlier layer, or mend that one"
    )


def _silence(unit: Unit) -> str:
    return "channels are all negative there" if unit.channels == "relu" else "value is constant"


def _not_finite(model: nn.Module, unit: Unit, images: Tensor) -> str:
    """Name the first layer whose output is not finite."""
    if not bool(torch.isfinite(images).all()):
        return "an image has values that are not finite; check the image and its preprocessing"
    first = ""

    def watch(name: str, module: nn.Module, output: Any) -> None:
        nonlocal first
        broken = isinstance(output, Tensor) and output.is_floating_point() and not bool(torch.isfinite(output).all())
        if broken and not first:
            first = f"{name or 'the model itself'} ({type(module).__name__})"

    with torch.no_grad(), ExitStack() as hooks:
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda m, _, o, name=name: watch(name, m, o), prepend=True)
            hooks.callback(hook.remove)
        _values(model, unit, images)
    return (
        f"the output of {first or unit.layer} is not finite, the first such layer: its weights are damaged, or values"
        f" leave the range of {images.dtype}; try float32, or another checkpoint"
    )
