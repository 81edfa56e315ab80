"""Which weights of a net are alive: how many each layer keeps, masks that say which, and how masks change in training.

Source: SLaK (arXiv 2207.03620, section 3.3), which trains with dynamic sparsity: layers get their densities once, by
SNIP (arXiv 1810.02340) or by the Erdos-Renyi-kernel rule (SET, arXiv 1707.04780; RigL, arXiv 1911.11134); then every
so many steps the smallest weights of each layer are pruned and as many are grown, at random (SET) or where the gradient
is largest (RigL). A mask is a bool tensor of its weight's shape, True where the weight is alive. Everything here is
exact in numbers: a layer has as many living weights after a change as before. `train.sparsity` does it in a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError, nearest

__all__ = [
    "DENSE_FROM",
    "ParameterCount",
    "apply_masks",
    "count_parameters",
    "draw_masks",
    "erdos_renyi_densities",
    "grow_at_random",
    "grow_by_gradient",
    "masks_of_zeros",
    "prunable_weights",
    "prune_smallest",
    "snip_densities",
    "uniform_densities",
]

DENSE_FROM = 0.99
"""Layers of this density or more get no mask, as in the official code: there is next to nothing to prune."""


class ParameterCount(NamedTuple):
    """Learned numbers of a net: all of them, and those that are not pruned."""

    dense: int
    non_zero: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters, and those that are left if zeros in weights of two and more dimensions are pruned.

    No mask is needed, so this works on any loaded checkpoint. Vectors (biases, norms, scales) are never pruned and
    count in full, whatever their values.

    Args:
        model: On any device but meta, where weights have no values.
    """
    dense = sum(parameter.numel() for parameter in model.parameters())
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters() if parameter.ndim > 1)
    return ParameterCount(dense, dense - zeros)


def prunable_weights(model: nn.Module, only: str = "") -> dict[str, nn.Parameter]:
    """Return the weights that may be pruned: trained ones of linear layers and of 2-D convolutions of any kind.

    Args:
        model: Any.
        only: Regular expression that a name must contain ("large_kernel" for SLaK's depthwise kernels alone).

    Returns:
        Name -> parameter of 2 or 4 dimensions.

    Raises:
        ConfigError: The expression is not one, or no weight's name contains it.
    """
    every = {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim in (2, 4)}
    try:
        chosen = {name: p for name, p in every.items() if re.search(only, name)}
    except re.error as error:
        raise ConfigError(f"{only!r} is not a regular expression ({error})") from error
    if not chosen:
        raise ConfigError(f"no prunable weight has {only!r} in its name{nearest(only, every)}")
    return chosen


def uniform_densities(weights: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Give every layer the same density.

    Args:
        weights: Name -> weight.
        density: Share of the weights that stay, more than 0 and less than 1.
    """
    return dict.fromkeys(weights, _checked(density))


def erdos_renyi_densities(weights: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Give layers densities in proportion to the sum of their sides over the product (Erdos-Renyi kernel).

    Small layers stay denser; those that would pass 1 are dense, and the others share what is left.

    Args:
        weights: Name -> weight; only the shapes are read.
        density: Share of all weights together that stay, more than 0 and less than 1.

    Returns:
        Name -> density. The mean, weighted by size, is `density`.
    """
    budget = _checked(density) * sum(weight.numel() for weight in weights.values())
    raw = {name: sum(weight.shape) / weight.numel() for name, weight in weights.items()}
    dense: set[str] = set()
    while True:
        left = budget - sum(weights[name].numel() for name in dense)
        # the factor of the layers that are not dense, so that together they use up what is left
        factor = left / sum(raw[name] * weights[name].numel() for name in weights if name not in dense)
        over = {name for name in weights if name not in dense and raw[name] * factor > 1}
        if not over:
            return {name: 1.0 if name in dense else raw[name] * factor for name in weights}
        largest = max(raw[name] for name in over)
        dense |= {name for name in over if raw[name] == largest}


def snip_densities(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Give each layer the density that it has among the weights w of largest |w dL/dw| (SNIP).

    As in the official code, that score decides only how many weights a layer keeps; which ones is drawn at random.

    Args:
        weights: Name -> weight.
        gradients: Name -> gradient of a batch's loss, of the same shape.
        density: Share of all weights together that stay, more than 0 and less than 1.

    Returns:
        Name -> density. The mean, weighted by size, is `density` up to one weight.
    """
    scores = torch.cat([(weight.detach() * gradients[name]).abs().flatten() for name, weight in weights.items()])
    sizes = torch.tensor([weight.numel() for weight in weights.values()], device=scores.device)
    kept = scores.topk(int(_checked(density) * len(scores)), sorted=False).indices
    layer = torch.bucketize(kept, sizes.cumsum(0), right=True)
    shares = torch.bincount(layer, minlength=len(sizes)).double() / sizes
    return dict(zip(weights, shares.tolist(), strict=True))


def draw_masks(
    weights: Mapping[str, Tensor], densities: Mapping[str, float], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw which weights of each layer are alive: exactly round(density * size) of them, at random.

    Args:
        weights: Name -> weight.
        densities: Name -> share that is alive.
        generator: On the CPU, so that the same seed draws the same masks on any device.

    Returns:
        Name -> mask on the weight's device, for layers less dense than `DENSE_FROM`; the others have none.
    """
    empty = {
        name: torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
        for name, weight in weights.items()
        if densities[name] < DENSE_FROM
    }
    return {
        name: grow_at_random(mask, round(densities[name] * mask.numel()), generator) for name, mask in empty.items()
    }


def masks_of_zeros(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks of weights that are sparse already, such as a loaded checkpoint's: what is zero is dead.

    Args:
        weights: Name -> weight.

    Returns:
        Name -> mask, for layers less dense than `DENSE_FROM`; the others have none.

    Raises:
        ConfigError: No layer is sparse.
    """
    masks = {name: weight.detach() != 0 for name, weight in weights.items()}
    masks = {name: mask for name, mask in masks.items() if int(mask.sum()) < DENSE_FROM * mask.numel()}
    if not masks:
        raise ConfigError(
            "the weights to start from have no zeros to keep; start from a sparse checkpoint, or let another rule draw"
            " the zeros (snip, erk, uniform)"
        )
    return masks


@torch.no_grad()
def apply_masks(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Set dead weights to zero, and with them all that the optimiser remembers of each (momentum, squares), in place.

    Args:
        masks: Name -> mask.
        weights: Name -> weight; those without a mask stay as they are.
        optimizer: Of these weights; None where there is none.
    """
    for name, mask in masks.items():
        weight = weights[name]
        weight.mul_(mask)
        for value in optimizer.state.get(weight, {}).values() if optimizer is not None else ():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.mul_(mask)


def prune_smallest(mask: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return the mask without the `count` living weights of smallest magnitude.

    Args:
        mask: Bool, with at least `count` living weights.
        weight: Of the same shape.
        count: How many die.
    """
    living = mask.flatten().nonzero()[:, 0]
    smallest = weight.detach().abs().flatten()[living].topk(count, largest=False, sorted=False).indices
    return _set(mask, living[smallest], alive=False)


def grow_at_random(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the mask with `count` more living weights, at random among the dead.

    Args:
        mask: Bool, with at least `count` dead weights.
        count: How many grow.
        generator: On the CPU.
    """
    dead = (~mask).flatten().nonzero()[:, 0]
    return _set(mask, dead[torch.randperm(len(dead), generator=generator)[:count].to(dead.device)], alive=True)


def grow_by_gradient(mask: Tensor, count: int, gradient: Tensor) -> Tensor:
    """Return the mask with `count` more living weights: those of the dead with the largest gradient in magnitude.

    Args:
        mask: Bool, with at least `count` dead weights.
        count: How many grow.
        gradient: Of the loss by the weight, dead ones included.
    """
    dead = (~mask).flatten().nonzero()[:, 0]
    return _set(mask, dead[gradient.detach().abs().flatten()[dead].topk(count, sorted=False).indices], alive=True)


def _set(mask: Tensor, places: Tensor, *, alive: bool) -> Tensor:
    changed = mask.flatten().clone()
    changed[places] = alive
    return changed.view(mask.shape)


def _checked(density: float) -> float:
    if not (math.isfinite(density) and 0 < density < 1):
        raise ConfigError(f"density, the share of weights that stay, must be between 0 and 1, got {density!r}")
    return density
