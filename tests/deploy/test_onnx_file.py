"""ONNX files, run by ONNX Runtime, against the modules that they were written from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fullfield.data import Preprocess, eval_transform
from fullfield.data.sample import sample_path
from fullfield.deploy.description import KEY, Description
from fullfield.deploy.formats import onnx_file
from fullfield.deploy.formats.onnx_file import write_onnx
from fullfield.deploy.graph import ExportGraph, export_module
from fullfield.errors import ConfigError, RunError

from .test_graph import TINY, classifier, detector, segmenter

onnx = pytest.importorskip("onnx", reason="needs the extra fullfield[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra fullfield[export]")

Sizes = Iterable[tuple[int, int, int]]
TOLERANCE = 0.02  # a pixel may differ by 1 of 255 where Pillow and ONNX Runtime round otherwise
DENSE: Sizes = [(2, 96, 160), (1, 224, 224), (3, 64, 64), (1, 32, 32)]
Written = tuple[ExportGraph, Path]


def outputs_of(path: Path, inputs: NDArray[Any]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: inputs}))


@torch.no_grad()
def difference(graph: ExportGraph, path: Path, images: Tensor) -> float:
    """The largest difference from PyTorch of all outputs, relative to the largest value of each."""
    outputs = graph(images)
    expected = outputs if isinstance(outputs, tuple) else (outputs,)
    found = outputs_of(path, images.numpy())
    assert [x.shape for x in found] == [tuple(x.shape) for x in expected]
    assert all(x.dtype == np.float32 for x in found)
    return max(float(np.abs(a.numpy() - b).max() / a.abs().max()) for a, b in zip(expected, found, strict=True))


@pytest.fixture(scope="module")
def racnn(tmp_path_factory: pytest.TempPathFactory) -> Written:
    graph, described = export_module(classifier(**TINY))
    return graph, write_onnx(graph, described, tmp_path_factory.mktemp("onnx") / "racnn.onnx")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Written:
    graph, described = export_module(classifier("test_resnet"))
    return graph, write_onnx(graph, described, tmp_path_factory.mktemp("onnx") / "resnet.onnx")


@pytest.mark.parametrize("size", [(2, 96, 160), (1, 224, 224), (3, 64, 64), (1, 97, 130), (2, 33, 47), (1, 32, 32)])
def test_one_file_of_racnn_gives_pytorchs_logits_at_any_size(racnn: Written, size: tuple[int, int, int]) -> None:
    assert difference(*racnn, torch.rand(size[0], 3, *size[1:])) < 1e-5


@pytest.mark.parametrize("size", [(2, 96, 160), (3, 97, 33), (1, 32, 32)])
def test_one_file_of_a_timm_net_gives_pytorchs_logits_at_any_size(resnet: Written, size: tuple[int, int, int]) -> None:
    assert difference(*resnet, torch.rand(size[0], 3, *size[1:])) < 1e-5


@pytest.mark.parametrize("head", ["fcos", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_a_file_of_one_size_gives_a_detectors_boxes_and_scores(head: str, tmp_path: Path) -> None:
    graph, described = export_module(detector(head))
    path = write_onnx(graph, replace(described, batch=1, height=64, width=96), tmp_path / "detector.onnx")
    assert difference(graph, path, torch.rand(1, 3, 64, 96)) < 1e-4
    assert [one.name for one in onnx.load(path).graph.output] == ["boxes", "scores"]


@pytest.mark.slow
@pytest.mark.parametrize("net", ["test_resnet", "racnn_pico"])
@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_one_file_gives_a_detectors_boxes_and_scores_at_any_size(head: str, net: str, tmp_path: Path) -> None:
    graph, described = export_module(detector(head, net, **(TINY if net == "racnn_pico" else {})))
    path = write_onnx(graph, described, tmp_path / "detector.onnx")
    for batch, height, width in DENSE:
        assert difference(graph, path, torch.rand(batch, 3, height, width)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fpn", "upernet", "unet", "segformer"])
def test_one_file_gives_a_segmenters_logits_at_any_size(head: str, tmp_path: Path) -> None:
    graph, described = export_module(segmenter(head=head))
    path = write_onnx(graph, described, tmp_path / "segmenter.onnx")
    for batch, height, width in [*DENSE, (1, 97, 130), (2, 33, 47)]:
        assert difference(graph, path, torch.rand(batch, 3, height, width)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("net", ["van_b0", "moganet_xtiny", "unireplknet_a", "convnext_atto", "mobileone_s0"])
def test_one_file_of_each_kind_of_net_gives_pytorchs_logits_at_any_size(net: str, tmp_path: Path) -> None:
    graph, described = export_module(classifier(net))
    path = write_onnx(graph, described, tmp_path / "net.onnx")
    for batch, height, width in [(2, 96, 160), (1, 224, 224), (1, 97, 130)]:
        assert difference(graph, path, torch.rand(batch, 3, height, width)) < 1e-4


@pytest.mark.slow
def test_one_file_of_a_net_with_fourier_filters_gives_pytorchs_logits_at_any_size(tmp_path: Path) -> None:
    graph, described = export_module(classifier("hornet_tiny_gf", depths=(1, 1, 2, 1), dims=(16, 32, 64, 128)))
    path = write_onnx(graph, described, tmp_path / "net.onnx")
    for batch, height, width in [(2, 160, 288), (1, 224, 224), (1, 97, 130)]:
        assert difference(graph, path, torch.rand(batch, 3, height, width)) < 1e-4


@pytest.mark.slow
def test_a_file_of_a_net_of_one_size_takes_any_batch_of_it(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_vit", Preprocess(160)))
    path = write_onnx(graph, described, tmp_path / "net.onnx")
    for batch in (1, 3):
        assert difference(graph, path, torch.rand(batch, 3, 160, 160)) < 1e-4


def test_the_metadata_describe_the_model_to_us_and_to_others(racnn: Written) -> None:
    proto = onnx.load(racnn[1])
    found = {entry.key: entry.value for entry in proto.metadata_props}
    described = Description.from_json(found[KEY], racnn[1])
    assert (described.task, described.classes, described.precision) == ("classify", ("a", "b", "c"), "fp32")
    assert (described.batch, described.height, described.width) == (None, None, None)
    assert json.loads(found["names"]) == ["a", "b", "c"]
    assert found["task"] == "classify"


def test_the_files_sizes_are_named_and_its_weights_are_within(racnn: Written) -> None:
    proto = onnx.load(racnn[1], load_external_data=False)
    (images,) = proto.graph.input
    assert images.name == "images"
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    (logits,) = proto.graph.output
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 3]
    assert not any(onnx.external_data_helper.uses_external_data(one) for one in proto.graph.initializer)
    assert [p.name for p in racnn[1].parent.iterdir()] == ["racnn.onnx"]


def test_every_convolutions_weight_is_stored_so_that_it_can_be_quantised(racnn: Written) -> None:
    graph = onnx.load(racnn[1]).graph
    stored = {one.name for one in graph.initializer}
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert weights
    assert set(weights) <= stored
    assert stored <= {name for node in graph.node for name in node.input}


def test_fixed_sizes_are_fixed_in_the_file(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    path = write_onnx(graph, replace(described, batch=1, height=64, width=96), tmp_path / "net.onnx")
    (images,) = onnx.load(path).graph.input
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [1, 3, 64, 96]


def test_in_half_the_file_has_half_the_size_and_takes_and_gives_float32(resnet: Written, tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    path = write_onnx(graph, described, tmp_path / "half.onnx", half=True)
    assert path.stat().st_size < 0.55 * resnet[1].stat().st_size
    assert difference(graph, path, torch.rand(2, 3, 96, 160)) < 1e-2
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert Description.from_json(found[KEY], path).precision == "fp16"


@pytest.mark.slow
def test_in_half_racnns_logits_stay_near(racnn: Written, tmp_path: Path) -> None:
    graph, described = export_module(classifier(**TINY))
    path = write_onnx(graph, described, tmp_path / "half.onnx", half=True)
    assert difference(graph, path, torch.rand(2, 3, 97, 160)) < 1e-2


@pytest.fixture(scope="module", params=["bilinear", "bicubic"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, Preprocess]:
    preprocess = Preprocess(64, 0.9, interpolation=request.param)
    graph, described = export_module(classifier("test_resnet", preprocess))
    path = tmp_path_factory.mktemp("onnx") / "whole.onnx"
    return (graph, write_onnx(graph, described, path, preprocessing_inside=True)), preprocess


def test_preprocessing_inside_gives_the_logits_of_our_own_on_photographs(whole: tuple[Written, Preprocess]) -> None:
    (graph, path), preprocess = whole
    transform = eval_transform(preprocess)
    photographs = sorted((sample_path("blood_cells_boxes")).rglob("*.jpg"))[:3]
    photographs += [p for kind in ("WBC", "RBC") for p in sorted(sample_path("blood_cells").rglob(f"{kind}/*.jpg"))[:3]]
    assert len(photographs) == 9
    for photograph in photographs:
        image = Image.open(photograph).convert("RGB")
        (found,) = outputs_of(path, np.asarray(image)[None])
        with torch.no_grad():
            expected = graph.net(transform(image)[None]).numpy()
        assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max(), photograph.name


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (333, 47), (700, 701), (9, 300)])
def test_preprocessing_inside_cuts_the_same_square_at_every_shape(
    whole: tuple[Written, Preprocess], size: tuple[int, int], tmp_path: Path
) -> None:
    (_, path), preprocess = whole
    proto = onnx.load(path)
    onnx.utils.extract_model(path, tmp_path / "front.onnx", ["pixels"], ["preprocess/values"])
    ramp = np.linspace(0, 1, size[0])[:, None, None] * 90 + np.linspace(0, 1, size[1])[None, :, None] * 90
    pixels = (ramp + np.array([0, 30, 60])).astype(np.uint8)
    (found,) = outputs_of(tmp_path / "front.onnx", pixels[None])
    plain = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    expected = eval_transform(plain)(Image.fromarray(pixels))[None].numpy()
    assert np.abs(found - expected).max() * 255 < 2.01
    assert [one.name for one in proto.graph.input] == ["pixels"]


def test_preprocessing_inside_is_told_in_the_metadata(whole: tuple[Written, Preprocess]) -> None:
    path = whole[0][1]
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    described = Description.from_json(found[KEY], path)
    assert (described.preprocessing_inside, described.batch, described.height) == (True, 1, None)


def test_preprocessing_inside_is_refused_for_lanczos_and_for_dense_tasks(tmp_path: Path) -> None:
    for opened, reason in (
        (classifier("test_resnet", Preprocess(64, interpolation="lanczos")), "Resize has no lanczos"),
        (detector("fcos"), "classifiers alone"),
    ):
        with pytest.raises(ConfigError, match=reason):
            write_onnx(*export_module(opened), tmp_path / "x.onnx", preprocessing_inside=True)
    assert not list(tmp_path.iterdir())


class Unknown(nn.Module):
    """A net with an operator that ONNX has not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x * self.weight).mean((2, 3))


def test_an_operator_that_onnx_lacks_is_named_and_an_old_file_stays(tmp_path: Path) -> None:
    _, described = export_module(classifier("test_resnet"))
    path = tmp_path / "x.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"ONNX can't carry the operator aten\.special_airy_ai of test_resnet"):
        write_onnx(ExportGraph(Unknown(), (0.5,) * 3, (0.5,) * 3), described, path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.onnx", b"old")]


def test_weights_that_do_not_fit_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="GiB of weights"):
        write_onnx(*export_module(classifier("test_resnet")), tmp_path / "x.onnx")


@pytest.mark.slow
def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    with pytest.raises(RunError, match="can't be written"):
        write_onnx(graph, replace(described, batch=1, height=32, width=32), tmp_path / "none" / "x.onnx")
