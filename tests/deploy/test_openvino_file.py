"""OpenVINO's files, run by OpenVINO, against the modules that they were written from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fullfield.deploy.description import KEY, Description
from fullfield.deploy.graph import ExportGraph, export_module
from fullfield.errors import ConfigError, MissingExtraError, RunError

from .test_graph import TINY, classifier, detector, segmenter

openvino = pytest.importorskip("openvino", reason="needs the extra fullfield[export]")
pytest.importorskip("onnxscript", reason="needs the extra fullfield[export]")

from fullfield.deploy.formats.openvino_file import write_openvino  # noqa: E402

Written = tuple[ExportGraph, Path]
PADDED_OR_NOT = [(2, 96, 160), (1, 224, 224), (3, 64, 64), (1, 97, 130), (2, 50, 71), (1, 32, 32)]
DENSE = [(2, 96, 160), (1, 224, 224), (3, 64, 64)]


def compiled(path: Path) -> Any:
    return openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})


def described_in(path: Path) -> Description:
    return Description.from_json(openvino.Core().read_model(path).get_rt_info([KEY]).astype(str), path)


@torch.no_grad()
def difference(graph: ExportGraph, model: Any, images: Tensor) -> float:
    """The largest difference from PyTorch of all outputs, relative to the largest value of each."""
    outputs = graph(images)
    expected = outputs if isinstance(outputs, tuple) else (outputs,)
    found = list(model({"images": images.numpy()}).values())
    assert [(x.shape, x.dtype) for x in found] == [(tuple(x.shape), np.float32) for x in expected]
    return max(float(np.abs(a.numpy() - b).max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


@pytest.fixture(scope="module")
def racnn(tmp_path_factory: pytest.TempPathFactory) -> Written:
    graph, described = export_module(classifier(**TINY))
    return graph, write_openvino(graph, described, tmp_path_factory.mktemp("openvino") / "racnn.xml")


def test_one_file_of_racnn_gives_pytorchs_logits_at_any_size(racnn: Written) -> None:
    graph, path = racnn
    model = compiled(path)
    for batch, height, width in PADDED_OR_NOT:
        assert difference(graph, model, torch.rand(batch, 3, height, width)) < 1e-5, (batch, height, width)


def test_a_model_is_two_files_and_describes_itself(racnn: Written) -> None:
    path = racnn[1]
    assert {p.name for p in path.parent.iterdir()} == {"racnn.xml", "racnn.bin"}
    found = described_in(path)
    assert (found.task, found.classes, found.precision) == ("classify", ("a", "b", "c"), "fp32")
    assert (found.batch, found.height, found.width) == (None, None, None)


def test_names_of_classes_come_back_as_they_were(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    names = ('say "cat" & <dog>', "Grün\n", "犬")
    path = write_openvino(graph, replace(described, classes=names, batch=1, height=32, width=32), tmp_path / "x.xml")
    assert described_in(path).classes == names


@pytest.mark.slow
@pytest.mark.parametrize("free", ["batch", "width"])
def test_one_size_may_be_free_and_the_others_fixed(free: str, tmp_path: Path) -> None:
    graph, described = export_module(classifier(**TINY))
    sizes: dict[str, Any] = {"batch": 1, "height": 50, "width": 71} | {free: None}
    model = compiled(write_openvino(graph, replace(described, **sizes), tmp_path / "x.xml"))
    for other in (71, 64) if free == "width" else (71,):
        assert difference(graph, model, torch.rand(1, 3, 50, other)) < 1e-5
    if free == "batch":
        assert difference(graph, model, torch.rand(3, 3, 50, 71)) < 1e-5
    with pytest.raises(RuntimeError):
        model({"images": np.zeros((1, 3, 64, 71), np.float32)})


def test_half_has_half_the_weights_and_stays_near(racnn: Written, tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    whole = write_openvino(graph, described, tmp_path / "whole.xml")
    half = write_openvino(graph, described, tmp_path / "half.xml", half=True)
    assert half.with_suffix(".bin").stat().st_size < 0.55 * whole.with_suffix(".bin").stat().st_size
    assert described_in(half).precision == "fp16"
    assert difference(graph, compiled(half), torch.rand(2, 3, 96, 160)) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "retinanet"])
@pytest.mark.parametrize("net", ["test_resnet", "racnn_pico"])
def test_one_file_gives_a_detectors_boxes_and_scores_at_any_size(head: str, net: str, tmp_path: Path) -> None:
    graph, described = export_module(detector(head, net, **(TINY if net == "racnn_pico" else {})))
    model = compiled(write_openvino(graph, described, tmp_path / "x.xml"))
    for batch, height, width in DENSE:
        assert difference(graph, model, torch.rand(batch, 3, height, width)) < 1e-4
    assert [port.get_any_name() for port in model.outputs] == ["boxes", "scores"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fpn", "upernet", "unet", "segformer"])
def test_one_file_gives_a_segmenters_logits_at_any_size(head: str, tmp_path: Path) -> None:
    graph, described = export_module(segmenter(head=head))
    model = compiled(write_openvino(graph, described, tmp_path / "x.xml"))
    for batch, height, width in DENSE:
        assert difference(graph, model, torch.rand(batch, 3, height, width)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("net", ["van_b0", "moganet_xtiny", "unireplknet_a", "convnext_atto", "mobileone_s0"])
def test_one_file_of_each_kind_of_net_gives_pytorchs_logits_at_any_size(net: str, tmp_path: Path) -> None:
    graph, described = export_module(classifier(net))
    model = compiled(write_openvino(graph, described, tmp_path / "x.xml"))
    for batch, height, width in [(2, 96, 160), (1, 224, 224), (1, 97, 130)]:
        assert difference(graph, model, torch.rand(batch, 3, height, width)) < 1e-4


class Rounds(nn.Module):
    """A net with an operator that ONNX has and OpenVINO has not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.det((x * self.weight)[..., :2, :2])


def test_an_operator_that_openvino_lacks_is_named_and_an_old_pair_stays(tmp_path: Path) -> None:
    _, described = export_module(classifier("test_resnet"))
    path = tmp_path / "x.xml"
    for suffix in (".xml", ".bin"):
        path.with_suffix(suffix).write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"OpenVINO can't carry the operator .*Det.* of test_resnet"):
        write_openvino(ExportGraph(Rounds(), (0.5,) * 3, (0.5,) * 3), described, path)
    assert {(p.name, p.read_bytes()) for p in tmp_path.iterdir()} == {("x.xml", b"old"), ("x.bin", b"old")}


def test_when_saving_fails_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, described = export_module(classifier("test_resnet"))

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(RunError, match="is the disk full"):
        write_openvino(graph, replace(described, batch=1, height=32, width=32), tmp_path / "x.xml")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    with pytest.raises(RunError, match="can't be written"):
        write_openvino(graph, described, tmp_path / "none" / "x.xml")


def test_without_openvino_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, described = export_module(classifier("test_resnet"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[export\]'"):
        write_openvino(graph, described, tmp_path / "x.xml")


class Filtered(nn.Module):
    """A global filter: multiplied in the frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 16, 9))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        return torch.fft.irfft2(spectrum * self.weight, s=(16, 16), norm="ortho").mean((2, 3))


def test_a_fourier_transform_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    _, described = export_module(classifier(**TINY))
    one = replace(described, classes=("a", "b", "c"), batch=1, height=16, width=16)
    with pytest.raises(ConfigError, match="can't carry the operator DFT"):
        write_openvino(ExportGraph(Filtered(), (0.5,) * 3, (0.2,) * 3).eval(), one, tmp_path / "net.xml")
    assert list(tmp_path.iterdir()) == []
