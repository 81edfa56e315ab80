"""`erf` and `cam` on detectors and segmenters: the field of the net, and a map of what the whole model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError
from fullfield.measure.cam import METHODS, cam
from fullfield.measure.dense_model import DetectorView, image_for_maps
from fullfield.measure.erf import erf
from fullfield.measure.erf_model import open_measured, with_random_weights
from fullfield.tasks.dense_file import dense_metadata, save_dense
from fullfield.tasks.detection.detector import HEADS, Detector
from fullfield.tasks.segmentation.segmenter import Segmenter

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
NAMES = ("cat", "dog", "horse")
LIGHT = {
    "fcos": {"convs": 1, "norm": "none", "score_threshold": 0.0},
    "retinanet": {"convs": 1, "score_threshold": 0.0},
    "upernet": {"channels": 16, "auxiliary": 0.0},
}


def detector(head: str) -> Detector:
    two_stage = {"box_features": 16, "score_threshold": 0.0, "proposals": 20}
    arguments = {"fpn_channels": 16, **LIGHT.get(head, two_stage)}
    if "mask" in head:
        arguments["mask_features"] = 8
    preprocess = DensePreprocess(64, 107)
    return Detector("racnn_pico", head, 3, preprocess=preprocess, head_arguments=arguments, **TINY).eval()


def segmenter(window: int | None = 96) -> Segmenter:
    preprocess = DensePreprocess(window=window)
    return Segmenter("racnn_pico", "upernet", 3, preprocess=preprocess, head_arguments=LIGHT["upernet"], **TINY).eval()


def stored(model: Any, task: str, folder: Path) -> Path:
    more = {"colours": [[0, 0, 0]] * 3, "ignore_index": 255} if task == "segment" else {}
    return save_dense(
        model, folder / f"{task}.safetensors", dense_metadata(model, NAMES, model.preprocess, task, **more)
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# --- receptive fields ---


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_field_of_a_run_is_that_of_its_net_and_says_so(task: str, tmp_path: Path) -> None:
    model: Any = detector("fcos") if task == "detect" else segmenter()
    found = erf(stored(model, task, tmp_path), image_size=64, count=2, device="cpu")
    alone = erf(model.backbone.model, image_size=64, count=2)
    assert found.model.startswith(f"backbone of {'fcos' if task == 'detect' else 'upernet'} racnn_pico")
    assert found.weights == "trained"
    assert found.layer == "stages.3"
    np.testing.assert_allclose(found.map, alone.map, rtol=1e-5)


def test_same_net_with_random_weights_can_be_made_beside_a_run(tmp_path: Path) -> None:
    measured = open_measured(stored(segmenter(), "segment", tmp_path), device="cpu")
    fresh = with_random_weights(measured)
    assert measured.is_backbone
    assert measured.preprocess.image_size == 96
    own, other = measured.model.state_dict(), fresh.model.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in other.items()}


# --- what the whole model says ---


def test_view_detects_what_the_detector_detects_in_an_image_of_the_final_size() -> None:
    model = detector("faster_rcnn")
    image = torch.rand(3, 64, 96)
    (found,) = model([image])
    (seen,) = DetectorView(model)(image[None])
    order = seen["scores"].argsort(descending=True, stable=True)
    torch.testing.assert_close(seen["scores"][order], found.scores)
    torch.testing.assert_close(seen["boxes"][order], found.boxes)


@pytest.mark.parametrize("head", HEADS)
def test_score_of_a_detection_changes_with_the_net_as_its_gradient_says(head: str) -> None:
    view = DetectorView(detector(head)).double()
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    shift = torch.zeros(32, 1, 1, dtype=torch.float64, requires_grad=True)  # of the last stage's map

    def score() -> torch.Tensor:
        stage = view.get_submodule("backbone.model.stages.3")
        handle = stage.register_forward_hook(lambda _m, _i, output: output + shift)
        try:
            return view(image)[0]["scores"].max()
        finally:
            handle.remove()

    (gradient,) = torch.autograd.grad(score(), shift)
    assert bool(gradient.count_nonzero())
    direction, step = gradient / gradient.norm(), 1e-6
    with torch.no_grad():
        shift += step * direction
        above = score()
        shift -= 2 * step * direction
        below = score()
    # proposals and anchors do not move with the map in the gradient, so two-stage heads agree only nearly
    assert float((above - below) / (2 * step)) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_box_with_several_classes_is_explained_by_the_class_that_is_asked_for(photo: Path) -> None:
    view = DetectorView(detector("retinanet"))  # it gives one box a score of each class
    image = image_for_maps(Image.open(photo), view.preprocess)
    layer = "backbone.model.stages.3"
    maps = [cam(view, image, target=name, classes=NAMES, layer=layer, steps=0) for name in NAMES]
    assert [found.class_name for found in maps] == list(NAMES)
    assert len({found.confidence for found in maps}) == len(NAMES)


@pytest.mark.parametrize("head", HEADS)
def test_every_detection_head_has_a_map_of_its_last_stage(head: str, tmp_path: Path, photo: Path) -> None:
    found = cam(stored(detector(head), "detect", tmp_path), photo, steps=0, device="cpu")
    assert (found.task, found.layer) == ("detect", "backbone.model.stages.3")
    assert found.class_name in NAMES
    assert found.box is not None
    assert found.map.shape == (64, 96)  # the photograph at 64 pixels is 64 x 91
    assert found.map_size == (2, 3)
    assert found.model == f"{head} racnn_pico (detect.safetensors)"


def test_detector_is_scored_by_its_box_and_every_method_works(tmp_path: Path, photo: Path) -> None:
    file = stored(detector("fcos"), "detect", tmp_path)
    for method in METHODS:
        found = cam(file, photo, method=method, steps=2, orders=1, device="cpu")
        assert found.scores is not None
        # nothing is deleted yet, and the box overlaps with itself wholly
        assert found.scores.deletion.confidence[0] == pytest.approx(found.confidence, rel=1e-4)


def test_map_of_a_segmenter_is_of_the_mean_logit_over_the_pixels_of_the_class(tmp_path: Path, photo: Path) -> None:
    model = segmenter()
    found = cam(stored(model, "segment", tmp_path), photo, layer="backbone.model.stages.3", steps=0, device="cpu")
    assert (found.task, found.map.shape, found.map_size) == ("segment", (64, 96), (2, 3))
    image = image_for_maps(Image.open(photo), model.preprocess)
    kept: list[torch.Tensor] = []
    model.get_submodule("backbone.model.stages.3").register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model(image)[0]
    mine = logits.argmax(0) == found.class_index
    (gradient,) = torch.autograd.grad(logits[found.class_index][mine].mean(), kept[0])
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(1).clamp(min=0)[0]
    assert found.empty == (not bool(heat.any()))
    if not found.empty:
        row, column = np.unravel_index(found.map.argmax(), found.map.shape)
        assert (row // 32, column // 32) == divmod(int(heat.argmax()), 3)


def test_class_without_a_pixel_is_explained_over_all_pixels_with_a_note(tmp_path: Path, photo: Path) -> None:
    model = segmenter()
    with torch.no_grad():
        model.classifier[1].bias[1] = -100.0
    found = cam(stored(model, "segment", tmp_path), photo, target="dog", steps=0, device="cpu")
    assert found.class_name == "dog"
    assert found.note.startswith("no pixel of this image is 'dog' for the model, which finds ")
    assert found.to_dict()["note"] == found.note


def test_model_itself_can_be_given_in_place_of_a_run(photo: Path) -> None:
    for model in (segmenter(), detector("fcos")):
        found = cam(model, photo, steps=0, classes=NAMES)
        assert found.class_name in NAMES
        assert found.image.shape == (64, 96, 3)
        assert not model.training


# --- the image ---


def test_image_has_the_models_size_rounded_so_that_units_tile_it() -> None:
    picture = Image.new("RGB", (1000, 700), (255, 0, 0))
    assert image_for_maps(picture, DensePreprocess(320, 533)).shape == (1, 3, 320, 448)  # 320 x 457
    assert image_for_maps(picture, DensePreprocess()).shape == (1, 3, 704, 992)
    assert image_for_maps(picture, DensePreprocess(320, 400), 640).shape == (1, 3, 576, 800)  # 800 is the limit
    assert image_for_maps(Image.new("L", (20, 9)), DensePreprocess(channels=1)).shape == (1, 1, 64, 64)
    assert image_for_maps(picture, DensePreprocess(320)).flatten(2)[0, :, 0].tolist() == pytest.approx([1, 0, 0])


# --- bad input ---


def test_class_that_does_not_exist_names_the_nearest(tmp_path: Path, photo: Path) -> None:
    for task, model in (("segment", segmenter()), ("detect", detector("retinanet"))):
        with pytest.raises(ConfigError, match="no class 'hrose'; did you mean 'horse'"):
            cam(stored(model, task, tmp_path), photo, target="hrose", device="cpu")


def test_detector_that_finds_nothing_says_so(tmp_path: Path, photo: Path) -> None:
    model = Detector(
        "racnn_pico", "fcos", 3, preprocess=DensePreprocess(64), head_arguments={"fpn_channels": 16}, **TINY
    )
    with pytest.raises(ConfigError, match="detects nothing in this image"):
        cam(stored(model, "detect", tmp_path), photo, device="cpu")
