"""Which modules of a net let the padding of a batch in although `keep_padding_out` holds.

Found by running the net and not by its types, because a forward method may do anything: each image is run alone and in
a padded batch, and the outputs of all modules are compared on the image's own area. A module whose input agrees and
whose output does not is the leak.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.tasks.padding import keep_padding_out

__all__ = ["unmasked_modules"]

_SIZES = ((64, 96), (128, 64))
_PADDED = (128, 160)
# Of the largest value of a map. In float64 rounding is far below, and the leaks of a random net are far above; between
# the two lies what a module makes of an earlier leak that is too small to see.
_SAME, _DIFFERENT = 1e-9, 1e-6

Calls = dict[str, list[tuple[list[Tensor], list[Tensor]]]]
"""Name of a module -> the maps that go in and come out, call by call."""


@torch.no_grad()
def unmasked_modules(module: nn.Module, in_chans: int = 3) -> list[str]:
    """Name the modules that let padding through inside `keep_padding_out`; none for a net that is covered.

    A copy of the net runs a few small images on the CPU in float64. Parameters that are constant in it, such as a
    LayerScale of 1e-6 or a zero that starts a branch, are drawn at random there, because they would hide a leak, and
    BatchNorms take the statistics of these images.

    Args:
        module: What `keep_padding_out` will be given: from images (B, in_chans, H, W) to whatever it returns.
        in_chans: Channels of the images.

    Returns:
        Names as of `named_modules`, sorted; the class of the module itself where it leaks and none of its parts does.

    Raises:
        ConfigError: A module can't be masked at all, as `keep_padding_out` says.
    """
    module = copy.deepcopy(module).to("cpu", torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype))
    # noise outside the images, too: more than the zeros of a real batch, it shows what would be hidden by symmetry
    images = torch.randn(len(_SIZES), in_chans, *_PADDED, generator=generator, dtype=torch.float64)
    _take_statistics(module, images)
    with keep_padding_out(module, _SIZES, _PADDED):
        batch = _record(module, images)
    leaks: set[str] = set()
    for index, (height, width) in enumerate(_SIZES):
        alone = _record(module, images[index : index + 1, :, :height, :width].contiguous())
        leaks |= {name for name, calls in alone.items() if _leaks(calls, batch[name], index)}
    within = {leak for leak in leaks if any(_is_inside(other, leak) for other in leaks)}
    return sorted(name or type(module).__name__ for name in leaks - within)


def _take_statistics(module: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm the statistics of these images, without which a net of random factors may overflow."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    module(images)
    for norm in norms:
        norm.eval()


def _record(module: nn.Module, images: Tensor) -> Calls:
    """Run a module and return what went in and out of each of its parts."""
    calls: Calls = defaultdict(list)
    handles = []
    for name, part in module.named_modules():

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, name: str = name) -> None:
            calls[name].append((list(_maps((args, kwargs))), list(_maps(out))))

        handles.append(part.register_forward_hook(hook, with_kwargs=True))
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()
    if not calls[""][0][1]:
        raise ConfigError(f"{type(module).__name__} gives no maps, so whether padding reaches them can't be seen")
    return calls


def _maps(value: Any) -> Iterator[Tensor]:
    """Yield the maps in any nest of values, as they are now: a module may change one in place later."""
    if isinstance(value, Tensor):
        if value.ndim == 4:
            yield value.clone()
    elif isinstance(value, Mapping):
        yield from _maps(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _maps(item)


def _leaks(alone: list[Any], batch: list[Any], index: int) -> bool:
    """Whether outputs differ although inputs agree; parts of what runs alone have more calls in a batch, not ours."""
    return len(alone) == len(batch) and any(
        _agree(inputs, all_inputs, index, _SAME) and not _agree(outputs, all_outputs, index, _DIFFERENT)
        for (inputs, outputs), (all_inputs, all_outputs) in zip(alone, batch, strict=True)
    )


def _agree(alone: list[Tensor], batch: list[Tensor], index: int, tolerance: float) -> bool:
    """Whether an image's maps are the same on its own area, wherever their channels stand."""
    for own, padded in zip(alone, batch, strict=True):
        same = padded[index : index + 1][tuple(slice(size) for size in own.shape)]
        if same.shape != own.shape or not bool((same - own).abs().max() <= tolerance * own.abs().max()):
            return False
    return True


def _is_inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))
