"""`fullfield.export`: what it writes, what it refuses, and that nothing is left behind or lost where it fails."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fullfield
from fullfield.data import Preprocess, Sample
from fullfield.data.dense import DensePreprocess
from fullfield.deploy import export as under_test
from fullfield.deploy import photographs
from fullfield.deploy.description import Description
from fullfield.deploy.export import FORMATS, Exported, Format, export
from fullfield.deploy.photographs import for_calibration, for_verification
from fullfield.deploy.verification import Limits, Verification
from fullfield.errors import CheckpointError, ConfigError, DataError, ModelNotFoundError, RunError
from fullfield.tasks.dense_file import dense_metadata, save_dense
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.open import open_any
from fullfield.tasks.segmentation.segmenter import Segmenter
from fullfield.tasks.source import checkpoint_metadata
from tests.images import write_photos

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a classifier of 32-pixel images."""
    torch.manual_seed(0)
    model = fullfield.create_model("racnn_pico", num_classes=3, **TINY).eval()
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    fullfield.save(model, path, checkpoint_metadata(CLASSES, Preprocess(image_size=32)))
    return path


@pytest.fixture
def run(weights: Path, tmp_path: Path) -> Path:
    """A run folder whose data are still there."""
    photos = write_photos(tmp_path / "photos", each=10)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.safetensors").write_bytes(weights.read_bytes())
    (folder / "config.yaml").write_text(json.dumps({"data": str(photos), "val_share": 0.2, "seed": 0}))
    return folder


def write_fake(module: nn.Module, description: Description, path: Path, *, half: bool = False) -> Path:
    path.write_text(f"{description.to_json()} half={half}")
    path.with_suffix(".bin").write_bytes(b"weights")
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a function in place of the writer of OpenVINO's files, and of what verifies them."""

    def replace_writer(write: Any = write_fake, passed: bool = True) -> None:
        monkeypatch.setitem(sys.modules, "fullfield.deploy.formats.fake_file", SimpleNamespace(write_fake=write))
        format_ = Format(".xml", ("fake_file", "write_fake"), ("fp32", "fp16", "int8"), "quantize_fake")
        monkeypatch.setitem(FORMATS, "openvino", format_)
        monkeypatch.setattr(under_test, "verify_file", found)

    def found(path: Path, *_: Any, description: Description, calibration: str | None, **__: Any) -> Verification:
        assert path.exists()
        about: Any = {"task": "classify", "model": "net", "trained": True, "megabytes": 0.0}
        return Verification(
            path.name, precision=description.precision, limits=Limits(None, None), calibration=calibration, **about
        )

    return replace_writer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- where the file goes, and what is kept ---


def test_file_parts_and_verification_are_put_beside_the_weights(
    weights: Path, fake: Callable[..., None], tmp_path: Path
) -> None:
    fake()
    mine = tmp_path / "my.safetensors"
    mine.write_bytes(weights.read_bytes())
    done = export(mine, "openvino", precision="fp16")
    assert done.path == tmp_path / "my-fp16.xml"
    assert names(tmp_path) == ["my-fp16.bin", "my-fp16.xml", "my-fp16.xml.verification.json", "my.safetensors"]
    assert done.path.read_text().endswith("half=True")
    assert json.loads(Path(f"{done.path}.verification.json").read_text())["passed"] is True


@pytest.mark.parametrize(
    ("out", "made"), [("new/deep", "new/deep/net.xml"), ("new/other.xml", "new/other.xml"), (".", "net.xml")]
)
def test_out_names_a_file_or_a_folder(
    out: str, made: str, weights: Path, fake: Callable[..., None], tmp_path: Path
) -> None:
    fake()
    assert export(weights, "openvino", tmp_path / out, verify=False).path == tmp_path / made
    assert (tmp_path / made).exists()


def test_a_registered_model_goes_to_the_current_folder(
    fake: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    monkeypatch.chdir(tmp_path)
    done = export("mobilenetv3_small_050", "openvino", verify=False)
    assert (done.path, done.verification) == (Path("mobilenetv3_small_050.xml"), None)
    assert not done.description.trained


def test_nothing_is_overwritten_unasked_and_old_parts_go_with_the_file(
    weights: Path, fake: Callable[..., None], tmp_path: Path
) -> None:
    fake()
    for name in ("net.xml", "net.bin", "net.xml.verification.json"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(RunError, match=r"net\.xml exists and is never overwritten unasked.*--overwrite"):
        export(weights, "openvino", tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}
    export(weights, "openvino", tmp_path, verify=False, overwrite=True)
    assert names(tmp_path) == ["net.bin", "net.xml"]  # the old verification was of another file
    (tmp_path / "net.xml").unlink()
    with pytest.raises(RunError, match=r"net\.bin exists"):
        export(weights, "openvino", tmp_path)


def test_a_package_that_is_a_folder_is_replaced_whole(
    weights: Path, fake: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_folder(module: nn.Module, description: Description, path: Path, *, half: bool = False) -> Path:
        (path / "Data").mkdir(parents=True)
        (path / "Data" / "model").write_text("new")
        return path

    fake(write_folder)
    monkeypatch.setitem(FORMATS, "openvino", Format(".mlpackage", ("fake_file", "write_fake"), ("fp32",)))
    (tmp_path / "net.mlpackage").mkdir()
    (tmp_path / "net.mlpackage" / "old").write_text("old")
    export(weights, "openvino", tmp_path, overwrite=True)
    assert names(tmp_path) == ["net.mlpackage", "net.mlpackage.verification.json"]
    assert names(tmp_path / "net.mlpackage") == ["Data"]


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (ConfigError("ONNX can't carry the operator aten::fft"), ConfigError, "aten::fft"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), RunError, "the disk is full"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
    ],
)
def test_a_failing_export_leaves_nothing_behind(
    error: BaseException,
    raised: type[BaseException],
    says: str,
    weights: Path,
    fake: Callable[..., None],
    tmp_path: Path,
) -> None:
    def fail(module: nn.Module, description: Description, path: Path, *, half: bool = False) -> Path:
        path.write_text("half of a file")
        raise error

    fake(fail)
    with pytest.raises(raised, match=says):
        export(weights, "openvino", tmp_path / "new" / "folder")
    assert names(tmp_path) == []
    (tmp_path / "net.xml").write_text("precious")
    with pytest.raises(raised):
        export(weights, "openvino", tmp_path, overwrite=True)
    assert names(tmp_path) == ["net.xml"]
    assert (tmp_path / "net.xml").read_text() == "precious"


# --- bad input ---


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"to": "onxx"}, "there is no format 'onxx'; did you mean 'onnx'"),
        ({"to": "tflite"}, "there are onnx, openvino, torch, coreml, executorch"),
        ({"precision": "fp8"}, "there is no precision 'fp8'"),
        ({"to": "torch", "precision": "int8"}, "not in int8; onnx and openvino can be"),
        ({"to": "openvino", "preprocessing_inside": True}, "leave out --preprocessing-inside, or use onnx"),
        ({"precision": "int8", "preprocessing_inside": True}, "leave one of the two out"),
        ({"precision": "int8"}, "int8 has to be fitted to images.*--calibrate FOLDER"),
        ({"calibration": "photos"}, "calibration images are for int8"),
        ({"size": (32, 48)}, "a classifier looks at squares"),
        ({"size": (0, 32)}, "both at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"out": "net.xml"}, r"ends in \.onnx"),
    ],
)
def test_an_impossible_wish_is_refused_with_the_way_out(
    how: dict[str, Any], says: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        export(weights, **{"to": "onnx", "out": tmp_path / "out", **how})
    assert names(tmp_path) == []


def test_a_source_or_images_that_are_not_there_are_named(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for error, source, more in [
        (CheckpointError, tmp_path / "nett.safetensors", {}),
        (ModelNotFoundError, "racnn_pica", {}),
        (DataError, weights, {"images": tmp_path / "nowhere"}),
        (DataError, weights, {"images": tmp_path / "empty"}),
        (DataError, weights, {"precision": "int8", "calibration": tmp_path / "nowhere"}),
    ]:
        with pytest.raises(error):
            export(source, "onnx", tmp_path, **more)
    assert names(tmp_path) == ["empty"]


# --- the images that it uses ---


def test_a_run_is_compared_on_its_held_out_images_and_fitted_to_its_own(run: Path, tmp_path: Path) -> None:
    opened = open_any(run, device="cpu")
    compared, fitted = for_verification(opened, None), for_calibration(opened, None)
    assert (compared.source, len(compared)) == (f"val part of {tmp_path / 'photos'}", 6)
    assert (fitted.source, len(fitted)) == (f"train part of {tmp_path / 'photos'}", 24)
    assert not {sample.path for sample in compared.samples} & {sample.path for sample in fitted.samples}
    mine = write_photos(tmp_path / "mine", each=1)
    assert [sample.path.parent.name for sample in for_verification(opened, mine).samples] == list(CLASSES)


def test_a_small_test_part_is_filled_up_with_validation_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_any(run, device="cpu")
    splits = {name: [Sample(Path(f"{name}{i}.jpg"), 0) for i in range(100)] for name in ("train", "val")}
    splits["test"] = [Sample(Path(f"test{i}.jpg"), 0) for i in range(150)]
    monkeypatch.setattr(photographs, "_read_data", lambda _: SimpleNamespace(source="cells", splits=splits))
    compared, fitted = for_verification(opened, None), for_calibration(opened, None)
    assert (compared.source, fitted.source) == ("test and val parts of cells", "train part of cells")
    assert compared.samples == (*splits["test"], *splits["val"][::2])
    assert len(fitted) == 100
    splits["test"] *= 2
    assert for_verification(opened, None).source == "test part of cells"
    assert len(for_verification(opened, None)) == 200


def test_a_run_whose_images_are_gone_is_compared_on_the_sample_and_not_quantized(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    opened = open_any(run, device="cpu")
    assert for_verification(opened, None).source == "sample:blood_cells"
    with pytest.raises(ConfigError, match="are not to be found"):
        for_calibration(opened, None)


def test_a_run_is_exported_into_its_folder_under_its_name(run: Path, fake: Callable[..., None]) -> None:
    fake()
    assert export(run, "openvino").path == run / "run.xml"


def test_without_a_run_the_sample_of_the_task_is_used(weights: Path) -> None:
    found = for_verification(open_any(weights, device="cpu"), None)
    assert (found.source, len(found)) == ("sample:blood_cells", 200)
    assert len({sample.path.parent for sample in found.samples}) > 3


def test_int8_is_made_of_a_float32_file_and_says_what_it_was_fitted_to(
    weights: Path, fake: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(source: Path, target: Path, arrays: list[Any]) -> Path:
        told = json.loads(source.read_text().split(" half")[0])
        assert (source.name, told["precision"]) == ("net-int8.xml", "fp32")
        assert [(a.shape, a.dtype) for a in arrays] == [((1, 3, 32, 32), np.float32)] * 6
        assert 0 <= min(a.min() for a in arrays) < max(a.max() for a in arrays) <= 1
        return write_fake(nn.Identity(), Description("classify", "q", CLASSES, {}), target)

    fake()
    monkeypatch.setitem(sys.modules, "fullfield.deploy.quantize", SimpleNamespace(quantize_fake=quantize))
    photos = write_photos(tmp_path / "photos", each=2)
    done = export(weights, "openvino", tmp_path / "out", precision="int8", calibration=photos)
    assert done.verification is not None
    assert (done.verification.calibration, done.verification.precision) == (str(photos), "int8")
    assert names(tmp_path / "out") == ["net-int8.bin", "net-int8.xml", "net-int8.xml.verification.json"]


# --- real files ---


@pytest.fixture(scope="module")
def sound(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The ONNX file of `weights`."""
    folder = tmp_path_factory.mktemp("sound")
    return export(weights, "onnx", folder, images=write_photos(folder / "photos", each=2), timing_seconds=0.05)


def test_onnx_of_a_classifier_takes_any_size_and_passes(sound: Exported) -> None:
    found, folder = sound.verification, sound.path.parent
    assert found is not None
    assert (found.passed, found.problems) == (True, ())
    assert found.difference is not None
    assert found.difference < 1e-5
    assert (found.batch, found.height, found.width) == (None, None, None)
    assert [one.padded for one in found.checked] == [False, False, True]
    assert found.megabytes == pytest.approx(sound.path.stat().st_size / 1e6, abs=1e-3)
    assert names(folder) == ["net.onnx", "net.onnx.verification.json", "photos"]
    assert json.loads(Path(f"{sound.path}.verification.json").read_text()) == json.loads(json.dumps(found.to_dict()))


def test_a_file_that_computes_something_else_is_kept_and_fails(
    sound: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(module: nn.Module, description: Description, path: Path, *, half: bool = False) -> Path:
        path.write_bytes(sound.path.read_bytes())
        return path

    torch.manual_seed(1)
    model = fullfield.create_model("racnn_pico", num_classes=3, **TINY).eval()
    fullfield.save(model, tmp_path / "net.safetensors", checkpoint_metadata(CLASSES, Preprocess(image_size=32)))
    monkeypatch.setitem(sys.modules, "fullfield.deploy.formats.another", SimpleNamespace(write=write_another))
    monkeypatch.setitem(FORMATS, "onnx", Format(".onnx", ("another", "write"), ("fp32",)))
    found = export(tmp_path / "net.safetensors", "onnx", timing_seconds=0).verification
    assert found is not None
    assert (found.passed, (tmp_path / "net.onnx").exists()) == (False, True)
    assert "at 1 × 32×32 pixels the outputs differ by" in found.problems[0]
    assert json.loads((tmp_path / "net.onnx.verification.json").read_text())["passed"] is False


def dense(task: str, folder: Path) -> Path:
    """Save a small model of a dense task."""
    torch.manual_seed(0)
    preprocess = DensePreprocess(64, 107)
    model: Any
    if task == "segment":
        arguments: dict[str, Any] = {"channels": 16, "auxiliary": 0.0}
        model = Segmenter("racnn_pico", "upernet", 3, preprocess=preprocess, head_arguments=arguments, **TINY)
        more: dict[str, Any] = {"colours": [[0, 0, 0]] * 3, "ignore_index": 255}
    else:
        arguments = {"fpn_channels": 16, "convs": 1, "norm": "none", "score_threshold": 0.0}
        model = Detector("racnn_pico", "fcos", 3, preprocess=preprocess, head_arguments=arguments, **TINY)
        nn.init.constant_(model.head.head.classification_head.cls_logits.bias, -1.0)  # or no object is sure enough
        more = {}
    path = folder / f"{task}.safetensors"
    return save_dense(model.eval(), path, dense_metadata(model, CLASSES, preprocess, task, **more))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize(("task", "kind"), [("segment", "pixels"), ("detect", "objects")])
def test_file_of_a_dense_model_passes(task: str, kind: str, to: str, tmp_path: Path) -> None:
    found = export(dense(task, tmp_path), to, timing_seconds=0).verification
    assert found is not None
    assert (found.passed, found.problems) == (True, ())
    assert found.agreement is not None
    assert (found.agreement.kind, found.agreement.images) == (kind, 16)
    assert found.agreement.answers > 0


def test_a_dense_model_is_fixed_to_multiples_of_32(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiples of 32: use 96 × 128"):
        export(dense("segment", tmp_path), "onnx", size=(70, 100))
