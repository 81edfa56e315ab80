"""The stored costs are those that counting gives, for every listed model."""

from __future__ import annotations

import pytest

import fullfield
from fullfield.measure import cost
from fullfield.measure.listed_costs import listed_cost

NAMES = [info.name for info in fullfield.list_models()]
QUICK = {"racnn_tiny", "replknet_31b", "slak_tiny", "resnet50"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_stored_cost_is_the_counted_one(name: str) -> None:
    assert listed_cost(name) == cost(name), "run `python benchmarks/listed_costs.py`"


def test_every_listed_model_is_stored() -> None:
    assert [name for name in NAMES if listed_cost(name) is None] == [], "run `python benchmarks/listed_costs.py`"


def test_another_model_is_not_stored() -> None:
    assert listed_cost("resnet18d") is None
