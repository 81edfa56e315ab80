"""Densities against the papers' formulas in plain Python, and masks that keep their counts exactly."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.sparsity import (
    DENSE_FROM,
    apply_masks,
    count_parameters,
    draw_masks,
    erdos_renyi_densities,
    grow_at_random,
    grow_by_gradient,
    prunable_weights,
    prune_smallest,
    snip_densities,
    uniform_densities,
)


def net() -> nn.Module:
    """Make a net with layers of every kind; few weights in the first, many in the last."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, (7, 3), groups=8),
        nn.Flatten(),
        nn.Linear(200, 40),
        nn.LayerNorm(40),
        nn.Linear(40, 300, bias=False),
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mask(alive: int, *shape: int) -> Tensor:
    return grow_at_random(torch.zeros(shape, dtype=torch.bool), alive, seeded(5))


def test_weights_of_convolutions_and_linear_layers_are_prunable_and_vectors_are_not() -> None:
    weights = prunable_weights(net())
    assert list(weights) == ["0.weight", "2.weight", "4.weight", "6.weight"]
    assert list(prunable_weights(net(), r"^[24]\.")) == ["2.weight", "4.weight"]


def test_frozen_weights_are_not_pruned() -> None:
    model = net()
    model.get_parameter("4.weight").requires_grad_(False)
    assert "4.weight" not in prunable_weights(model)


def test_names_that_no_weight_has_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no prunable weight has '4\.wieght' in its name; did you mean '4\.weight'"):
        prunable_weights(net(), "4.wieght")
    with pytest.raises(ConfigError, match=r"'\(' is not a regular expression"):
        prunable_weights(net(), "(")


def test_zeros_in_weights_are_not_counted_and_zeros_in_vectors_are() -> None:
    model = net()
    dense = 3 * 8 * 9 + 8 + 2 * 8 + 8 * 21 + 8 + 200 * 40 + 40 + 2 * 40 + 40 * 300
    assert count_parameters(model) == (dense, dense)
    with torch.no_grad():
        model[4].weight[3] = 0  # 200 weights
        model[2].weight[:, :, 2, 1] = -0.0  # 8 weights
        model[0].bias.zero_()
    assert count_parameters(model) == (dense, dense - 208)


def test_uniform_densities_are_all_the_same() -> None:
    assert uniform_densities(prunable_weights(net()), 0.6) == {f"{i}.weight": 0.6 for i in (0, 2, 4, 6)}


def erdos_renyi_by_bisection(shapes: dict[str, torch.Size], density: float) -> dict[str, float]:
    """Find the one factor e with sum(n * min(1, e * sides / n)) = density * sum(n)."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(math.prod(s), middle * sum(s)) for s in shapes.values())
        low, high = (middle, high) if total < density * sum(map(math.prod, shapes.values())) else (low, middle)
    return {name: min(1.0, low * sum(s) / math.prod(s)) for name, s in shapes.items()}


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.6, 0.95, 0.999])
def test_erdos_renyi_densities_solve_their_equation(density: float) -> None:
    weights = prunable_weights(net())
    found = erdos_renyi_densities(weights, density)
    assert found == pytest.approx(erdos_renyi_by_bisection({n: w.shape for n, w in weights.items()}, density))
    total = sum(w.numel() for w in weights.values())
    assert sum(found[n] * w.numel() for n, w in weights.items()) == pytest.approx(density * total)
    assert max(found.values()) <= 1


@pytest.mark.parametrize("density", [0.01, 0.3, 0.6, 0.95])
def test_snip_densities_are_shares_of_the_largest_products_of_weight_and_gradient(density: float) -> None:
    weights = prunable_weights(net())
    gradients = {n: torch.randn(w.shape, generator=seeded(i)) * (i + 1) for i, (n, w) in enumerate(weights.items())}
    found = snip_densities(weights, gradients, density)
    scored = [
        (abs(a * b), name)
        for name, w in weights.items()
        for a, b in zip(w.flatten().tolist(), gradients[name].flatten().tolist(), strict=True)
    ]
    best = [name for _, name in sorted(scored, reverse=True)[: int(density * len(scored))]]
    assert found == pytest.approx({name: best.count(name) / w.numel() for name, w in weights.items()})


@pytest.mark.parametrize("density", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_a_density_that_is_none_is_named(density: float) -> None:
    weights = prunable_weights(net())
    for give in (uniform_densities, erdos_renyi_densities):
        with pytest.raises(ConfigError, match=rf"between 0 and 1, got {density}"):
            give(weights, density)


def test_masks_have_exactly_as_many_living_weights_as_asked_for_and_depend_on_the_seed_alone() -> None:
    weights = prunable_weights(net())
    densities = {"0.weight": DENSE_FROM, "2.weight": 0.5, "4.weight": 0.123, "6.weight": 0.0}
    masks = draw_masks(weights, densities, seeded())
    assert {n: (int(m.sum()), m.dtype) for n, m in masks.items()} == {
        "2.weight": (84, torch.bool),
        "4.weight": (984, torch.bool),
        "6.weight": (0, torch.bool),
    }  # a layer that is almost dense has no mask
    again, other = (draw_masks(weights, densities, seeded(s)) for s in (0, 1))
    assert all(torch.equal(masks[n], again[n]) for n in masks)
    assert not torch.equal(masks["4.weight"], other["4.weight"])


def test_pruning_takes_the_smallest_of_the_living() -> None:
    mask, weight = random_mask(30, 5, 4, 3), torch.randn(5, 4, 3, generator=seeded())
    weight[~mask] = 1e-9  # the dead are not candidates
    pruned = prune_smallest(mask, weight, 11)
    magnitude = weight.abs()
    expected = set(sorted(magnitude[mask].tolist())[:11])
    assert {float(v) for v in magnitude[mask & ~pruned]} == expected
    assert int(pruned.sum()) == 19
    assert not (pruned & ~mask).any()
    assert int(mask.sum()) == 30  # the given one is left as it was


def test_growing_by_gradient_takes_the_largest_of_the_dead() -> None:
    mask, gradient = random_mask(30, 5, 4, 3), torch.randn(5, 4, 3, generator=seeded())
    grown = grow_by_gradient(mask, 7, gradient)
    expected = set(sorted(gradient.abs()[~mask].tolist(), reverse=True)[:7])
    assert {float(v) for v in gradient.abs()[grown & ~mask]} == expected
    assert int(grown.sum()) == 37


def test_growing_at_random_takes_each_of_the_dead_equally_often() -> None:
    mask = random_mask(4, 2, 5)
    counts = torch.zeros(2, 5)
    for seed in range(3000):
        grown = grow_at_random(mask, 2, seeded(seed))
        assert int(grown.sum()) == 6
        counts += grown & ~mask
    assert counts[mask].sum() == 0
    assert (counts[~mask] / 3000).tolist() == pytest.approx([2 / 6] * 6, abs=0.04)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_pruning_and_growing_any_number_keeps_the_count(count: int) -> None:
    mask, weight = random_mask(30, 5, 4, 3), torch.randn(5, 4, 3, generator=seeded())
    pruned = prune_smallest(mask, weight, count)
    assert int(grow_at_random(pruned, count, seeded()).sum()) == 30
    assert int(grow_by_gradient(pruned, count, weight).sum()) == 30


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ],
    ids=["adamw", "amsgrad", "momentum", "sgd"],
)
def test_dead_weights_and_all_that_is_remembered_of_them_are_zero_and_living_ones_untouched(make: object) -> None:
    model = net()
    optimizer = make(model.parameters())  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=seeded())
    optimizer.step()
    weights = prunable_weights(model)
    masks = draw_masks(weights, uniform_densities(weights, 0.5), seeded())
    of_weights = [(n, v) for n, w in weights.items() for v in optimizer.state[w].values() if v is not None and v.ndim]
    tensors = [*weights.items(), *of_weights]
    before = [t.detach().clone() for _, t in tensors]
    apply_masks(masks, weights, optimizer)
    for (name, after), old in zip(tensors, before, strict=True):
        assert torch.equal(after, torch.where(masks[name], old, 0))


def test_count_of_a_masked_net_is_that_of_its_masks() -> None:
    model, weights = net(), prunable_weights(net())
    weights = prunable_weights(model)
    densities = {name: random.Random(0).uniform(0.1, 0.9) for name in weights}
    masks = draw_masks(weights, densities, seeded())
    apply_masks(masks, weights)
    dense = sum(p.numel() for p in model.parameters())
    assert count_parameters(model) == (dense, dense - sum(int((~m).sum()) for m in masks.values()))
