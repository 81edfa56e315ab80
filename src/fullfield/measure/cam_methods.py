"""The maps themselves, by the classes of the `grad-cam` library (Gildenblat et al.), run on any model.

Sources: Grad-CAM (Selvaraju et al. 2017), Eigen-CAM (Muhammad and Yeasin 2020), HiRes-CAM (Draelos and Carin 2020),
Layer-CAM (Jiang et al. 2021). The library wants a module whose output is one tensor and which is its target; here it
is given an identity that the layer's output is handed to, so that layers with several outputs, tokens or channels
last need nothing of their own, and it never sees the user's model: it would reset the gradients of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fullfield.errors import CheckpointError, ConfigError
from fullfield.measure.cam_layer import map_at, pick
from fullfield.measure.cam_targets import grad_cam_library, one_output
from fullfield.measure.feature_maps import split_layer
from fullfield.ops.dispatch import one_of

__all__ = ["METHODS", "activation_map", "first_not_finite"]

METHODS = {"grad-cam": "GradCAM", "eigen-cam": "EigenCAM", "hires-cam": "HiResCAM", "layer-cam": "LayerCAM"}
"""Name -> the library's class."""


class _Tapped(nn.Module):
    """A model that hands the output of one layer to an identity, which the library hooks."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        # kept out of sight of `parameters()` and `eval()`: the library changes what it finds there
        object.__setattr__(self, "_model", model)
        self.layer = layer
        self.tap = nn.Identity()
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)  # the library asks a parameter for its device

    def forward(self, images: Tensor) -> Any:
        """Return what the model returns, as `one_output` gives it."""
        model = cast("nn.Module", self._model)
        name, key = split_layer(model, self.layer)
        calls = 0

        def hand_over(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal calls
            calls += 1
            tensor = pick(output, key)
            if not isinstance(tensor, Tensor):
                raise ConfigError(
                    f"the layer {self.layer!r} does not return one tensor; add [0] or [name] to choose one"
                )
            if calls == 1:  # a layer that runs on several maps, such as a head, is explained at its first
                self.tap(tensor)

        handle = model.get_submodule(name).register_forward_hook(hand_over, prepend=True)
        try:
            output = one_output(model(images))
        finally:
            handle.remove()
        if not calls:
            raise ConfigError(f"the layer {self.layer!r} does not run in the forward pass, so it has no map")
        return output


def activation_map(
    method: str, model: nn.Module, layer: str, image: Tensor, scalar: Callable[[Any], Tensor]
) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    """Return the class-activation map of one image.

    Args:
        method: One of `METHODS`.
        model: Frozen (see `feature_maps.frozen`), on the device of the image.
        layer: A name of `list_feature_maps` with more than one unit.
        image: (1, C, H, W), in the model's dtype.
        scalar: The output of one image -> the number that is explained; Eigen-CAM takes no notice of it.

    Returns:
        (H, W) in [0, 1], all zero where nothing speaks for the class; and (h, w) of the layer's map in units.

    Raises:
        ConfigError: The method or the layer is not known, has no map, or the number does not depend on it.
        CheckpointError: The layer's map, or the gradient, is not finite.
        MissingExtraError: grad-cam is not installed.
    """
    name = METHODS[one_of("method", method, tuple(METHODS))]
    image_size, prefix = (image.shape[2], image.shape[3]), int(getattr(model, "num_prefix_tokens", 0) or 0)
    shapes: list[tuple[int, int]] = []

    def as_units(tensor: Tensor) -> Tensor:
        view = map_at(tensor, layer, image_size, prefix)
        shapes.append((view.shape[2], view.shape[3]))
        if not bool(torch.isfinite(view).all()):
            raise CheckpointError(first_not_finite(model, image, layer))
        return view.detach().float().clone()  # a later layer may work in place, and numpy has no bfloat16

    wrapped = _Tapped(model, layer).to(image.device)
    explain = getattr(grad_cam_library(), name)(wrapped, [wrapped.tap], reshape_transform=as_units)
    explain.compute_input_gradient = True  # the parameters are frozen: the graph has to start at the image
    try:
        found = explain(input_tensor=image, targets=[lambda output: scalar(output).sum()])
    except (TypeError, AttributeError, RuntimeError) as error:
        if not explain.uses_gradients or explain.activations_and_grads.gradients or not shapes:
            raise
        if isinstance(error, RuntimeError) and "does not require grad" not in str(error):
            raise
        raise ConfigError(_independent(layer)) from error
    finally:
        gradients = list(explain.activations_and_grads.gradients)
        explain.activations_and_grads.release()
    if explain.uses_gradients and not bool(gradients[0].count_nonzero()):
        raise ConfigError(_independent(layer))
    return np.asarray(found[0], dtype=np.float32), shapes[0]


def first_not_finite(model: nn.Module, image: Tensor, layer: str) -> str:
    """Return the message that names the first layer whose output is not finite.

    Args:
        model: Frozen.
        image: (1, C, H, W).
        layer: Named if no earlier one is found: then it is a gradient that is not finite.
    """
    if not bool(torch.isfinite(image).all()):
        return "the image has values that are not finite; check the image and its preprocessing"
    first = ""

    def watch(name: str, module: nn.Module, output: Any) -> None:
        nonlocal first
        broken = isinstance(output, Tensor) and output.is_floating_point() and not bool(torch.isfinite(output).all())
        if broken and not first:
            first = f"output of {name or 'the model itself'} ({type(module).__name__})"

    with torch.no_grad(), ExitStack() as hooks:
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda m, _, o, name=name: watch(name, m, o), prepend=True)
            hooks.callback(hook.remove)
        model(image)
    return (
        f"the {first or f'gradient at {layer}'} is not finite, the first such: the weights are damaged, or values leave"
        f" the range of {image.dtype}; try float32, or another checkpoint"
    )


def _independent(layer: str) -> str:
    return (
        f"what is explained does not depend on the map of {layer!r}: its gradient there is zero. Choose an earlier"
        " layer, or leave the layer out; where a class token is read, the last block's patches have no influence"
    )
