"""Finding a model's feature maps by layer name, and running a model as far as one of them.

Every tool that looks inside a model needs the same thing: the output of a named module as a map (B, C, h, w), of
any model. Convolutional nets give it as it stands; some attention nets keep channels last (Swin) or a row of tokens
(ViT). A module that returns several tensors (a pyramid, a dense model's dictionary) has one name a tensor, such as
`fpn[0]` or `output[out]`; `output` is what the whole model returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError, FullfieldError, nearest

__all__ = [
    "FeatureMap",
    "feature_map",
    "frozen",
    "is_out_of_memory",
    "last_layer",
    "list_feature_maps",
    "split_layer",
    "stage_layers",
]

OUTPUT = "output"


@dataclass(frozen=True)
class FeatureMap:
    """One layer whose output is a map."""

    layer: str
    """Name to give to `erf` and to `feature_map`."""
    kind: str
    """Class of the module."""
    channels: int
    size: tuple[int, int]
    """(height, width) of the map, in units."""


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass early
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and its parameters out of autograd's sight while the block runs."""
    training = [(module, module.training) for module in model.modules()]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for module, mode in training:
            module.training = mode


def feature_map(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Run a model as far as a layer and return the layer's map.

    Args:
        model: On the device of the images; its mode is left as it is.
        layer: A name of `list_feature_maps`.
        images: (B, C, H, W), in the model's dtype.

    Returns:
        (B, c, h, w), a view where the layer keeps another layout, with the graph that leads to it.

    Raises:
        ConfigError: There is no such layer, it does not run, its output is not a map, or the model can't take images of
            this size.
    """
    name, key = split_layer(model, layer)
    module = model.get_submodule(name)

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output)

    handle = module.register_forward_hook(stop)
    try:
        model(images)
    except _Reached as reached:
        output = reached.output
    except FullfieldError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(_refusal(model, images, error)) from error
    else:
        raise ConfigError(f"the layer {layer!r} does not run in the forward pass, so it has no map")
    finally:
        handle.remove()
    tensors = dict(_tensors(output))
    if key not in tensors:
        hint = f"; it returns {', '.join(repr(layer + k) for k in tensors)}" if tensors else ""
        raise ConfigError(f"the layer {layer!r} does not return one tensor{hint}")
    image_size = (images.shape[2], images.shape[3])
    found = as_map(tensors[key], image_size, prefix_tokens=_prefix_tokens(model))
    if found is None:
        raise ConfigError(
            f"the output of {layer!r} has the shape {tuple(tensors[key].shape)}, which is no map of units;"
            " `fullfield erf MODEL --list-layers` prints the layers that have one"
        )
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("allocate memory", "out of memory")  # the allocators of the CPU and of MPS have no class of their own
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)


def list_feature_maps(model: nn.Module, images: Tensor) -> list[FeatureMap]:
    """Return every layer whose output is a map, in the order in which they finish; of a repeated layer the first call.

    Args:
        model: On the device of the images; its mode is left as it is.
        images: (B, C, H, W); one image is enough.

    Raises:
        ConfigError: The model can't take images of this size.
    """
    image_size = (images.shape[2], images.shape[3])
    prefix = _prefix_tokens(model)
    found: dict[str, FeatureMap] = {}

    def keep(name: str, module: nn.Module, output: Any) -> None:
        for key, tensor in _tensors(output):
            view = as_map(tensor, image_size, prefix_tokens=prefix)
            layer = (name or OUTPUT) + key
            if view is not None and layer not in found:
                size = (view.shape[2], view.shape[3])
                found[layer] = FeatureMap(layer, type(module).__name__, view.shape[1], size)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            handle = module.register_forward_hook(lambda m, _inputs, output, name=name: keep(name, m, output))
            hooks.callback(handle.remove)
        try:
            model(images)
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(_refusal(model, images, error)) from error
    return list(found.values())


def stage_layers(model: nn.Module, images: Tensor) -> list[str]:
    """Return the layers that end the model's stages: timm's `feature_info`, or the last layer of every map size.

    Args:
        model: On the device of the images.
        images: (B, C, H, W), run only where the model has no `feature_info`.

    Raises:
        ConfigError: The model has no map at all.
    """
    names = dict(model.named_modules())
    info = getattr(model, "feature_info", None)
    entries = list(getattr(info, "info", info) or [])
    told = [entry["module"] for entry in entries if entry.get("module") in names]
    if told:
        return told
    by_size: dict[tuple[int, int], str] = {}
    for entry in _inner_maps(model, images):
        by_size[entry.size] = entry.layer
    return list(by_size.values())


def last_layer(model: nn.Module, images: Tensor) -> str:
    """Return the last layer with a map: of a classifier its last stage, of a dense model its output.

    Args:
        model: On the device of the images.
        images: (B, C, H, W), run only where the model has no `feature_info`.

    Raises:
        ConfigError: The model has no map at all.
    """
    return stage_layers(model, images)[-1]


def _inner_maps(model: nn.Module, images: Tensor) -> list[FeatureMap]:
    """Return the maps of more than one unit, so that a pooled vector does not count."""
    maps = [entry for entry in list_feature_maps(model, images) if entry.size != (1, 1)]
    if not maps:
        raise ConfigError(
            f"{type(model).__name__} has no layer with a map of units at {images.shape[2]} x {images.shape[3]} pixels,"
            " so it has no receptive field to measure; give larger images or another model"
        )
    return maps


def split_layer(model: nn.Module, layer: str) -> tuple[str, str]:
    """Return the module's name ("" for the whole model) and the key ("[0]" or "") that a layer's name means.

    Raises:
        ConfigError: There is no such module; the nearest are named.
    """
    names = dict(model.named_modules())
    name, bracket, rest = layer.partition("[")
    for candidate, key in ((layer, ""), (name, bracket + rest)):
        if candidate and candidate in names:
            return candidate, key
        if candidate == OUTPUT:
            return "", key
    raise ConfigError(
        f"there is no layer {layer!r}{nearest(layer, [n for n in names if n] + [OUTPUT])};"
        " `fullfield erf MODEL --list-layers` prints them all"
    )


def as_map(tensor: Tensor, image_size: tuple[int, int], *, prefix_tokens: int = 0) -> Tensor | None:
    """View a layer's output as a map, if it is one.

    Args:
        tensor: (B, C, h, w); (B, h, w, C); or (B, N, C), tokens row by row after `prefix_tokens` others.
        image_size: (H, W) of the image. Channels are last where that gives the map the image's aspect, up to one unit
            of rounding, and channels first does not.
        prefix_tokens: Class and register tokens at the front.

    Returns:
        (B, C, h, w), or None.
    """
    H, W = image_size
    if tensor.ndim == 4:
        a, b, c = tensor.shape[1:]
        if _same_aspect((a, b), image_size) and not _same_aspect((b, c), image_size):
            return tensor.permute(0, 3, 1, 2)
        return tensor if 1 <= b <= H and 1 <= c <= W else None
    if tensor.ndim == 3:
        units = tensor.shape[1] - prefix_tokens
        h = round(math.sqrt(units * H / W)) if units > 0 else 0
        if h and units % h == 0 and _same_aspect((h, units // h), image_size):
            tokens = tensor[:, prefix_tokens:].transpose(1, 2)
            return tokens.reshape(*tokens.shape[:2], h, units // h)
    return None


def _same_aspect(size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    (h, w), (H, W) = size, image_size
    return 1 <= h <= H and 1 <= w <= W and abs(h * W - w * H) <= (0 if H == W else max(H, W))


def _tensors(output: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (key, floating tensor) for every tensor in a module's output."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield key, output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from _tensors(value, f"{key}[{name}]")
    elif isinstance(output, list | tuple):
        for index, value in enumerate(output):
            yield from _tensors(value, f"{key}[{index}]")


def _prefix_tokens(model: nn.Module) -> int:
    return int(getattr(model, "num_prefix_tokens", 0) or 0)


def _refusal(model: nn.Module, images: Tensor, error: Exception) -> str:
    C, H, W = images.shape[1:]
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"{type(model).__name__} can't take images of {H} x {W} pixels and {C} channels ({reason});"
        " try its own size, or a multiple of its stride (image_size=224)"
    )
