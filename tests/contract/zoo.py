"""Which registered models the contract runs on, what a family may declare, and how a test builds one.

Every model that Fullfield registers gets the whole contract; a new family does nothing but register. Where one
truly cannot do something, `DECLARED` says so under the family's name, with the reason that the skipped test shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fullfield
from fullfield.models.registry import ModelInfo

SIZES = [(1, 1), (5, 7), (33, 64), (64, 64), (97, 130), (224, 224)]
FLOAT32_SPREAD = 0.4  # scales drawn more widely overflow float32 in deep nets whose blocks multiply


@dataclass(frozen=True)
class Declared:
    """What a family cannot do."""

    min_size: int = 1
    """Smallest height and width, in pixels."""
    floor: bool = False
    """Maps are sizes / stride rounded down, as in the official nets whose patches do not overlap; sizes below 32
    pixels are padded. Otherwise they are rounded up."""
    norm_spread: float = 1.0
    """How widely `build` draws norms in float64, as `randomise_norms` takes it."""
    skips: dict[str, str] = field(default_factory=dict)
    """Name of a test of the contract -> why the family cannot pass it."""


DECLARED: dict[str, Declared] = {
    "hornet": Declared(floor=True),
    "slak": Declared(floor=True),
    "van": Declared(norm_spread=FLOAT32_SPREAD),  # van_b6's 90 blocks multiply past float64 too, at 224 pixels
}
"""Family -> its exceptions; a family without an entry has none."""

MODELS: dict[str, ModelInfo] = {info.name: info for info in fullfield.list_models() if info.source == "fullfield"}


@cache
def params_on_meta(name: str) -> int:
    """Count a model's parameters without memory for them."""
    return sum(p.numel() for p in fullfield.create_model(name, device="meta").parameters())


def smallest_of_each_family() -> set[str]:
    """Return the variant of each family with the fewest parameters (the first by name among equals)."""
    families: dict[str, list[str]] = {}
    for info in MODELS.values():
        families.setdefault(info.family, []).append(info.name)
    return {min(names, key=lambda n: (params_on_meta(n), n)) for names in families.values()}


def contract_params() -> list[Any]:
    """Return every model's name for `parametrize`, marked slow unless it is its family's smallest."""
    quick = smallest_of_each_family()
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def declared(name: str) -> Declared:
    """Return what the model's family declares."""
    return DECLARED.get(MODELS[name].family, Declared())


def map_side(name: str, side: int, reduction: int) -> int:
    """Return the side of a map of an image of `side` pixels."""
    return max(side, 32) // reduction if declared(name).floor else -(-side // reduction)


def build(name: str, *, dtype: torch.dtype = torch.float64, **arguments: Any) -> Any:
    """Make a model in eval mode, whose norms have statistics and weights as after some training."""
    torch.manual_seed(0)
    model = fullfield.create_model(name, **arguments)
    spread = declared(name).norm_spread
    randomise_norms(model, spread if dtype == torch.float64 else min(spread, FLOAT32_SPREAD))
    return model.to(dtype).eval()


@torch.no_grad()
def randomise_norms(model: nn.Module, spread: float = 1.0) -> None:
    """Draw the running statistics, weights and biases of every BatchNorm, and what starts at 0 or nearly (LayerScale).

    A branch that is scaled by 1e-6 would hide any error in it. `spread` narrows the draws.
    """
    for parameter in model.parameters():
        value = parameter.flatten()[0]
        if value.abs() <= 0.01 and (parameter == value).all():
            parameter.normal_(0, 0.05 * spread)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(1 - 0.5 * spread, 1 + spread)
            module.weight.uniform_(1 - 0.5 * spread, 1 + 0.5 * spread)
            module.bias.normal_(0, 0.1)


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Return standard normal images of that shape."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual - expected‖ / ‖expected‖ in float64; NaN anywhere gives NaN, a wrong shape raises."""
    assert actual.shape == expected.shape
    a, e = actual.detach().double(), expected.detach().double()
    return float((a - e).norm() / e.norm())
