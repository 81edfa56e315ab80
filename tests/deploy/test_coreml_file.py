"""Core ML packages as far as they can be checked off a Mac: the graph's operators, axes, names and shapes.

The numbers are checked one step before: the graph that is converted is run by PyTorch.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.deploy.description import KEY, Description
from fullfield.deploy.formats.static_graph import MAX_AXES, at_one_size, capture_static
from fullfield.deploy.graph import ExportGraph, export_module
from fullfield.errors import ConfigError, MissingExtraError, RunError

from .test_graph import TINY, classifier, detector, segmenter


@pytest.fixture(scope="session")
def coremltools() -> Any:
    return pytest.importorskip("coremltools", reason="needs the extra fullfield[coreml]")


def write(*arguments: Any, **options: Any) -> Path:
    from fullfield.deploy.formats.coreml_file import write_coreml

    return write_coreml(*arguments, **options)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 64, 64), (1, 50, 71), (2, 97, 33)])
def test_the_graph_of_one_size_gives_the_logits_in_few_axes_and_without_negative_padding(
    size: tuple[int, int, int],
) -> None:
    graph, described = export_module(classifier(**TINY))
    batch, height, width = size
    program = capture_static(graph, replace(described, batch=batch, height=height, width=width))
    images = torch.rand(batch, 3, height, width)
    expected = graph(images)
    assert (program.module()(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    values = [n.meta.get("val") for n in nodes]  # a check of shapes has none
    assert max(value.ndim for value in values if isinstance(value, Tensor)) <= MAX_AXES
    pads = (torch.ops.aten.pad.default, torch.ops.aten.constant_pad_nd.default)
    assert all(min(n.args[1]) >= 0 for n in nodes if n.target in pads)


def test_free_sizes_are_set_by_the_preprocessing() -> None:
    _, described = export_module(classifier(**TINY))
    found = at_one_size(described)
    assert (found.batch, found.height, found.width) == (1, 224, 224)
    for preprocess, side in ((DensePreprocess(), 512), (DensePreprocess(short_side=800, long_side=1333), 800)):
        dense = replace(described, task="segment", preprocess=preprocess.to_dict(), width=96)
        found = at_one_size(dense)
        assert (found.batch, found.height, found.width) == (1, side, 96)


@pytest.mark.parametrize("half", [False, True])
def test_a_package_has_the_names_shapes_and_description(half: bool, coremltools: Any, tmp_path: Path) -> None:
    graph, described = export_module(classifier(**TINY))
    path = write(graph, replace(described, height=50, width=71), tmp_path / "x.mlpackage", half=half)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mlpackage"]
    spec = coremltools.utils.load_spec(str(path))
    (images,), (logits,) = spec.description.input, spec.description.output
    float32 = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    for port, name, shape in ((images, "images", [1, 3, 50, 71]), (logits, "logits", [1, 3])):
        array = port.type.multiArrayType
        assert (port.name, list(array.shape), array.dataType) == (name, shape, float32)
    found = Description.from_json(spec.description.metadata.userDefined[KEY], path)
    assert (found.classes, found.precision) == (described.classes, "fp16" if half else "fp32")
    assert (found.batch, found.height, found.width) == (1, 50, 71)
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    kinds = Counter(op.type for op in block.operations)
    traced = torch.export.export(graph, (torch.rand(1, 3, 50, 71),)).graph.nodes
    assert kinds["conv"] == sum(n.target is torch.ops.aten.conv2d.default for n in traced)
    assert kinds["matmul"] == 8  # two a block, of activations with activations
    for op in block.operations:
        assert all(len(out.type.tensorType.dimensions) <= 5 for out in op.outputs), op.type


@pytest.mark.slow
@pytest.mark.parametrize("opened", [lambda: detector("fcos"), lambda: detector("retinanet"), segmenter])
def test_dense_nets_are_converted(opened: Any, coremltools: Any, tmp_path: Path) -> None:
    graph, described = export_module(opened())
    path = write(graph, replace(described, height=64, width=96), tmp_path / "x.mlpackage")
    names = [port.name for port in coremltools.utils.load_spec(str(path)).description.output]
    assert names == (["boxes", "scores"] if described.task == "detect" else ["logits"])


def test_a_package_replaces_what_is_there_and_a_failure_leaves_it(
    coremltools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, described = export_module(classifier("test_resnet"))
    described = replace(described, height=32, width=32)
    path = tmp_path / "x.mlpackage"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(coremltools.models.MLModel, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(RunError, match="the disk is full"):
            write(graph, described, path)
    assert [p.name for p in tmp_path.rglob("*")] == ["x.mlpackage", "old"]
    write(graph, described, path)
    assert not (path / "old").exists()
    assert (path / "Manifest.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x.mlpackage"]


class Unknown(nn.Module):
    """A net with an operator that Core ML has not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x * self.weight).mean((2, 3))


def test_an_operator_that_core_ml_lacks_is_named_and_nothing_is_written(coremltools: Any, tmp_path: Path) -> None:
    _, described = export_module(classifier("test_resnet"))
    with pytest.raises(ConfigError, match=r"Core ML can't carry the operator .*airy_ai.* of test_resnet"):
        write(ExportGraph(Unknown(), (0.5,) * 3, (0.5,) * 3), described, tmp_path / "x.mlpackage")
    assert not list(tmp_path.iterdir())


def test_without_coremltools_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, described = export_module(classifier("test_resnet"))
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[coreml\]'"):
        write(graph, described, tmp_path / "x.mlpackage")
