import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fullfield
from fullfield.data import eval_transform, read_image
from fullfield.data.dense import DensePreprocess
from fullfield.data.preprocess import Preprocess
from fullfield.deploy.engine import Engine
from fullfield.deploy.file_model import FileModel
from fullfield.deploy.predictor import Predictor
from fullfield.errors import CheckpointError, ConfigError, DataError, ModelNotFoundError
from fullfield.tasks.answers import Prediction
from fullfield.tasks.dense_file import dense_metadata, save_dense
from fullfield.tasks.detection.answers import DetectionPrediction
from fullfield.tasks.segmentation.answers import SegmentationPrediction
from fullfield.tasks.source import checkpoint_metadata
from tests.deploy.small_files import CLASSES, COLOURS, PREPROCESS, Small, describe, export, small_net, write_small
from tests.deploy.test_engines import write_inside
from tests.images import write_photo

TASKS = ("classify", "detect", "segment")
KINDS = {"classify": Prediction, "detect": DetectionPrediction, "segment": SegmentationPrediction}
SIZES = [(64, 48), (30, 90), (96, 72), (64, 48), (200, 150), (17, 17)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Small]:
    folder = tmp_path_factory.mktemp("small")
    return {task: write_small(folder, task) for task in TASKS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of small nets with random values, as PyTorch runs them."""
    from fullfield.tasks.detection.detector import Detector
    from fullfield.tasks.segmentation.segmenter import Segmenter

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs")
    tiny: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
    dense = DensePreprocess(short_side=48, long_side=96)
    net = fullfield.create_model("racnn_pico", num_classes=3, **tiny)
    fullfield.save(net, folder / "classify.safetensors", checkpoint_metadata(CLASSES, Preprocess(image_size=32)))
    arguments = {"fpn_channels": 8, "convs": 1, "score_threshold": 0.0}
    detector = Detector("racnn_pico", "fcos", 3, preprocess=dense, head_arguments=arguments, **tiny)
    metadata = dense_metadata(detector, CLASSES, dense, "detect")
    save_dense(detector, folder / "detect.safetensors", metadata)
    segmenter = Segmenter("racnn_pico", "fpn", 3, preprocess=dense, **tiny)
    metadata = dense_metadata(segmenter, CLASSES, dense, "segment", colours=[list(one) for one in COLOURS])
    save_dense(segmenter, folder / "segment.safetensors", metadata)
    return {task: folder / f"{task}.safetensors" for task in TASKS}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs of several sizes, one of them no photograph."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        write_photo(folder / f"{number}.png", "green", seed=number, size=size)
    (folder / "3a.jpg").write_bytes(b"no image")
    return folder


def as_plain(one: Any) -> Any:
    """Return everything that a prediction says, fit to be compared."""
    if isinstance(one, Prediction):
        return [(name, pytest.approx(share, abs=1e-5)) for name, share in one.labels]
    if isinstance(one, DetectionPrediction):
        found = [(o.name, pytest.approx(o.score, abs=1e-4), pytest.approx(o.box, abs=1e-2)) for o in one.detections]
        return one.size, found
    return None if one.labels is None else one.labels.tolist()


def strict(one: Any) -> Any:
    """Return the same without the tolerances."""
    if isinstance(one, Prediction):
        return list(one.labels)
    if isinstance(one, DetectionPrediction):
        return one.size, [(o.name, o.score, o.box) for o in one.detections]
    return None if one.labels is None else one.labels.tolist()


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_gives_one_answer_a_file_in_order_and_names_what_it_can_not_read(
    small: dict[str, Small], photos: Path, task: str
) -> None:
    with Predictor(small[task].onnx, threads=1) as predictor:
        assert (predictor.task, predictor.classes, predictor.trained) == (task, CLASSES, True)
        assert predictor.colours == (COLOURS if task == "segment" else ())
        assert predictor.engine.startswith("ONNX Runtime")
        found = predictor.predict(photos, batch_size=3, threshold=0.1)
        assert isinstance(found, Iterator if task == "segment" else list)
        found = list(found)
    assert [one.path.name for one in found] == ["0.png", "1.png", "2.png", "3.png", "3a.jpg", "4.png", "5.png"]
    assert all(isinstance(one, KINDS[task]) for one in found)
    broken = found.pop(4)
    assert "3a.jpg" in (broken.error or "")
    assert not strict(broken) or strict(broken) == (None, [])
    assert [one.error for one in found] == [None] * 6
    if task == "segment":
        assert [one.labels.shape for one in found] == [size[::-1] for size in SIZES]
    if task == "detect":
        assert [one.size for one in found] == [size[::-1] for size in SIZES]


@pytest.mark.parametrize("task", TASKS)
def test_answers_do_not_depend_on_what_else_is_in_the_batch(small: dict[str, Small], photos: Path, task: str) -> None:
    with Predictor(small[task].onnx, threads=1) as predictor:
        together = list(predictor.predict(photos, batch_size=7, threshold=0.1))
        alone = list(predictor.predict(photos, batch_size=1, threshold=0.1))
        images = [read_image(photos / f"{number}.png") for number in range(6)]
        answers = predictor.answer(images, [f"{number}" for number in range(6)], threshold=0.1)
    assert [strict(one) for one in together] == [as_plain(one) for one in alone]
    del together[4]
    assert [strict(one) for one in together] == [as_plain(one) for one in answers]
    assert [one.path for one in answers] == [Path(str(number)) for number in range(6)]


def test_a_classifiers_answer_is_that_of_the_net_on_the_transformed_image(
    small: dict[str, Small], photos: Path
) -> None:
    with Predictor(small["classify"].onnx) as predictor:
        found = predictor.predict(photos / "4.png", top=2)[0]
    p = PREPROCESS["classify"]
    seen = eval_transform(replace(p, mean=(0.0,) * 3, std=(1.0,) * 3))(read_image(photos / "4.png"))
    shares = small["classify"].net(seen[None]).softmax(1)[0]
    best = shares.topk(2)
    assert [name for name, _ in found.labels] == [CLASSES[index] for index in best.indices]
    assert [share for _, share in found.labels] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_what_pytorch_runs_gives_what_fullfield_predict_gives(runs: dict[str, Path], photos: Path, task: str) -> None:
    expected = list(fullfield.predict(runs[task], photos, threshold=0.2, device="cpu"))
    with Predictor(runs[task], device="cpu") as predictor:
        assert predictor.engine.startswith("PyTorch")
        assert predictor.engine.endswith("on CPU")
        assert predictor.colours == (COLOURS if task == "segment" else ())
        found = list(predictor.predict(photos, threshold=0.2))
        images = [read_image(photos / f"{number}.png") for number in (4, 5)]
        answered = predictor.answer(images, threshold=0.2)
    assert [strict(one) for one in found] == [as_plain(one) for one in expected]
    assert [one.path for one in found] == [one.path for one in expected]
    assert [one.error for one in found] == [one.error for one in expected]
    assert [strict(one) for one in answered] == [as_plain(one) for one in expected[5:]]
    assert [str(one.path) for one in answered] == ["image 1", "image 2"]


def test_a_registered_name_runs_with_weights_said_to_be_random(photos: Path) -> None:
    with Predictor("resnet10t", device="cpu") as predictor:
        assert (predictor.task, predictor.trained, len(predictor.classes)) == ("classify", False, 1000)
        assert len(predictor.answer([read_image(photos / "0.png")], top=3)[0].labels) == 3


@pytest.mark.parametrize("task", TASKS)
def test_several_threads_get_their_own_answers(small: dict[str, Small], photos: Path, task: str) -> None:
    images = [read_image(photos / f"{number}.png") for number in range(6)]
    with Predictor(small[task].onnx, threads=1) as predictor, ThreadPoolExecutor(6) as pool:
        barrier = threading.Barrier(6)

        def ask(image: Image.Image) -> Any:
            barrier.wait()
            return [predictor.answer([image], threshold=0.1)[0] for _ in range(5)]

        found = list(pool.map(ask, images))
        for image, several in zip(images, found, strict=True):
            expected = as_plain(predictor.answer([image], threshold=0.1)[0])
            assert [strict(one) for one in several] == [expected] * 5


def test_the_next_batch_is_read_while_one_is_computed(small: dict[str, Small], photos: Path) -> None:
    predictor = Predictor(small["segment"].onnx)
    model, here = predictor._model, threading.current_thread()
    assert isinstance(model, FileModel)
    prepared, prepare = threading.Semaphore(0), model.prepare

    def watched(image: Image.Image) -> Any:
        assert threading.current_thread() is not here
        prepared.release()
        return prepare(image)

    model.prepare = watched  # type: ignore[method-assign]
    found = predictor.predict([photos / "0.png", photos / "1.png", photos / "2.png"], batch_size=1)
    next(found)
    assert all(prepared.acquire(timeout=20) for _ in range(2))  # the second, too, before it was asked for
    found.close()
    predictor.close()


class Counting:
    """An engine that only notes what it was given, and whose classes all tie."""

    def __init__(self, description: Any) -> None:
        self.description, self.name, self.shapes = description, "counting", []

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.shapes.append(images.shape)
        logits = images[..., :3].mean((1, 2)) if images.shape[-1] == 3 else images.mean((2, 3))
        return {"logits": logits.astype(np.float32)}

    def close(self) -> None:
        self.shapes.append(None)


@pytest.mark.parametrize(("batch", "expected"), [(None, [5]), (1, [1] * 5), (2, [2] * 3), (8, [8])])
def test_a_fixed_batch_is_kept_and_filled_up(batch: int | None, expected: list[int]) -> None:
    free = Counting(describe("classify"))
    engine: Engine = Counting(replace(describe("classify"), batch=batch))
    images = [Image.new("RGB", (30, 30), (10 * number, 90, 200 - 40 * number)) for number in range(5)]
    paths = [Path(str(number)) for number in range(5)]
    found = []
    for one in (engine, free):
        model = FileModel(one, "x.onnx")
        found.append(model.answers(paths, [model.prepare(image) for image in images], top=3, threshold=0))
    assert [shape[0] for shape in engine.shapes] == expected
    assert found[0] == found[1]


def test_dense_images_of_one_prepared_size_are_run_together() -> None:
    engine = Counting(describe("segment"))
    engine.run = lambda images: (engine.shapes.append(images.shape), {"logits": images})[1]
    model = FileModel(engine, "x.onnx")
    images = [Image.new("RGB", size, "teal") for size in ((64, 48), (300, 48), (62, 48), (320, 48))]
    answers = model.answers([Path("x")] * 4, [model.prepare(one) for one in images], top=1, threshold=0)
    assert engine.shapes == [(2, 3, 64, 64), (2, 3, 64, 320)]
    assert [one.labels.shape for one in answers] == [image.size[::-1] for image in images]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_file_of_one_size_answers_in_the_pixels_of_every_picture(task: str, tmp_path: Path, photos: Path) -> None:
    described = describe(task, height=96, width=128)
    path = export(small_net(task), described, tmp_path / f"{task}.onnx")
    with Predictor(path) as predictor:
        found = [one for one in predictor.predict(photos, threshold=0.1) if one.error is None]
    sizes = [one.labels.shape if task == "segment" else one.size for one in found]
    assert sizes == [size[::-1] for size in SIZES]
    for one, (width, height) in zip(found, SIZES, strict=True):
        for each in getattr(one, "detections", ()):
            left, top, right, bottom = each.box
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def test_a_file_with_the_preprocessing_inside_looks_at_one_whole_picture_at_a_time(tmp_path: Path) -> None:
    with Predictor(write_inside(tmp_path / "inside.onnx")) as predictor:
        images = [Image.new("RGB", (20, 30), colour) for colour in ("red", "lime", "blue")]
        answers = predictor.answer(images, top=1)
    assert [one.labels[0][0] for one in answers] == list(CLASSES)


def test_detections_below_the_threshold_are_left_out(small: dict[str, Small], photos: Path) -> None:
    with Predictor(small["detect"].onnx) as predictor:
        every = predictor.predict(photos / "4.png", threshold=0)[0].detections
        middle = every[len(every) // 2].score
        some, none = (predictor.predict(photos / "4.png", threshold=t)[0].detections for t in (middle, 1))
    assert len(every) > len(some) > len(none) == 0
    assert some == tuple(one for one in every if one.score >= middle)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, i: p.answer([i], top=0), "top and batch_size must be at least 1"),
        (lambda p, i: p.answer([i], threshold=1.5), "scores go from 0 to 1"),
        (lambda p, i: p.answer([i], threshold=float("nan")), "scores go from 0 to 1"),
        (lambda p, i: p.answer([i], ["a", "b"]), "2 names for 1 images"),
        (lambda p, i: p.answer([i, i.convert("RGBA")]), "image 2 is of mode RGBA"),
        (lambda p, _: p.answer([np.zeros((4, 4, 3))], ["x.jpg"]), "x.jpg is a ndarray"),
        (lambda p, _: p.predict("x", batch_size=0), "top and batch_size must be at least 1"),
        (lambda *_: Predictor("x.onnx", pretrained=True), "pretrained is for registered models"),
        (lambda *_: Predictor("x.xml", device="cuda"), r"\.xml files run on the CPU alone"),
        (lambda *_: Predictor("x.safetensors", threads=0), "threads is 0"),
    ],
)
def test_impossible_arguments_are_named(small: dict[str, Small], call: Any, words: str) -> None:
    with Predictor(small["classify"].onnx) as predictor, pytest.raises(ConfigError, match=words):
        call(predictor, Image.new("RGB", (8, 8)))


def test_no_images_have_no_answers(small: dict[str, Small]) -> None:
    with Predictor(small["detect"].onnx) as predictor:
        assert predictor.answer([]) == []


def test_sources_and_images_that_are_not_there_are_named(small: dict[str, Small], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        Predictor(tmp_path / "x.onnx")
    with pytest.raises(ModelNotFoundError, match="resnet5O"):
        Predictor("resnet5O")
    with Predictor(small["classify"].onnx) as predictor:
        for images in (tmp_path, tmp_path / "none.jpg", []):
            with pytest.raises(DataError):
                predictor.predict(images)


def test_a_closed_predictor_says_so(small: dict[str, Small]) -> None:
    predictor = Predictor(small["classify"].onnx)
    predictor.close()
    predictor.close()
    for call in (lambda: predictor.answer([]), lambda: predictor.predict("x.jpg")):
        with pytest.raises(ConfigError, match="was closed"):
            call()


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("classify", {"preprocess": {"image_size": 0}}, "preprocessing can't be used"),
        ("segment", {"preprocess": {"sides": 3}}, "preprocessing can't be used"),
        ("detect", {"selection": None}, "no rule to choose boxes"),
        ("segment", {"colours": COLOURS[:2]}, "not as many colours as classes"),
        ("segment", {"preprocessing_inside": True}, "preprocessing inside, which is for classifiers"),
    ],
)
def test_an_incomplete_description_is_refused(task: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        FileModel(Counting(replace(describe(task), **change)), "x.onnx")


def test_more_classes_than_names_are_refused(tmp_path: Path) -> None:
    text = replace(describe("classify"), classes=("one",)).to_json()
    path = export(small_net("classify"), describe("classify"), tmp_path / "x.onnx", text=text)
    with Predictor(path) as predictor, pytest.raises(CheckpointError, match="gives 3 classes and names 1"):
        predictor.answer([Image.new("RGB", (8, 8))])


@pytest.mark.parametrize("task", TASKS)
def test_the_command_writes_the_same_files_for_an_exported_file(
    small: dict[str, Small], photos: Path, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fullfield.cli.main import main

    out, listing = tmp_path / "out", tmp_path / "answers.json"
    words = ["predict", str(small[task].onnx), str(photos), "--out", str(out), "--json", str(listing)]
    assert main(words) == 1  # one file is no image
    printed = capsys.readouterr()
    assert "3a.jpg" in printed.err
    assert "0.png" in printed.out
    document = json.loads(listing.read_text())
    assert len(document["images"] if task == "detect" else document) == (6 if task == "detect" else 7)
    assert (out / "predictions.json").is_file()
    drawn = list((out / "drawn" if task == "segment" else out).glob("*.png"))
    assert len(drawn) == 6
    assert main(["predict", str(small[task].onnx), str(photos / "0.png")]) == 0


def test_the_command_refuses_options_that_an_exported_file_can_not_follow(
    small: dict[str, Small], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fullfield.cli.main import main

    for option in (["--flip"], ["--window", "64"], ["--scales", "0.5", "1"]):
        assert main(["predict", str(small["segment"].onnx), str(photos / "0.png"), *option]) == 2
        assert "--window, --scales and --flip are for segmenters in PyTorch" in capsys.readouterr().err
