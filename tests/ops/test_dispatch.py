"""Which path runs: the argument, else the environment variable, else the measured rule.

Paths give equal values, so what ran is seen from outside: by the torch operators that a call reaches.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fullfield import ops
from fullfield.errors import ConfigError

from .cases import normal, paths_and_rule

CALLS = {
    # 9×10 is no multiple of 4: padding, crop and the loop over windows all show.
    "region_pwconv": lambda path=None: ops.region_pwconv(
        normal(2, 8, 9, 10), torch.ones(2).double(), region_size=4, heads=2, path=path
    ),
    "dynamic_pwconv": lambda path=None: ops.dynamic_pwconv(
        normal(2, 8, 9, 10), torch.ones(2).double(), heads=2, path=path
    ),
    "region_pool": lambda path=None: ops.region_pool(normal(2, 8, 9, 10), 4, path=path),
    "region_gate": lambda path=None: ops.region_gate(normal(2, 8, 8, 12), normal(2, 8, 4, 4), path=path),
}
EVERY_PATH = [(operator, path) for operator in CALLS for path in ops.PATHS[operator]]


class RecordOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.reached = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reached.append((str(func), tuple(a for a in args if isinstance(a, str))))
        return func(*args, **(kwargs or {}))


def operators_reached(operator: str, path: str | None = None) -> tuple:
    with RecordOperators() as record:
        CALLS[operator](path)
    return tuple(record.reached)


@pytest.fixture(autouse=True)
def _no_path_forced(monkeypatch):
    for operator in CALLS:
        monkeypatch.delenv(f"FULLFIELD_PATH_{operator.upper()}", raising=False)


def test_every_operator_has_a_reference_and_a_faster_path():
    # The depthwise convolution has PyTorch's own path as its reference, and its tests in test_depthwise*.py.
    assert set(ops.PATHS) == {*CALLS, "depthwise_conv2d"}
    for operator, names in ops.PATHS.items():
        assert names[0] == ("reference" if operator in CALLS else "native"), operator
        assert len(names) == len(set(names)) >= 2, operator
    for operator in ("region_pwconv", "dynamic_pwconv"):
        assert set(ops.PATHS[operator]) >= {"sdpa", "bmm", "reference"}


def test_operators_are_exported():
    assert set(CALLS) <= set(ops.__all__)


@pytest.mark.parametrize("operator", CALLS)
def test_paths_are_different_programs(operator):
    # Otherwise the tests that compare paths with each other, and those below, would show nothing.
    programs = {operators_reached(operator, path) for path in ops.PATHS[operator]}
    assert len(programs) == len(ops.PATHS[operator])


@pytest.mark.parametrize("operator", CALLS)
def test_the_rule_chooses_one_of_the_paths(operator):
    programs = {operators_reached(operator, path) for path in ops.PATHS[operator]}
    assert operators_reached(operator) in programs


@pytest.mark.parametrize(("operator", "path"), EVERY_PATH)
def test_environment_variable_forces_a_path(operator, path, monkeypatch):
    expected = operators_reached(operator, path)
    monkeypatch.setenv(f"FULLFIELD_PATH_{operator.upper()}", path)
    assert operators_reached(operator) == expected


@pytest.mark.parametrize(("operator", "path"), EVERY_PATH)
def test_argument_wins_over_environment_variable(operator, path, monkeypatch):
    expected = operators_reached(operator, path)
    for other in ops.PATHS[operator]:
        monkeypatch.setenv(f"FULLFIELD_PATH_{operator.upper()}", other)
        assert operators_reached(operator, path) == expected


@pytest.mark.parametrize("operator", CALLS)
def test_environment_variable_of_one_operator_leaves_the_others_alone(operator, monkeypatch):
    others = {other: operators_reached(other) for other in CALLS if other != operator}
    for path in ops.PATHS[operator]:
        monkeypatch.setenv(f"FULLFIELD_PATH_{operator.upper()}", path)
        assert {other: operators_reached(other) for other in others} == others


@pytest.mark.parametrize("operator", CALLS)
def test_unknown_path_is_named_with_the_nearest(operator):
    with pytest.raises(ConfigError, match=r"(?s)'refrence'.*'reference'"):
        CALLS[operator]("refrence")


@pytest.mark.parametrize("operator", CALLS)
def test_unknown_path_in_the_environment_is_named_with_its_variable(operator, monkeypatch):
    variable = f"FULLFIELD_PATH_{operator.upper()}"
    monkeypatch.setenv(variable, "refrence")
    with pytest.raises(ConfigError, match="refrence") as caught:
        CALLS[operator]()
    assert variable in str(caught.value)
    assert "'reference'" in str(caught.value)


@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize("path", ["", "SDPA ", 3, True], ids=repr)
def test_odd_values_of_path_are_value_or_type_errors(operator, path):
    with pytest.raises((ValueError, TypeError), match="path"):
        CALLS[operator](path)


@pytest.mark.parametrize("operator", CALLS)
def test_all_paths_agree_in_float64(operator):
    results = [CALLS[operator](path) for path in paths_and_rule(operator)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-13)


def test_dispatch_keeps_no_state_between_calls(monkeypatch):
    before = operators_reached("region_pwconv")
    monkeypatch.setenv("FULLFIELD_PATH_REGION_PWCONV", "reference")
    CALLS["region_pwconv"]()
    monkeypatch.delenv("FULLFIELD_PATH_REGION_PWCONV")
    CALLS["region_pwconv"]("bmm")
    assert operators_reached("region_pwconv") == before
