"""What verifying an export finds: differences, agreement, and the verdict by stated limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import fullfield
from fullfield.data import Preprocess
from fullfield.data.dense import DensePreprocess
from fullfield.data.image_data import Sample
from fullfield.deploy import verify as under_test
from fullfield.deploy.agreement import paired_objects
from fullfield.deploy.description import Description
from fullfield.deploy.photographs import Photographs
from fullfield.deploy.verification import Agreement, Checked, Limits, Verification, limits_for
from fullfield.deploy.verify import check_sizes, relative_difference, verify
from fullfield.errors import ConfigError, DataError, MissingExtraError
from fullfield.tasks.answers import Prediction
from fullfield.tasks.detection.answers import Detection
from fullfield.tasks.predict import likeliest_classes
from fullfield.tasks.source import OpenedModel
from tests.images import write_photos

CLASSES = ("blue", "green", "red")
Outputs = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    torch.manual_seed(0)
    model = fullfield.create_model("racnn_pico", dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_classes=3).eval()
    return OpenedModel("racnn_pico", model, CLASSES, Preprocess(image_size=64), trained=True, source="tiny")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    folder = write_photos(tmp_path_factory.mktemp("photos"), each=2)
    return Photographs("photos", tuple(Sample(path, 0) for path in sorted(folder.rglob("*.jpg"))))


def described(opened: OpenedModel, **more: Any) -> Description:
    return Description("classify", opened.name, opened.classes, opened.preprocess.to_dict(), **more)


def eager(opened: OpenedModel) -> Outputs:
    """Return the logits of the model by its own arithmetic, normalised here by numpy."""
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (opened.preprocess.mean, opened.preprocess.std))

    def run(images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        with torch.inference_mode():
            return {"logits": opened.model(torch.from_numpy((images - mean) / std)).numpy()}

    return run


class File:
    """A file that is not there: its engine gives what the test says, its answers are PyTorch's unless told."""

    def __init__(self, opened: OpenedModel, outputs: Outputs, answer: str | None = None, **description: Any) -> None:
        self.opened = opened
        self.description = described(opened, **description)
        self.name = "a fake"
        self.run = outputs
        self.said = answer
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def answer(self, images: list[Image.Image], **_: Any) -> list[Prediction]:
        if self.said is not None:
            return [Prediction(Path(), ((self.said, 1.0),)) for _ in images]
        return [Prediction(Path(), labels) for labels in likeliest_classes(self.opened, images, 1)]


@pytest.fixture
def looked_at(
    opened: OpenedModel, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Verification]:
    """Verify a `File` in place of a real one."""

    def look(file: File, **how: Any) -> Verification:
        monkeypatch.setattr(under_test, "open_engine", lambda *_a, **_k: file)
        monkeypatch.setattr(under_test, "Predictor", lambda *_a, **_k: file)
        path = tmp_path / "net.onnx"
        path.write_bytes(b"x" * 2000)
        return verify(path, opened, photographs, **{"seconds": 0, "description": file.description} | how)

    return look


def test_difference_is_the_largest_over_the_largest_value_of_pytorch() -> None:
    expected = np.array([[1.0, -4.0], [2.0, 0.0]], np.float32)
    assert relative_difference(expected, expected) == 0
    assert relative_difference(expected + np.array([[0, 0], [0, 0.5]], np.float32), expected) == 0.125
    assert relative_difference(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert relative_difference(np.ones((2, 2)), np.zeros((2, 2))) == float("inf")
    for bad in (np.full((2, 2), np.nan), np.full((2, 2), np.inf), expected[:1]):
        assert relative_difference(bad, expected) == float("inf")


def test_a_file_that_does_the_same_passes_at_three_sizes_of_which_one_is_padded(
    opened: OpenedModel, looked_at: Callable[..., Verification]
) -> None:
    file = File(opened, eager(opened))
    found = looked_at(file)
    assert found.passed
    assert found.difference is not None
    assert found.difference < 1e-6
    assert [(c.batch, c.height, c.width, c.padded) for c in found.checked] == [
        (1, 64, 64, False),
        (2, 96, 64, False),
        (3, 51, 69, True),
    ]
    assert found.agreement is not None
    assert (found.agreement.kind, found.agreement.share, found.agreement.images) == ("top-1", 1.0, 6)
    assert (found.megabytes, found.engine, found.task) == (0.002, "a fake", "classify")
    assert found.latency is None
    assert file.closed == 2


class Magnifier(torch.nn.Module):
    """Logits in which float32 has lost all digits: the same large number is added and taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1e7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.mean(dim=(2, 3)) + self.scale) - self.scale


@pytest.mark.parametrize("magnifies", [False, True])
def test_a_difference_is_told_from_the_rounding_of_the_weights(
    magnifies: bool, opened: OpenedModel, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(opened, model=Magnifier()) if magnifies else opened
    same = eager(model)
    file = File(model, lambda images: {"logits": same(images)["logits"] + (1 if magnifies else 0.01)})
    monkeypatch.setattr(under_test, "open_engine", lambda *_a, **_k: file)
    monkeypatch.setattr(under_test, "Predictor", lambda *_a, **_k: file)
    found = verify(tmp_path / "net.onnx", model, photographs, description=file.description, seconds=0)
    assert not found.passed
    for one in found.checked:
        assert one.rounding is not None
        assert one.rounding > 0.01 if magnifies else one.rounding < 1e-5
    assert all(("magnify rounding" in problem) == magnifies for problem in found.problems[:3])
    assert next(iter(opened.model.parameters())).dtype == torch.float32


def test_a_difference_fails_or_passes_by_the_precision(
    opened: OpenedModel, looked_at: Callable[..., Verification]
) -> None:
    same = eager(opened)
    for precision, passes in (("fp32", False), ("fp16", True), ("int8", True)):
        file = File(opened, lambda images: {"logits": same(images)["logits"] * 1.001}, precision=precision)
        found = looked_at(file)
        assert found.difference == pytest.approx(1e-3, rel=0.01)
        assert (found.passed, len(found.problems)) == (passes, 0 if passes else 3)
    assert (
        "at 1 × 64×64 pixels the outputs differ by 1.0e-03"
        in looked_at(File(opened, lambda images: {"logits": same(images)["logits"] * 1.001})).problems[0]
    )


def test_a_file_that_raises_at_another_size_fails_and_the_size_is_named(
    opened: OpenedModel, looked_at: Callable[..., Verification]
) -> None:
    same = eager(opened)

    def run(images: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        if images.shape[-1] == 69:
            raise ConfigError("the node pad_3 got 69")
        return same(images)

    found = looked_at(File(opened, run))
    assert found.passed is False
    assert found.problems == ("at 3 × 51×69 pixels the file gives no answer: the node pad_3 got 69",)
    assert found.agreement is None


def test_outputs_that_are_not_finite_or_have_other_names_fail(
    opened: OpenedModel, looked_at: Callable[..., Verification]
) -> None:
    for outputs in (lambda images: {"logits": np.full((len(images), 3), np.nan)}, lambda images: {"probs": images}):
        found = looked_at(File(opened, outputs))
        assert found.passed is False
        assert "not finite" in found.problems[0]
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["difference"] is None


def test_a_model_whose_own_outputs_are_not_finite_is_said_to_be_so(
    opened: OpenedModel, looked_at: Callable[..., Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_reference", lambda _: lambda _: {"logits": torch.full((1, 3), torch.inf)})
    assert "PyTorch's own outputs are not finite" in looked_at(File(opened, eager(opened))).problems[0]


def test_other_answers_fail_though_the_outputs_agree(
    opened: OpenedModel, looked_at: Callable[..., Verification]
) -> None:
    found = looked_at(File(opened, eager(opened), answer="no such class"))
    assert found.passed is False
    assert found.problems == ("top-1 agree to 0.00% over 6 images; fp32 asks for 100.0%",)


def test_a_file_of_one_size_is_looked_at_in_that_size(
    opened: OpenedModel, looked_at: Callable[..., Verification]
) -> None:
    found = looked_at(File(opened, eager(opened), batch=2, height=64, width=64))
    assert [(c.batch, c.height, c.width) for c in found.checked] == [(2, 64, 64)]
    assert (found.batch, found.height, found.width) == (2, 64, 64)


def test_a_library_that_is_not_there_is_neither_passed_nor_failed(
    opened: OpenedModel, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path, threads: int | None) -> Any:
        assert threads is None  # Core ML chooses them
        raise MissingExtraError("needs coremltools")

    monkeypatch.setattr(under_test, "open_engine", missing)
    package = tmp_path / "net.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights").write_bytes(b"x" * 5000)
    found = verify(package, opened, photographs, description=described(opened, height=64, width=64))
    assert (found.passed, found.not_run, found.megabytes, found.height) == (None, "needs coremltools", 0.005, 64)


def test_latency_is_a_ratio_of_calls_in_turn(opened: OpenedModel, looked_at: Callable[..., Verification]) -> None:
    found = looked_at(File(opened, eager(opened)), seconds=0.05)
    assert found.latency is not None
    assert (found.latency.batch, found.latency.height, found.latency.width) == (1, 64, 64)
    assert found.latency.low <= found.latency.ratio <= found.latency.high
    assert found.latency.rounds >= 5
    assert found.environment["threads"] == str(torch.get_num_threads())


def test_images_that_can_not_be_read_are_left_out_and_counted(
    opened: OpenedModel, photographs: Photographs, looked_at: Callable[..., Verification], tmp_path: Path
) -> None:
    bad = Sample(tmp_path / "bad.jpg", 0)
    bad.path.write_bytes(b"not an image")
    mixed = Photographs("mixed", (bad, *photographs.samples))
    assert len(list(mixed.read())) == 6
    with pytest.raises(DataError, match="no image of broken can be read"):
        list(Photographs("broken", (bad,)).read())


def test_images_are_spread_over_a_list_that_is_sorted_by_class(photographs: Photographs) -> None:
    assert [sample.path.parent.name for sample in photographs.spread(3).samples] == ["blue", "green", "red"]
    assert photographs.spread(100) is photographs


def test_sizes_of_a_dense_model_are_fed_in_multiples_of_32() -> None:
    preprocess = DensePreprocess(short_side=128).to_dict()
    free = Description("segment", "upernet x", ("a", "b"), preprocess)
    assert check_sizes(free) == [(128, 128), (160, 96), (115, 133)]
    assert check_sizes(replace(free, height=96, width=64)) == [(96, 64), (83, 37)]
    image = Image.new("RGB", (133, 115), (255, 0, 0))
    fed, seen = under_test._inputs([image], free)
    assert fed is seen
    assert fed.shape == (1, 3, 128, 160)
    assert fed[0, :, 0, 0].tolist() == [1, 0, 0]
    assert fed[0, :, 127, 159] == pytest.approx(preprocess["mean"])


def thing(left: float, score: float, label: int = 0) -> Detection:
    return Detection("thing", label, score, (left, 0.0, left + 10.0, 10.0))


def test_objects_are_paired_once_by_class_place_and_score() -> None:
    expected = [thing(0, 0.9), thing(50, 0.8), thing(100, 0.7, label=1)]
    assert paired_objects(expected, expected) == 3
    assert paired_objects([], expected) == 0
    assert paired_objects([thing(0, 0.9), thing(0.1, 0.9)], [thing(0, 0.9)]) == 1
    assert paired_objects([thing(5, 0.9)], [thing(0, 0.9)]) == 0  # they overlap by a third
    assert paired_objects([thing(1, 0.85)], [thing(0, 0.9)]) == 1
    assert paired_objects([thing(0, 0.7)], [thing(0, 0.9)]) == 0
    assert paired_objects([thing(0, 0.9, label=1)], [thing(0, 0.9)]) == 0


def test_random_weights_are_asked_for_no_agreement_below_fp32() -> None:
    assert limits_for("classify", "int8", trained=True) == Limits(None, 0.99)
    assert limits_for("classify", "int8", trained=False) == Limits(None, None)
    assert (
        limits_for("classify", "fp16", trained=False).difference
        == limits_for("classify", "fp16", trained=True).difference
    )
    assert limits_for("classify", "fp32", trained=False) == Limits(1e-4, 1.0)


def test_a_verification_says_all_that_it_rests_on() -> None:
    found = Verification(
        file="net.onnx",
        task="classify",
        model="net",
        precision="int8",
        trained=False,
        megabytes=1.5,
        limits=Limits(None, None),
        checked=(Checked(64, 64, 1, False, 0.25), Checked(51, 69, 3, True, float("inf"), "no")),
        agreement=Agreement("top-1", 0.5, 4, "photos", 4, 2),
        calibration="the run's photos",
    )
    told = found.to_dict()
    assert found.passed is False  # an output that is not there is never allowed
    assert (told["passed"], told["trained"], told["calibration"]) == (False, False, "the run's photos")
    assert told["checked"][0]["difference"] == 0.25
    assert told["checked"][1]["difference"] is None
    assert Verification.path_for(Path("a/net.onnx")) == Path("a/net.onnx.verification.json")
