import importlib.util
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fullfield.deploy.engine import Engine, open_engine
from fullfield.deploy.engines import coreml_engine, executorch_engine, onnxruntime_engine
from fullfield.deploy.engines.torch_engine import named_outputs
from fullfield.errors import CheckpointError, ConfigError, MissingExtraError
from tests.deploy.small_files import SIDE, Small, describe, export, small_net, write_openvino, write_small, write_torch

TASKS = ("classify", "detect", "segment")
WRITERS = {".onnx": None, ".xml": write_openvino, ".pt2": write_torch}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Small]:
    folder = tmp_path_factory.mktemp("small")
    return {task: write_small(folder, task) for task in TASKS}


@pytest.fixture(scope="module")
def files(small: dict[str, Small], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small classifier in every format that runs here."""
    folder, one = tmp_path_factory.mktemp("files"), small["classify"]
    return {
        ".onnx": one.onnx,
        ".xml": write_openvino(one, folder / "classify.xml"),
        ".pt2": write_torch(one, folder / "classify.pt2"),
    }


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def expected(small: Small, images: np.ndarray) -> dict[str, np.ndarray]:
    return named_outputs(small.net(torch.from_numpy(images)), small.description.task)


def assert_same(found: Any, wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == np.float32
        assert np.allclose(found[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_the_outputs_are_pytorchs_at_any_batch_and_size(
    small: dict[str, Small], task: str, suffix: str, tmp_path: Path
) -> None:
    one = small[task]
    path = one.onnx if suffix == ".onnx" else write_openvino(one, tmp_path / "model.xml")
    engine = open_engine(path, threads=1)
    assert engine.description == one.description
    sizes = [(SIDE, SIDE)] if task == "classify" else [(64, 96), (160, 32)]
    for batch in (1, 3):
        for height, width in sizes:
            images = pixels(batch, 3, height, width)
            assert_same(engine.run(images), expected(one, images))
    engine.close()


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_engine_says_what_it_is_and_takes_several_threads(
    files: dict[str, Path], small: dict[str, Small], suffix: str
) -> None:
    engine = open_engine(files[suffix], threads=1)
    assert engine.name.endswith(" on CPU")
    assert engine.name.split()[0] in ("ONNX", "OpenVINO", "PyTorch")
    inputs = [pixels(1 + seed % 2, 3, SIDE, SIDE, seed=seed) for seed in range(12)]
    barrier = threading.Barrier(4)

    def ask(part: list[np.ndarray]) -> list[Any]:
        barrier.wait()
        return [engine.run(images) for images in part]

    with ThreadPoolExecutor(4) as pool:
        found = [one for part in pool.map(ask, [inputs[start::4] for start in range(4)]) for one in part]
    for images, outputs in zip([i for start in range(4) for i in inputs[start::4]], found, strict=True):
        assert_same(outputs, expected(small["classify"], images))


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_an_engine_returned_is_not_changed_by_its_next_run(files: dict[str, Path], suffix: str) -> None:
    engine = open_engine(files[suffix])
    first = engine.run(pixels(2, 3, SIDE, SIDE))["logits"]
    kept = first.copy()
    engine.run(pixels(2, 3, SIDE, SIDE, seed=1))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_replaced_or_emptied_while_open_changes_nothing(
    files: dict[str, Path], small: dict[str, Small], suffix: str, tmp_path: Path
) -> None:
    parts = [files[suffix], *([files[suffix].with_suffix(".bin")] if suffix == ".xml" else [])]
    copies = [tmp_path / part.name for part in parts]
    for part, copy in zip(parts, copies, strict=True):
        copy.write_bytes(part.read_bytes())
    engine = open_engine(copies[0])
    for copy in copies:
        with copy.open("r+b") as file:  # the same inode: a mapped file would change or crash
            file.truncate(10)
    images = pixels(2, 3, SIDE, SIDE)
    assert_same(engine.run(images), expected(small["classify"], images))


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_truncated_file_is_refused(files: dict[str, Path], suffix: str, share: float, tmp_path: Path) -> None:
    data = files[suffix].read_bytes()
    cut = tmp_path / files[suffix].name
    cut.write_bytes(data[: int(len(data) * share)])
    if suffix == ".xml":
        cut.with_suffix(".bin").write_bytes(files[suffix].with_suffix(".bin").read_bytes())
    with pytest.raises(CheckpointError, match=cut.name):
        open_engine(cut)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_weights_of_openvino_are_refused(files: dict[str, Path], share: float, tmp_path: Path) -> None:
    copy = tmp_path / "model.xml"
    copy.write_bytes(files[".xml"].read_bytes())
    data = files[".xml"].with_suffix(".bin").read_bytes()
    copy.with_suffix(".bin").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        open_engine(copy)


def test_openvino_without_its_second_file_says_so(files: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "model.xml"
    copy.write_bytes(files[".xml"].read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.bin is missing"):
        open_engine(copy)


def test_a_folder_or_nothing_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.onnx can't be read"):
        open_engine(tmp_path / "folder.onnx")
    with pytest.raises(CheckpointError, match=r"did you mean 'folder\.onnx'"):
        open_engine(tmp_path / "foldr.onnx")


def test_a_foreign_file_is_refused_with_the_way_out(small: dict[str, Small], tmp_path: Path) -> None:
    import onnx
    import openvino

    proto = onnx.load(small["classify"].onnx)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    openvino.save_model(openvino.convert_model(small["classify"].onnx), tmp_path / "foreign.xml")
    program = torch.export.export(small["classify"].net, (torch.rand(1, 3, SIDE, SIDE),))
    torch.export.save(program, tmp_path / "foreign.pt2")
    for suffix in WRITERS:
        with pytest.raises(CheckpointError, match="Fullfield did not export it; make one with `fullfield export`"):
            open_engine(tmp_path / f"foreign{suffix}")


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"version": 1, "task": "classify"}'):
        path = export(small_net("classify"), describe("classify"), tmp_path / "model.onnx", text=text)
        with pytest.raises(CheckpointError, match="its description can't be read"):
            open_engine(path)
    path = export(small_net("classify"), describe("classify"), path, text='{"version": 99}')
    with pytest.raises(CheckpointError, match="later Fullfield"):
        open_engine(path)


def test_outputs_of_another_task_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(small_net("classify"), describe("classify"), path, text=describe("detect").to_json())
    with pytest.raises(CheckpointError, match="gives logits; a file for detect takes images and gives boxes, scores"):
        open_engine(path)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (pixels(3, SIDE, SIDE), "have shape"),
        (pixels(0, 3, SIDE, SIDE), "have shape"),
        (pixels(1, 1, SIDE, SIDE), r"any x 3 x 24 x 24"),
        (pixels(1, 3, SIDE, SIDE + 1), "have shape"),
        (pixels(1, 3, SIDE, SIDE).astype(np.float64), "float64"),
        (np.full((1, 3, SIDE, SIDE), np.nan, np.float32), "NaN or infinity"),
        (np.full((1, 3, SIDE, SIDE), np.inf, np.float32), "NaN or infinity"),
    ],
)
def test_images_that_the_file_does_not_take_are_refused(
    files: dict[str, Path], suffix: str, images: np.ndarray, words: str
) -> None:
    engine = open_engine(files[suffix])
    with pytest.raises(ConfigError, match=words):
        engine.run(images)


def test_what_the_library_itself_refuses_is_a_sentence(tmp_path: Path) -> None:
    described = replace(describe("classify"), batch=2, height=SIDE, width=SIDE)  # the graph takes two at a time
    path = export(small_net("classify"), described, tmp_path / "model.onnx", text=describe("classify").to_json())
    with pytest.raises(ConfigError, match="ONNX Runtime can't compute images of shape"):
        open_engine(path).run(pixels(3, 3, SIDE, SIDE))


class Inside(nn.Module):
    """A graph with the preprocessing inside: one image of any size as uint8 pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2))


def test_a_file_with_the_preprocessing_inside_takes_uint8_pixels(tmp_path: Path) -> None:
    path = write_inside(tmp_path / "inside.onnx")
    engine: Engine = open_engine(path)
    image = np.random.default_rng(0).integers(0, 256, (1, 17, 9, 3), dtype=np.uint8)
    assert np.allclose(engine.run(image)["logits"], image.mean((1, 2)), rtol=1e-4)
    for wrong in (pixels(1, 17, 9, 3), np.concatenate([image, image]), image[..., :1]):
        with pytest.raises(ConfigError, match="images"):
            engine.run(wrong)


def write_inside(path: Path) -> Path:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in small_files
        torch.onnx.export(
            Inside(),
            (torch.zeros(1, 8, 8, 3, dtype=torch.uint8),),
            path,
            dynamo=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": {1: "h", 2: "w"}},
        )
    proto = onnx.load(path)
    text = replace(describe("classify"), batch=1, preprocessing_inside=True).to_json()
    onnx.helper.set_model_props(proto, {"fullfield": text})
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_an_impossible_number_of_threads_is_refused(files: dict[str, Path], suffix: str, threads: Any) -> None:
    with pytest.raises(ConfigError, match="threads is"):
        open_engine(files[suffix], threads=threads)


def test_onnx_on_a_gpu_that_is_not_there_says_what_to_do(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="install onnxruntime-gpu"):
        onnxruntime_engine.open(files[".onnx"], None, "cuda:0")
    with pytest.raises(ConfigError, match="not on 'tpu'"):
        onnxruntime_engine.open(files[".onnx"], None, "tpu")


def test_core_ml_says_that_it_needs_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(MissingExtraError, match=r"macOS alone.*--to onnx"):
        open_engine(package)


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="executorch is installed")
def test_executorch_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r"fullfield\[executorch\]"):
        open_engine(tmp_path / "model.pte")


class Method:
    """Stands for ExecuTorch's loaded method or Core ML's model, which can't run here."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def execute(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        found = self.net(*inputs)
        return list(found) if isinstance(found, tuple) else [found]

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.execute([torch.from_numpy(inputs["images"])])
        return dict(zip(("boxes", "scores"), (one.numpy() for one in found), strict=True))


def test_engines_that_can_not_run_here_name_their_outputs_in_order(small: dict[str, Small]) -> None:
    one, images = small["detect"], pixels(1, 3, 64, 96)
    for kind in (executorch_engine.ExecuTorchEngine, coreml_engine.CoreMLEngine):
        engine = kind(Method(one.net), one.description, "stand-in")
        assert_same(engine.run(images), expected(one, images))
        with pytest.raises(ConfigError, match="have shape"):
            engine.run(images[0])
        engine.close()


def test_a_graph_with_too_few_outputs_is_refused() -> None:
    with pytest.raises(CheckpointError, match="gives 1 outputs; for detect they are boxes, scores"):
        named_outputs(torch.zeros(1, 2), "detect")
