"""Several models side by side: accuracy, cost, speed, receptive fields, class-activation maps, cost per stage.

Nothing here measures by itself; each part is a tool of this room with a budget of its own. A part that fails for a
model is recorded with the reason and the rest goes on: a page with a gap that is explained is worth more than none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fullfield.data import read_image_data
from fullfield.errors import ConfigError, DataError, FullfieldError, nearest
from fullfield.measure.cam import cam
from fullfield.measure.compare_accuracy import Accuracy, accuracy_of_run, check_given
from fullfield.measure.compare_result import USUAL, Budget, Compared, Comparison, NotMeasured
from fullfield.measure.compare_speed import ToTime, fastest_rows
from fullfield.measure.compare_stages import chosen_stages, cost_of_stages, time_stages
from fullfield.measure.cost_report import cost_report
from fullfield.measure.environment import environment
from fullfield.measure.erf import erf_of_layers
from fullfield.measure.erf_model import MeasuredModel, open_measured
from fullfield.measure.feature_maps import frozen, stage_layers
from fullfield.measure.runners import Setting, reason_of
from fullfield.tasks.answers import find_images
from fullfield.tasks.model_file import is_model_file
from fullfield.tasks.source import open_model, pick_device

__all__ = ["PARTS", "compare"]

PARTS = ("accuracy", "cost", "stages", "erf", "cam", "speed")
"""What is measured, in this order; "stages" needs "cost"."""

SPEED_SHARE = 0.4  # of the progress bar
RANDOM_WEIGHTS = (
    "Some models have random weights. Cost and speed do not depend on weights; receptive fields then show the"
    " initialisation, and class-activation maps mean nothing."
)

Report = Callable[[str, float], None]


@dataclass
class _Opened:
    """One model while it is being measured."""

    source: str
    model: MeasuredModel
    classes: tuple[str, ...]
    found: Compared
    layers: list[str]


def compare(
    models: Sequence[str | Path] | Mapping[str, nn.Module],
    data: str | Path | None = None,
    *,
    accuracy: Mapping[str, float] | None = None,
    accuracy_source: str = "",
    parts: Sequence[str] = PARTS,
    budget: Budget = USUAL,
    image_size: int | None = None,
    device: str = "auto",
    pretrained: bool = False,
    seed: int = 0,
    command: str = "",
    on_progress: Report | None = None,
) -> Comparison:
    """Measure models side by side (`fullfield compare MODEL... [DATA]`).

    Args:
        models: Registered names, run folders, weights files and `file.py:factory`; or label -> module (B, C, H, W) ->
            logits (B, K).
        data: A data set (a folder, a CSV list or "sample:NAME") or a folder of images: its images are what receptive
            fields and class-activation maps are taken on, and runs that were evaluated on it bring their accuracy.
            None takes noise for the fields, no class-activation maps, and each run's own accuracy.
        accuracy: Model, as it is named in `models`, -> top-1 in percent, where it is known from elsewhere.
        accuracy_source: Where `accuracy` comes from, in words; needed with it.
        parts: Of `PARTS`.
        budget: How much to measure.
        image_size: Side in pixels; None for each model's own.
        device: "auto", "cpu", "cuda", ...
        pretrained: For registered names: fetch timm's weights.
        seed: Of random weights, noise and random maps.
        command: The shell command that repeats the comparison, for the page.
        on_progress: Told what is being done and the share done, 0 to 1.

    Returns:
        The figures, and what was not measured with the reasons. `.save("compare.html")` writes the page.

    Raises:
        ConfigError: An argument is impossible, or a model is named twice.
        ModelNotFoundError: No model has that name.
        CheckpointError: A path holds no usable weights.
        DataError: The data can't be read.
    """
    start = time.perf_counter()
    chosen = _checked_parts(parts)
    given = check_given(accuracy or {}, accuracy_source, [str(name) for name in models])
    where = str(pick_device(device))
    images = None if data is None else _images_of(data)
    missing: list[NotMeasured] = [NotMeasured("", part, "it was not asked for") for part in PARTS if part not in chosen]
    report = on_progress or (lambda _text, _share: None)
    opened = _open(models, image_size, where, pretrained, seed, missing, report)
    for entry in opened:
        if "accuracy" in chosen:
            entry.found = replace(entry.found, accuracy=_accuracy(entry, given, data, missing))
    todo = [part for part in ("cost", "stages", "erf", "cam") if part in chosen]
    if "cam" in todo and images is None:
        todo.remove("cam")
        missing.append(NotMeasured("", "cam", "it needs images, and no DATA was named"))
    measuring = 1 - SPEED_SHARE * ("speed" in chosen)
    for number, entry in enumerate(opened):
        for step, part in enumerate(todo):
            report(f"{entry.found.label}: {_WORDS[part]}", measuring * (number + step / len(todo)) / len(opened))
            with _guard(entry.found.label, part, missing):
                entry.found = _measure(part, entry, images, budget, image_size, where, seed)
    if "speed" in chosen:
        _time(opened, budget, where, missing, lambda text, share: report(text, measuring + SPEED_SHARE * share))
    found = tuple(entry.found for entry in opened)
    notes = (RANDOM_WEIGHTS,) if any(model.weights == "random" for model in found) else ()
    name = "" if data is None else str(data)
    taken = time.perf_counter() - start
    return Comparison(found, tuple(missing), name, budget, taken, environment(where), command, notes)


_WORDS = {"cost": "counting", "stages": "cost per stage", "erf": "receptive fields", "cam": "class-activation map"}


def _checked_parts(parts: Sequence[str]) -> tuple[str, ...]:
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"there is no part {part!r}: the parts are {', '.join(PARTS)}{nearest(part, PARTS)}")
    if "stages" in parts and "cost" not in parts:
        raise ConfigError("the part 'stages' needs the part 'cost'; name both")
    if not parts:
        raise ConfigError(f"nothing is to be measured; the parts are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def _images_of(data: str | Path) -> list[Path]:
    """Return the held-out images of a data set, or all images of a folder that is none.

    Raises:
        DataError: There is no image.
    """
    try:
        splits = read_image_data(data).splits
    except DataError:
        if not Path(data).is_dir():
            raise
        return find_images([data])
    samples = splits.get("test") or splits["val"]
    if any(sample.place is not None for sample in samples):
        raise DataError(f"{data}: holds its images in archives; compare draws on files. Name a folder or a CSV list.")
    return [sample.path for sample in samples]


def _open(
    models: Sequence[str | Path] | Mapping[str, nn.Module],
    image_size: int | None,
    device: str,
    pretrained: bool,
    seed: int,
    missing: list[NotMeasured],
    report: Report,
) -> list[_Opened]:
    if not models:
        raise ConfigError("name at least one model, as in `fullfield compare racnn_tiny resnet50`")
    names = [str(name) for name in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)} is named twice; name each model once")
    found: list[_Opened] = []
    for name in names:
        report(f"{name}: building", 0.0)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                measured, classes = _open_one(models, name, image_size, device, pretrained)
        except FullfieldError:
            raise
        except Exception as error:
            missing.append(NotMeasured(name, "building", reason_of(error)))
            continue
        labels = [entry.found.label for entry in found]
        label = name if measured.name in labels else measured.name  # two runs with folders of the same name
        side = image_size or measured.preprocess.image_size
        found.append(_Opened(name, measured, classes, Compared(label, measured.weights, side), []))
    return found


def _open_one(
    models: Sequence[str | Path] | Mapping[str, nn.Module],
    name: str,
    image_size: int | None,
    device: str,
    pretrained: bool,
) -> tuple[MeasuredModel, tuple[str, ...]]:
    """Return a model and the names of its classes."""
    if isinstance(models, Mapping):
        return replace(open_measured(models[name].to(device)), name=name), ()
    if is_model_file(name):
        return open_measured(name, device=device, image_size=image_size), ()
    opened = open_model(name, pretrained=pretrained, device=device)
    return open_measured(opened, image_size=image_size), opened.classes


def _accuracy(
    entry: _Opened, given: Mapping[str, Accuracy], data: str | Path | None, missing: list[NotMeasured]
) -> Accuracy | None:
    if entry.source in given:
        return given[entry.source]
    found, reason = accuracy_of_run(entry.source, data)
    if found is None:
        missing.append(NotMeasured(entry.found.label, "accuracy", reason))
    return found


@contextmanager
def _guard(label: str, part: str, missing: list[NotMeasured]) -> Iterator[None]:
    """Record what fails in the block instead of raising it."""
    try:
        yield
    except Exception as error:
        missing.append(NotMeasured(label, part, reason_of(error)))


def _measure(
    part: str,
    entry: _Opened,
    images: list[Path] | None,
    budget: Budget,
    image_size: int | None,
    device: str,
    seed: int,
) -> Compared:
    """Return what was found of a model with one part more."""
    found, measured = entry.found, entry.model
    if part == "cost":
        return replace(found, cost=cost_report(measured.model, image_size=found.image_size))
    if part == "cam":
        assert images is not None  # noqa: S101 - for the type checker
        steps = budget.cam_steps if found.weights == "trained" else 0  # scores of random weights mean nothing
        result = cam(
            measured, images[0], classes=entry.classes, image_size=image_size, steps=steps, orders=1, seed=seed
        )
        return replace(found, cam=result)
    if not entry.layers:
        blank = torch.zeros(1, measured.preprocess.channels, found.image_size, found.image_size)
        with frozen(measured.model):
            names = stage_layers(measured.model, blank.to(measured.device, measured.dtype))
        entry.layers = chosen_stages(names)
    if part == "stages":
        if found.cost is None:
            raise ConfigError("the model could not be counted")
        stages = cost_of_stages(found.cost, entry.layers)
        setting = Setting(image_size=found.cost.cost.input_size[1:], device=device)
        return replace(found, stages=time_stages(measured.model, stages, setting, budget.stage_calls))
    results = erf_of_layers(measured, images, entry.layers, image_size=image_size, count=budget.erf_images, seed=seed)
    return replace(found, erfs=tuple(results))


def _time(
    opened: list[_Opened],
    budget: Budget,
    device: str,
    missing: list[NotMeasured],
    report: Report,
) -> None:
    """Time all models against each other, one image a call and several."""
    models = {}
    for entry in opened:
        with _guard(entry.found.label, "speed", missing):
            counted = entry.found.cost or cost_report(entry.model.model, image_size=entry.found.image_size)
            models[entry.found.label] = ToTime(entry.model.model, counted.cost)
    sizes = (1, budget.batch)
    for number, batch in enumerate(sizes):
        rows = fastest_rows(
            models,
            batch=batch,
            seconds=budget.timing_seconds,
            min_rounds=budget.min_rounds,
            device=device,
            on_failure=lambda label, error, b=batch: missing.append(  # type: ignore[misc]
                NotMeasured(label, "speed", f"{b} images a call: {reason_of(error)}")
            ),
            on_progress=lambda text, share, done=number: report(text, (done + share) / len(sizes)),  # type: ignore[misc]
        )
        for entry in opened:
            row = rows.get(entry.found.label)
            found = entry.found
            entry.found = replace(found, latency=row) if number == 0 else replace(found, throughput=row)
