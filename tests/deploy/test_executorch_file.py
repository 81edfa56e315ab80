"""ExecuTorch's programs, run by its runtime, against the modules that they were written from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullfield.deploy.description import Description
from fullfield.deploy.formats.executorch_file import write_executorch
from fullfield.deploy.graph import ExportGraph, export_module
from fullfield.errors import ConfigError, MissingExtraError

from .test_graph import TINY, classifier, detector


@pytest.fixture(scope="session")
def runtime() -> Any:
    return pytest.importorskip("executorch.runtime", reason="needs the extra fullfield[executorch]").Runtime.get()


@torch.no_grad()
def difference(graph: ExportGraph, runtime: Any, path: Path, images: Tensor) -> float:
    """The largest difference of all outputs, relative to the largest value of each."""
    outputs = graph(images)
    expected = outputs if isinstance(outputs, tuple) else (outputs,)
    program = runtime.load_program(path)
    found = program.load_method("forward").execute([images])
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in expected]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


def test_a_program_of_a_timm_net_gives_pytorchs_logits_and_describes_itself(runtime: Any, tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    path = write_executorch(graph, replace(described, batch=2, height=50, width=71), tmp_path / "x.pte")
    assert {p.name for p in tmp_path.iterdir()} == {"x.pte", "x.pte.json"}
    found = Description.from_json((tmp_path / "x.pte.json").read_text(), path)
    assert (found.classes, found.precision) == (described.classes, "fp32")
    assert (found.batch, found.height, found.width) == (2, 50, 71)
    assert difference(graph, runtime, path, torch.rand(2, 3, 50, 71)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 64, 64), (1, 50, 71)])
def test_a_program_of_racnn_gives_pytorchs_logits(size: tuple[int, int, int], runtime: Any, tmp_path: Path) -> None:
    graph, described = export_module(classifier(**TINY))
    batch, height, width = size
    path = write_executorch(graph, replace(described, batch=batch, height=height, width=width), tmp_path / "x.pte")
    assert difference(graph, runtime, path, torch.rand(batch, 3, height, width)) < 1e-4


@pytest.mark.slow
def test_a_program_gives_a_detectors_boxes_and_scores(runtime: Any, tmp_path: Path) -> None:
    graph, described = export_module(detector("fcos"))
    path = write_executorch(graph, replace(described, height=64, width=96), tmp_path / "x.pte")
    assert difference(graph, runtime, path, torch.rand(1, 3, 64, 96)) < 1e-4


class Unknown(nn.Module):
    """A net with an operator that ExecuTorch has not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x * self.weight).mean((2, 3))


def test_an_operator_that_executorch_lacks_is_named_and_an_old_file_stays(runtime: Any, tmp_path: Path) -> None:
    _, described = export_module(classifier("test_resnet"))
    path = tmp_path / "x.pte"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"ExecuTorch .* the operator .*airy_ai.* of test_resnet"):
        write_executorch(ExportGraph(Unknown(), (0.5,) * 3, (0.5,) * 3), described, path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.pte", b"old")]


def test_without_executorch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, described = export_module(classifier("test_resnet"))
    for name in ("executorch", "executorch.exir"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[executorch\]'"):
        write_executorch(graph, described, tmp_path / "x.pte")
    assert not list(tmp_path.iterdir())
