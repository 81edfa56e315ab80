"""The layer that a class-activation map is taken from, for any model.

It is the deepest end of a stage that has a map of more than one unit and on whose units the output depends. The
second condition matters: where a classifier reads a class token (ViT), nothing that the last block gives to the
patches reaches the output, and Grad-CAM of it would be zero; the stage before is taken there. In a detector or a
segmentation model the backbone is searched, since maps of its necks and heads know a single scale or class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.measure.feature_maps import OUTPUT, as_map, list_feature_maps, split_layer

__all__ = ["find_layer", "map_at", "pick"]

BACKBONES = ("backbone.body", "backbone", "encoder")
"""Where torchvision's detectors, its dense models, and segmentation-models-pytorch keep theirs."""


def find_layer(model: nn.Module, image: Tensor, scalar: Callable[[Any], Tensor]) -> str:
    """Return the name of the layer to explain a model with.

    Args:
        model: Frozen (see `feature_maps.frozen`), on the device of the image.
        image: (1, C, H, W), in the model's dtype.
        scalar: The whole model's output -> the number that is explained.

    Raises:
        ConfigError: The model has no map of more than one unit on which the number depends.
    """
    H, W = image.shape[2:]
    maps = [
        entry
        for entry in list_feature_maps(model, image)
        # keys and values of attention, (B, heads, N, d), look like a map but have not the image's aspect
        if entry.layer != OUTPUT and max(entry.size) > 1 and abs(entry.size[0] * W - entry.size[1] * H) <= max(H, W)
    ]
    names = [entry.layer for entry in maps]
    ends = [layer for end in _stage_ends(model) for layer in _layers_of(end, names)]
    if not ends:
        inside = _inside_backbone(names)
        ends = list({entry.size: entry.layer for entry in maps if entry.layer in inside}.values())
    for candidates in (ends, names):
        reached = _reached(model, image, scalar, candidates)
        if reached:
            return reached[-1]
    raise ConfigError(
        f"{type(model).__name__} has no layer with a map of more than one unit at {H} x {W} pixels that its output"
        " depends on, so there is no class-activation map; give larger images or another model"
    )


def map_at(tensor: Tensor, layer: str, image_size: tuple[int, int], prefix_tokens: int) -> Tensor:
    """Return a layer's output as a map (B, C, h, w) of more than one unit.

    Raises:
        ConfigError: It is no map, or one of a single unit.
    """
    found = _view(tensor, image_size, prefix_tokens)
    listed = "; `fullfield erf MODEL --list-layers` prints the layers that have one"
    if found is None:
        raise ConfigError(f"the output of {layer!r} has the shape {tuple(tensor.shape)}, which is no map{listed}")
    if max(found.shape[2:]) == 1:
        H, W = image_size
        raise ConfigError(
            f"the map of {layer!r} has a single unit: images of {H} x {W} pixels are no larger than its stride. Set a"
            f" larger image_size or choose an earlier layer{listed}"
        )
    return found


def pick(output: Any, key: str) -> Any:
    """Return one tensor of a module's output by the key that `split_layer` gives: "", "[0]", "[out]", "[0][1]"."""
    for part in re.findall(r"\[([^\]]*)\]", key):
        try:
            output = output[int(part)] if isinstance(output, list | tuple) else output[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return output


def _view(tensor: Tensor, image_size: tuple[int, int], prefix_tokens: int) -> Tensor | None:
    """Return a layer's output as a map, if it is one."""
    found = as_map(tensor, image_size, prefix_tokens=prefix_tokens)
    if found is None and prefix_tokens:  # nets that add their class token late (XCiT) have none in most layers
        return as_map(tensor, image_size)
    return found


def _layers_of(module: str, names: Sequence[str]) -> list[str]:
    """Return the layers that are outputs of a module; its own name where the list of maps does not know it."""
    return [name for name in names if name.partition("[")[0] == module] or [module]


def _stage_ends(model: nn.Module) -> list[str]:
    """Return the modules that end the stages of the model, or of the backbone in it, as `feature_info` says."""
    modules = dict(model.named_modules())
    for prefix in ("", *BACKBONES, *(f"{name}.model" for name in BACKBONES)):
        info = getattr(modules.get(prefix), "feature_info", None)
        entries = list(getattr(info, "info", info) or [])
        told = [f"{prefix}.{entry['module']}".lstrip(".") for entry in entries if entry.get("module")]
        found = [name for name in told if name in modules]
        if found:
            return found
    return []


def _inside_backbone(names: Sequence[str]) -> set[str]:
    """Return the layers inside a model's backbone, or all where it has none."""
    for prefix in BACKBONES:
        inside = {name for name in names if name.startswith(f"{prefix}.")}
        if inside:
            return inside
    return set(names)


def _reached(model: nn.Module, image: Tensor, scalar: Callable[[Any], Tensor], layers: Sequence[str]) -> list[str]:
    """Return the layers on the units of whose map the number depends, in order."""
    image = image.detach().clone().requires_grad_(True)
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    size = (image.shape[2], image.shape[3])
    alive: set[str] = set()

    def note(layer: str, gradient: Tensor) -> None:
        view = _view(gradient, size, prefix)
        if view is not None and max(view.shape[2:]) > 1 and bool(view.count_nonzero()):
            alive.add(layer)

    def watch(layer: str, key: str, output: Any) -> None:
        tensor = pick(output, key)
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(lambda gradient: note(layer, gradient))

    with torch.enable_grad(), ExitStack() as hooks:
        for layer in layers:
            name, key = split_layer(model, layer)
            hook = model.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, layer=layer, key=key: watch(layer, key, output), prepend=True
            )
            hooks.callback(hook.remove)
        number = scalar(model(image)).sum()
        if number.requires_grad:
            number.backward()  # the parameters are frozen, so only the image's own gradient is kept
    return [layer for layer in layers if layer in alive]
