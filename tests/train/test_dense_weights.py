"""Where the weights of a detector or segmenter come from, and how they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fullfield
from fullfield.errors import CheckpointError, ConfigError
from fullfield.models.weights import load_checkpoint
from fullfield.tasks.open import OpenedDense, backbone_of, open_any
from fullfield.train.kinds import Start, kind_of
from fullfield.train.kinds.dense import DenseKind
from fullfield.train.parameter_groups import parameter_groups
from fullfield.train.settings import TrainSettings
from tests.images import best_weights, read_rows, same_weights, write_photos
from tests.train.dense_data import COMMON, HEADS, boxes, detector_run, maps, segmenter_run, write_boxes, write_maps

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")
pytest.importorskip("segmentation_models_pytorch", reason="needs fullfield[segment]")

__all__ = ["boxes", "detector_run", "maps", "segmenter_run"]

OWN_NET = {"model": None, "model_args": ()}


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes, trained with stochastic depth."""
    folder = tmp_path_factory.mktemp("classifier")
    options = {k: v for k, v in COMMON.items() if k != "scale_jitter"} | {"epochs": 1, "drop_path": 0.1}
    return fullfield.train(write_photos(folder / "photos", each=4), out=folder / "run", **options).run


def start(data: Path, options: dict[str, Any]) -> tuple[DenseKind, TrainSettings, Any, Start]:
    """Return what a run would start from, without training it."""
    settings = TrainSettings(str(data), task="segment" if "upernet" in str(options["head"]) else "detect", **options)
    kind = kind_of(settings.task)
    assert isinstance(kind, DenseKind)
    read = kind.read(settings)
    settings, _ = kind.fit(kind.with_weights(settings), read, torch.device("cpu"))
    return kind, settings, read, kind.start(settings, read)


def net_of(model: nn.Module) -> nn.Module:
    net: nn.Module = model.backbone.model  # type: ignore[union-attr, assignment]
    return net


def opened(run: Path) -> OpenedDense:
    found = open_any(run, device="cpu")
    assert isinstance(found, OpenedDense)
    return found


# --- given weights ---


@pytest.mark.parametrize("head", ["fcos", "upernet"])
def test_net_of_a_classifier_s_run_is_taken_and_its_features_are_equal(
    classifier_run: Path, boxes: Path, maps: Path, head: str
) -> None:
    options = HEADS[head] | OWN_NET | {"weights": str(classifier_run)}
    _, settings, _, begun = start(maps if head == "upernet" else boxes, options)
    assert settings.model == "racnn_pico"
    assert "backbone's weights come from" in begun.notes[0]
    classifier: Any = load_checkpoint(classifier_run).model
    model: Any = begun.model.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours = model.backbone(images)
        theirs = classifier.forward_intermediates(images, intermediates_only=True)[-len(ours) :]
    assert [tuple(a.shape) for a in ours] == [tuple(b.shape) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert "drop_path_rate" not in model.backbone.arguments  # of the other run


def test_net_of_a_detector_is_taken_into_a_segmenter_and_back(
    detector_run: Path, segmenter_run: Path, boxes: Path, maps: Path
) -> None:
    for run, data, head in ((detector_run, maps, "upernet"), (segmenter_run, boxes, "fcos")):
        _, settings, _, begun = start(data, HEADS[head] | OWN_NET | {"weights": str(run)})
        assert settings.head == head
        assert same_weights(net_of(begun.model).state_dict(), net_of(opened(run).model).state_dict())
        assert "pyramid and head start anew" in begun.notes[0]


@pytest.mark.parametrize("head", ["fcos", "upernet"])
def test_whole_model_is_taken_with_its_head_where_task_and_classes_are_the_same(
    detector_run: Path, segmenter_run: Path, boxes: Path, maps: Path, head: str
) -> None:
    run, data = (segmenter_run, maps) if head == "upernet" else (detector_run, boxes)
    kind = kind_of("segment" if head == "upernet" else "detect")
    settings = TrainSettings(str(data), task=kind.name, weights=str(run))  # type: ignore[arg-type]
    read = kind.read(settings)
    settings, _ = kind.fit(kind.with_weights(settings), read, torch.device("cpu"))
    begun = kind.start(settings, read)
    assert settings.head == head
    assert "All weights come from" in begun.notes[0]
    assert same_weights(begun.model.state_dict(), best_weights(run))


def test_other_classes_or_another_head_take_the_net_alone(detector_run: Path, boxes: Path, tmp_path: Path) -> None:
    options = HEADS["retinanet"] | OWN_NET | {"weights": str(detector_run)}
    assert "start anew" in start(boxes, options)[3].notes[0]
    renamed = write_boxes(tmp_path / "data")
    for file in (renamed / "annotations").iterdir():
        file.write_text(file.read_text().replace("green", "verde"))
    _, settings, _, begun = start(renamed, {"head": None, "weights": str(detector_run)})
    assert settings.head == "fcos"
    assert "start anew" in begun.notes[0]


def test_weights_that_do_not_fit_are_refused(classifier_run: Path, boxes: Path) -> None:
    with pytest.raises(ConfigError, match="holds racnn_pico, not resnet10t"):
        start(boxes, HEADS["fcos"] | {"model": "resnet10t", "model_args": (), "weights": str(classifier_run)})
    with pytest.raises(CheckpointError, match=r"does not fit the backbone.*same model_args"):
        start(boxes, HEADS["fcos"] | {"model_args": ("dims=[8,16,24,40]",), "weights": str(classifier_run)})
    with pytest.raises(CheckpointError, match="no checkpoint or run folder nowhere"):
        start(boxes, HEADS["fcos"] | {"weights": "nowhere"})


@pytest.mark.slow
def test_run_from_weights_goes_on_where_they_were(detector_run: Path, boxes: Path, tmp_path: Path) -> None:
    common = {"epochs": 1, "image_size": 64, "batch_size": 4, "workers": 0, "device": "cpu", "logger": ("none",)}
    again = fullfield.train(boxes, out=tmp_path / "run", weights=detector_run, lr=1e-12, ema=0.0, **common)
    net, before = (net_of(opened(run).model) for run in (again.run, detector_run))
    for (name, a), (_, b) in zip(net.named_parameters(), before.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


# --- what is trained ---


@pytest.mark.parametrize(
    ("head", "freeze"),
    [
        ("fcos", ("backbone",)),
        ("upernet", ("stages.0", "stages.1")),
        pytest.param("fcos", ("stem",), marks=pytest.mark.slow),
        pytest.param("upernet", ("stem",), marks=pytest.mark.slow),
        pytest.param("upernet", ("backbone",), marks=pytest.mark.slow),
        pytest.param("upernet", ("backbone", "stem"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_frozen_parts_stay_as_they_are_and_all_else_is_trained(
    boxes: Path, maps: Path, tmp_path: Path, head: str, freeze: tuple[str, ...]
) -> None:
    data, options = (maps if head == "upernet" else boxes), HEADS[head] | {"freeze": freeze, "epochs": 1, "ema": 0.0}
    before = start(data, options)[3].model
    after = opened(fullfield.train(data, out=tmp_path / "run", **options).run).model.state_dict()
    trained = {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    parts = tuple("backbone.model." if part == "backbone" else f"backbone.model.{part}." for part in freeze)
    for name, tensor in before.state_dict().items():
        same = torch.equal(tensor, after[name])
        if name.startswith(parts):
            assert same, name  # running statistics too
        elif name in trained and tensor.ndim > 1:
            assert not same, name


@pytest.mark.parametrize("head", ["fcos", "mask_rcnn", "upernet"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("model", ["racnn_pico", "convnext_atto"])
def test_groups_hold_every_trained_parameter_once_with_the_head_at_the_full_rate(
    boxes: Path, maps: Path, head: str, layer_decay: float | None, model: str
) -> None:
    options = HEADS[head] | ({} if model == "racnn_pico" else {"model": model, "model_args": ("dims=[8,16,24,32]",)})
    whole = start(maps if head == "upernet" else boxes, options)[3].model
    groups = parameter_groups(whole, 0.05, layer_decay, 1e-3)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in whole.parameters() if p.requires_grad)
    rates = {id(p): group.get("lr", 1e-3) for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    net = {name: p for name, p in net_of(whole).named_parameters() if p.requires_grad}
    inside = {id(p) for p in net.values()}
    for name, p in whole.named_parameters():
        if id(p) not in inside and p.requires_grad:
            assert rates[id(p)] == 1e-3, name
        if p.requires_grad and p.ndim == 1:
            assert decays[id(p)] == 0, name
    first, last = (rates[id(p)] for p in (next(iter(net.values())), [p for p in net.values() if p.ndim > 1][-1]))
    assert first < last <= 1e-3 if layer_decay else first == last == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "upernet"])
def test_gradient_checkpointing_gives_the_same_weights(boxes: Path, maps: Path, tmp_path: Path, head: str) -> None:
    data, options = (maps if head == "upernet" else boxes), HEADS[head] | {"epochs": 1, "drop_path": 0.2, "ema": 0.0}
    runs = [fullfield.train(data, out=tmp_path / str(on), grad_checkpointing=on, **options).run for on in (False, True)]
    assert read_rows(runs[0] / "metrics.csv")[0]["train_loss"] == read_rows(runs[1] / "metrics.csv")[0]["train_loss"]
    ours, theirs = (best_weights(run) for run in runs)
    for name, tensor in ours.items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "mask_rcnn", "upernet"])
@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": (*COMMON["model_args"], "in_chans=1"), "drop_path": 0.2},
        {"ema": 0.0, "channels_last": False, "layer_decay": 0.7},
        {"precision": "bf16"},
        {"accumulate": 2, "clip_grad": 0.1, "repeats": 2},
        {"model": "resnet10t", "model_args": ()},
        {"model": "convnext_atto", "model_args": ("dims=[8,16,24,32]", "depths=[1,1,1,1]")},
        {"scale_jitter": "large", "image_size": 96, "long_side": 96},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_runs_of_other_settings_learn_and_open(
    boxes: Path, maps: Path, tmp_path: Path, head: str, changes: dict[str, Any]
) -> None:
    options = HEADS[head] | {"epochs": 3} | changes
    result = fullfield.train(maps if head == "upernet" else boxes, out=tmp_path / "run", **options)
    losses = [float(row["train_loss"]) for row in read_rows(result.run / "metrics.csv")]
    assert losses[-1] < losses[0] or changes.get("scale_jitter") == "large"
    found = opened(result.run)
    channels = 1 if "in_chans=1" in options["model_args"] else 3
    assert found.preprocess.channels == channels
    image = torch.rand(channels, 50, 70)
    with torch.no_grad():
        seen: Any = found.model([image]) if found.task == "detect" else found.model(image[None])
    assert len(seen) == 1
    assert backbone_of(found).preprocess.channels == channels


@pytest.mark.slow
def test_detector_and_segmenter_learn_what_is_to_be_seen(tmp_path: Path) -> None:
    """Coloured rectangles are told from noise in a minute on a CPU."""
    options: dict[str, Any] = {"epochs": 30, "ema": 0.9, "lr": 5e-3}
    data = write_boxes(tmp_path / "boxes", train=32, val=8)
    head_args = ("fpn_channels=32", "convs=1")
    detector = fullfield.train(data, out=tmp_path / "d", **HEADS["fcos"] | options | {"head_args": head_args})
    assert detector.evaluation.result.box.ap50 > 0.5
    maps = write_maps(tmp_path / "maps", train=32, val=8)
    segmenter = fullfield.train(maps, out=tmp_path / "s", **HEADS["upernet"] | options)
    assert segmenter.evaluation.result.miou > 0.7


def test_loss_and_gradients_are_those_of_the_task(boxes: Path) -> None:
    """The sum of the detector's losses, by hand."""
    kind, settings, read, begun = start(boxes, HEADS["fcos"])
    sets = kind.datasets(settings, read, begun.preprocess)
    batch = sets.collate([sets.val[index] for index in range(3)])
    task = kind.task(settings, read, begun)
    losses: dict[str, Tensor] = begun.model(batch.images, batch.targets)
    assert float(task.loss(batch).detach()) == pytest.approx(sum(float(v.detach()) for v in losses.values()), rel=1e-6)
