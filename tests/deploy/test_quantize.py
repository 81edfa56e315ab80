"""Int8 files of both kinds: near the float file, described, and refused where calibration is bad."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fullfield.deploy.description import Description
from fullfield.deploy.engine import open_engine
from fullfield.deploy.graph import ExportGraph, export_module
from fullfield.deploy.quantize import quantize_onnx, quantize_openvino
from fullfield.errors import CheckpointError, ConfigError, MissingExtraError

from .test_graph import TINY, classifier

onnx = pytest.importorskip("onnx", reason="needs the extra fullfield[quantize]")
for library in ("onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(library, reason="needs the extra fullfield[quantize]")

Quantize = Callable[[str | Path, str | Path, Sequence[NDArray[Any]]], Path]
QUANTIZE: dict[str, Quantize] = {".onnx": quantize_onnx, ".xml": quantize_openvino}
BOTH = pytest.mark.parametrize("suffix", [".onnx", ".xml"])


@dataclass(frozen=True)
class Files:
    """One net in both formats."""

    graph: ExportGraph
    description: Description
    folder: Path

    def __getitem__(self, suffix: str) -> Path:
        return self.folder / f"net{suffix}"


def images(count: int, size: tuple[int, int] = (48, 64)) -> list[NDArray[Any]]:
    generator = np.random.default_rng(0)
    low = generator.random((count, 3, 4, 4), np.float32)  # patches: nets tell them apart better than noise
    return [np.kron(one, np.ones((1, size[0] // 4, size[1] // 4), np.float32))[None] for one in low]


def written(graph: ExportGraph, description: Description, folder: Path) -> Files:
    from fullfield.deploy.formats.onnx_file import write_onnx
    from fullfield.deploy.formats.openvino_file import write_openvino

    write_onnx(graph, description, folder / "net.onnx")
    write_openvino(graph, description, folder / "net.xml")
    return Files(graph, description, folder)


@pytest.fixture(scope="module")
def racnn(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return written(*export_module(classifier(**TINY)), tmp_path_factory.mktemp("int8"))


@BOTH
def test_int8_stays_near_the_module_at_sizes_that_it_was_not_fitted_at(
    suffix: str, racnn: Files, tmp_path: Path
) -> None:
    path = QUANTIZE[suffix](racnn[suffix], tmp_path / f"int8{suffix}", [*images(6), *images(2, (64, 64))])
    engine = open_engine(path, threads=1)
    assert engine.description == replace(racnn.description, precision="int8")
    for size in ((48, 64), (64, 64), (52, 72)):
        x = np.concatenate(images(4, size))
        with torch.no_grad():
            expected = racnn.graph(torch.from_numpy(x)).numpy()
        found = engine.run(x)["logits"]
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert 1e-6 < error < 0.1, size


def test_in_onnx_products_with_weights_are_int8_and_products_of_activations_are_not(
    racnn: Files, tmp_path: Path
) -> None:
    whole = onnx.load(racnn[".onnx"]).graph
    graph = onnx.load(quantize_onnx(racnn[".onnx"], tmp_path / "int8.onnx", images(2))).graph
    maker = {output: node for node in graph.node for output in node.output}

    def kinds(node: Any) -> set[str]:
        return {maker[name].op_type if name in maker else "" for name in node.input[:2]}

    stem, *convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert 1 + len(convolutions) == sum(node.op_type == "Conv" for node in whole.node)
    assert all(kinds(node) == {"DequantizeLinear"} for node in convolutions)
    (classifier_,) = [node for node in graph.node if node.op_type == "Gemm"]
    for outer in (stem, classifier_):  # the image's own product and the answer's
        assert "DequantizeLinear" not in kinds(outer)
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 8  # two a block
    assert not any("DequantizeLinear" in kinds(node) for node in products)
    scales = {one.name: one for one in graph.initializer}
    for node in convolutions:
        weight = maker[node.input[1]]
        stored = scales[weight.input[0]]
        assert stored.data_type == onnx.TensorProto.INT8
        assert list(scales[weight.input[1]].dims) == [stored.dims[0]]  # one scale for each output channel
        assert not onnx.numpy_helper.to_array(scales[weight.input[2]]).any()  # symmetric


def test_in_openvino_products_with_weights_are_int8_and_products_of_activations_are_not(
    racnn: Files, tmp_path: Path
) -> None:
    import openvino

    model = openvino.Core().read_model(quantize_openvino(racnn[".xml"], tmp_path / "int8.xml", images(2)))
    fed = {
        node.get_friendly_name(): node.input_value(0).get_node().get_type_name() == "FakeQuantize"
        for node in model.get_ops()
        if node.get_type_name() in ("Convolution", "GroupConvolution")
    }
    whole = openvino.Core().read_model(racnn[".xml"]).get_ops()
    assert len(fed) == sum(n.get_type_name() in ("Convolution", "GroupConvolution") for n in whole)
    assert [name for name, quantized in fed.items() if not quantized] == ["node_conv2d/WithoutBiases"]  # the stem
    products = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
    (classifier_,) = [node for node in products if node.input_value(1).get_partial_shape().rank.get_length() == 2]
    assert classifier_.input_value(0).get_node().get_type_name() != "FakeQuantize"
    computed = [node for node in products if node.input_value(1).get_partial_shape().rank.get_length() == 3]
    assert len(computed) == 8
    assert not any(v.get_node().get_type_name() == "FakeQuantize" for node in computed for v in node.input_values())


def test_a_net_of_a_first_and_a_last_product_is_refused(racnn: Files, tmp_path: Path) -> None:
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weights = {"stem": (4, 3, 3, 3), "classifier": (4, 5)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "stem"], ["maps"], "first"),
            helper.make_node("ReduceMax", ["maps", "axes"], ["pooled"], "pool", keepdims=0),
            helper.make_node("MatMul", ["pooled", "classifier"], ["logits"], "last"),
        ],
        "two products",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [None, 3, None, None])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, 5])],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
        + [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(model, {one.key: one.value for one in onnx.load(racnn[".onnx"]).metadata_props})
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="this one has none between them"):
        quantize_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", images(1))


@BOTH
def test_int8_makes_the_file_smaller(suffix: str, tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    files = written(graph, replace(described, height=64, width=64), tmp_path)
    path = QUANTIZE[suffix](files[suffix], tmp_path / f"int8{suffix}", images(2, (64, 64)))
    weights = {".onnx": ".onnx", ".xml": ".bin"}[suffix]
    assert path.with_suffix(weights).stat().st_size < 0.5 * files[suffix].with_suffix(weights).stat().st_size


@BOTH
def test_a_file_of_a_fixed_batch_is_fitted_to_images_one_by_one(suffix: str, tmp_path: Path) -> None:
    graph, described = export_module(classifier("test_resnet"))
    files = written(graph, replace(described, batch=4, height=32, width=32), tmp_path)
    path = QUANTIZE[suffix](files[suffix], tmp_path / f"int8{suffix}", images(5, (32, 32)))
    found = open_engine(path, threads=1).run(np.concatenate(images(4, (32, 32))))["logits"]
    assert np.isfinite(found).all()


@BOTH
@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        ([], "there are none"),
        ([np.full((1, 3, 48, 64), np.nan, np.float32)], "NaN"),
        ([np.zeros((1, 1, 48, 64), np.float32)], "shape"),
        ([np.zeros((3, 48, 64), np.float32)], "shape"),
        ([np.zeros((1, 3, 48, 64), np.uint8)], "uint8"),
        ([np.full((1, 3, 48, 64), 255, np.float32)], "values from 0 to 1"),
        ([np.full((1, 3, 48, 64), -2.1, np.float32)], "values from 0 to 1"),
    ],
)
def test_bad_calibration_is_refused_and_nothing_is_written(
    suffix: str, calibration: list[NDArray[Any]], reason: str, racnn: Files, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        QUANTIZE[suffix](racnn[suffix], tmp_path / f"int8{suffix}", calibration)
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_damaged_file_is_told(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="damaged"):
        QUANTIZE[suffix](path, tmp_path / f"int8{suffix}", images(1))


@BOTH
def test_an_int8_file_is_not_quantised_again(suffix: str, racnn: Files, tmp_path: Path) -> None:
    path = QUANTIZE[suffix](racnn[suffix], tmp_path / f"int8{suffix}", images(1))
    with pytest.raises(ConfigError, match="int8 is made of one in fp32"):
        QUANTIZE[suffix](path, tmp_path / f"again{suffix}", images(1))


@pytest.mark.parametrize(("suffix", "library"), [(".onnx", "onnxruntime"), (".xml", "nncf")])
def test_without_the_library_the_extra_is_named(
    suffix: str, library: str, racnn: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[quantize\]'"):
        QUANTIZE[suffix](racnn[suffix], tmp_path / f"int8{suffix}", images(1))
