"""What `import fullfield` loads, how long it takes, that it leaves timm as it was, and that imported names exist."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MEASURE = """
import json, sys, time
import timm
names = timm.list_models()
entrypoints = {name: timm.models.model_entrypoint(name) for name in names}
start = time.perf_counter()
import fullfield
seconds = time.perf_counter() - start
after = timm.list_models()
print(json.dumps({
    "seconds": seconds,
    "loaded": sorted(sys.modules),
    "gone": sorted(set(names) - set(after)),
    "new": sorted(set(after) - set(names)),
    "ours": sorted(info.name for info in fullfield.list_models() if info.source == "fullfield"),
    "changed": [name for name in names if timm.models.model_entrypoint(name) is not entrypoints[name]],
}))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=200)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    "name", ["pytorch_lightning", "torchmetrics", "matplotlib", "tyro", "jinja2", "tensorboard", "pyarrow"]
)
def test_import_loads_nothing_that_only_training_or_the_command_line_needs(measured: dict[str, Any], name: str) -> None:
    assert "fullfield.models.racnn" in measured["loaded"]
    assert not [module for module in measured["loaded"] if module.split(".")[0] == name]


def test_import_takes_less_than_three_seconds_beyond_timm(measured: dict[str, Any]) -> None:
    assert measured["seconds"] < 3.0


def test_list_of_timm_grows_by_exactly_our_names(measured: dict[str, Any]) -> None:
    assert measured["gone"] == []
    assert measured["new"] == measured["ours"]
    assert "racnn_tiny" in measured["ours"]


def test_models_of_timm_are_the_same_objects_as_before(measured: dict[str, Any]) -> None:
    assert measured["changed"] == []


def test_every_public_name_is_there() -> None:
    import fullfield

    for name in fullfield.__all__:
        assert getattr(fullfield, name) is not None
    assert set(fullfield.__all__) <= set(dir(fullfield))


def test_unknown_name_is_an_attribute_error() -> None:
    import fullfield

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fullfield.nothing


def _imported() -> list[tuple[str, str, str]]:
    """(program, module, name) of every `from fullfield... import name` of the programs beside the package."""
    found = []
    for folder in ("examples", "benchmarks", "studies"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fullfield":
                    program = str(path.relative_to(ROOT))
                    found += [(program, str(node.module), alias.name) for alias in node.names]
    return found


def test_names_that_the_programs_beside_the_package_import_exist() -> None:
    """Most of these programs run for too long for a test: this one finds what was renamed or moved under them."""
    found = _imported()
    assert {program.split("/")[0] for program, _, _ in found} == {"examples", "benchmarks", "studies"}
    missing = []
    for program, module, name in found:
        home = import_module(module)
        is_module = hasattr(home, "__path__") and find_spec(f"{module}.{name}") is not None
        if not is_module and not hasattr(home, name):
            missing.append(f"{program}: from {module} import {name}")
    assert missing == []
