"""torch.export's archives against the modules that they were written from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fullfield.deploy.description import Description
from fullfield.deploy.formats.torch_file import EXTRA_FILE, write_torch
from fullfield.deploy.graph import ExportGraph, export_module
from fullfield.errors import ConfigError, RunError

from .test_graph import TINY, classifier, detector, segmenter

Written = tuple[ExportGraph, Path]
PADDED_OR_NOT = [(2, 96, 160), (1, 224, 224), (3, 64, 64), (1, 97, 130), (2, 50, 71)]


def loaded(path: Path) -> tuple[Any, Description]:
    extra = {EXTRA_FILE: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(check_guards=False), Description.from_json(extra[EXTRA_FILE], path)


@torch.no_grad()
def difference(graph: ExportGraph, other: Any, images: Tensor) -> float:
    """The largest difference of all outputs, relative to the largest value of each."""
    pairs = [out if isinstance(out, tuple | list) else (out,) for out in (graph(images), other(images))]
    assert [(x.shape, x.dtype) for x in pairs[0]] == [(x.shape, x.dtype) for x in pairs[1]]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*pairs, strict=True))


@pytest.fixture(scope="module")
def racnn(tmp_path_factory: pytest.TempPathFactory) -> Written:
    graph, described = export_module(classifier(**TINY))
    return graph, write_torch(graph, described, tmp_path_factory.mktemp("torch") / "racnn.pt2")


def test_one_archive_gives_the_logits_at_sizes_that_need_padding_and_that_do_not(racnn: Written) -> None:
    graph, path = racnn
    module, _ = loaded(path)
    for batch, height, width in PADDED_OR_NOT:
        assert difference(graph, module, torch.rand(batch, 3, height, width)) < 1e-5, (batch, height, width)


def test_the_archive_describes_itself(racnn: Written) -> None:
    _, described = loaded(racnn[1])
    assert (described.task, described.classes, described.precision) == ("classify", ("a", "b", "c"), "fp32")
    assert (described.batch, described.height, described.width) == (None, None, None)


def test_half_stays_near_and_is_told(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    module, found = loaded(write_torch(graph, described, tmp_path / "half.pt2", half=True))
    assert found.precision == "fp16"
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert difference(graph, module, torch.rand(2, 3, 64, 96)) < 1e-2


def test_a_fixed_size_is_fixed(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    module, found = loaded(write_torch(graph, replace(described, batch=1, height=64, width=96), tmp_path / "x.pt2"))
    assert (found.batch, found.height, found.width) == (1, 64, 96)
    assert difference(graph, module, torch.rand(1, 3, 64, 96)) < 1e-5
    with pytest.raises(RuntimeError, match="96"):
        module(torch.rand(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_one_archive_gives_a_detectors_boxes_and_scores_at_any_size(head: str, tmp_path: Path) -> None:
    graph, described = export_module(detector(head))
    module, _ = loaded(write_torch(graph, described, tmp_path / "x.pt2"))
    for batch, height, width in [(2, 96, 160), (1, 224, 224), (3, 64, 64), (1, 32, 96)]:
        assert difference(graph, module, torch.rand(batch, 3, height, width)) < 1e-5


@pytest.mark.slow
def test_one_archive_gives_a_segmenters_logits_at_any_size(tmp_path: Path) -> None:
    graph, described = export_module(segmenter())
    module, _ = loaded(write_torch(graph, described, tmp_path / "x.pt2"))
    for batch, height, width in [(2, 96, 160), (1, 224, 224), (3, 64, 64)]:
        assert difference(graph, module, torch.rand(batch, 3, height, width)) < 1e-5


def test_weights_beyond_float16_are_refused_and_an_old_file_stays(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    next(graph.net.parameters()).data.fill_(1e6)
    path = tmp_path / "x.pt2"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match="float16"):
        write_torch(graph, described, path, half=True)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.pt2", b"old")]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    with pytest.raises(RunError, match="can't be written"):
        write_torch(graph, replace(described, batch=1, height=32, width=32), tmp_path / "none" / "x.pt2")
