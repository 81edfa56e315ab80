"""Running an exported file beside the PyTorch model that it was made from, at once and through what a user runs.

The reference is the model as it was opened: in float32, eager, nothing fused. So whatever was done on the way (fused
branches, normalisation inside the graph, another operator, half precision) is part of what is checked. Only for the
boxes and scores before selection is the reference the module that was exported, since a detector does not show them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.data.preprocess import Preprocess
from fullfield.deploy.agreement import measure_agreement
from fullfield.deploy.description import Description
from fullfield.deploy.engine import Engine, open_engine
from fullfield.deploy.graph import export_module
from fullfield.deploy.photographs import Photographs
from fullfield.deploy.predictor import Predictor
from fullfield.deploy.prepare import classifier_input, dense_input, raw_input
from fullfield.deploy.verification import Checked, Latency, Verification, limits_for
from fullfield.errors import ConfigError, FullfieldError, MissingExtraError
from fullfield.measure.environment import environment
from fullfield.measure.timing import ratio, time_interleaved
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.source import OpenedModel

__all__ = ["check_sizes", "parts_of", "relative_difference", "verify"]

STRIDE = 32  # of the coarsest map: what padding is to a multiple of
LEAST_SIDE = 64
MOST_SIDE = 640  # of a dense model: differences show at any size, and PyTorch's maps of 1333 pixels take gigabytes
THREADED = (".onnx", ".xml", ".pt2")  # the other libraries choose their threads by themselves
COMPANIONS = {".onnx": (".onnx.data",), ".xml": (".bin",), ".pte": (".pte.json",)}

Array = NDArray[Any]
Reference = Callable[[Tensor], dict[str, Tensor]]


def verify(
    path: str | Path,
    opened: OpenedModel | OpenedDense,
    photographs: Photographs,
    *,
    description: Description,
    seconds: float = 2.0,
    calibration: str | None = None,
) -> Verification:
    """Run a file and the model that it was made from on the same images.

    Args:
        path: The file.
        opened: The model, on the CPU, as it was before it was exported.
        photographs: The first serve for the outputs, all for the answers.
        description: Of the file; for a file that can't be run here, and so can't be asked.
        seconds: Time for the latency; 0 leaves it out.
        calibration: Where the images of int8 come from, for the record.

    Returns:
        What was found. A file that gives other answers, or none, is a finding and no error; so is a missing library.

    Raises:
        DataError: Not one image can be read.
    """
    path = Path(path)
    about: dict[str, Any] = {
        "file": path.name,
        "task": opened.task,
        "model": opened.name,
        "precision": description.precision,
        "trained": opened.trained,
        "megabytes": round(sum(_bytes(part) for part in parts_of(path)) / 1e6, 3),
        "limits": limits_for(
            opened.task,
            description.precision,
            trained=opened.trained,
            preprocessing_inside=description.preprocessing_inside,
        ),
        "calibration": calibration,
        "environment": environment(),
    }
    threads = torch.get_num_threads() if path.suffix in THREADED else None
    try:
        engine = open_engine(path, threads=threads)
    except (MissingExtraError, ConfigError) as error:  # no library, or none for this system
        return Verification(**about, **_shape(description), not_run=str(error))
    about |= _shape(engine.description)
    try:
        reference = _reference(opened)
        checked = tuple(_check(engine, reference, photographs, opened, about["limits"].difference))
        latency = _latency(engine, reference, photographs, seconds) if seconds and _answers(checked) else None
        name = engine.name
    finally:
        engine.close()
    if not _answers(checked):
        return Verification(**about, engine=name, checked=checked)
    predictor = Predictor(path, threads=threads)
    try:
        agreement = measure_agreement(predictor, opened, photographs)
    finally:
        predictor.close()
    return Verification(**about, engine=name, checked=checked, agreement=agreement, latency=latency)


def _shape(description: Description) -> dict[str, Any]:
    return {name: getattr(description, name) for name in ("batch", "height", "width", "preprocessing_inside")}


def parts_of(path: Path) -> list[Path]:
    """Return a file, or folder, and those beside it that belong to it, such as OpenVINO's weights."""
    beside = (path.with_name(path.stem + ending) for ending in COMPANIONS.get(path.suffix, ()))
    return [path, *(part for part in beside if part.exists())]


def relative_difference(found: Array, expected: Array) -> float:
    """Return max |found - expected| / max |expected|; infinite where a shape differs or a value is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    largest = float(np.abs(expected).max(initial=0.0))
    difference = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    return difference / largest if largest else float("inf" if difference else 0.0)


def _answers(checked: tuple[Checked, ...]) -> bool:
    return all(one.error is None for one in checked)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _reference(opened: OpenedModel | OpenedDense) -> Reference:
    """Return the function from images (B, C, H, W), 0 to 1, to the outputs of the model by name."""
    model: nn.Module = opened.model
    if isinstance(opened, OpenedModel):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (opened.preprocess.mean, opened.preprocess.std))
        return lambda images: {"logits": model((images - mean) / std)}
    if opened.task == "segment":
        return lambda images: {"logits": model(images)}
    module, _ = export_module(opened)
    return lambda images: dict(zip(("boxes", "scores"), module(images), strict=True))


def _check(
    engine: Engine,
    reference: Reference,
    photographs: Photographs,
    opened: OpenedModel | OpenedDense,
    limit: float | None,
) -> Iterator[Checked]:
    """Yield what was found at each size; where a difference is over the limit, PyTorch's own rounding too."""
    images = list(islice(photographs.read(), 3))
    description = engine.description
    for number, (height, width) in enumerate(check_sizes(description)):
        batch = description.batch or number + 1
        chosen = [_squeezed(images[(number + index) % len(images)], height, width) for index in range(batch)]
        pixels, seen = _inputs(chosen, description)
        padded = bool(seen.shape[-2] % STRIDE or seen.shape[-1] % STRIDE) or (
            description.task != "classify" and seen.shape[-2:] != (height, width)
        )
        try:
            found = engine.run(pixels)
        except (FullfieldError, RuntimeError, ValueError) as error:  # each library raises its own
            said = str(error).strip().splitlines() or [type(error).__name__]
            yield Checked(height, width, batch, padded, float("inf"), f"the file gives no answer: {said[0]}")
            continue
        with torch.inference_mode():
            expected = {key: value.numpy() for key, value in reference(torch.from_numpy(seen)).items()}
        if not all(np.isfinite(value).all() for value in expected.values()):
            reason = "PyTorch's own outputs are not finite, so there is nothing to compare with"
            yield Checked(height, width, batch, padded, float("inf"), reason)
            continue
        difference = _largest_difference(found, expected)
        over = limit is not None and limit < difference
        rounding = _rounding(opened, seen, expected) if over else None
        yield Checked(height, width, batch, padded, difference, rounding=rounding)


def _rounding(opened: OpenedModel | OpenedDense, seen: Array, expected: Mapping[str, Array]) -> float | None:
    """Return how far PyTorch's outputs are from its own in float64; None where the model does not run in that.

    Weights can magnify the last digit through a hundred layers until float32 says nothing, random ones above all; what
    a file gives is then as good as what PyTorch does.
    """
    try:
        exact = _reference(replace(opened, model=deepcopy(opened.model).double()))
        with torch.inference_mode():
            values = {name: value.numpy() for name, value in exact(torch.from_numpy(seen).double()).items()}
    except RuntimeError:  # a tensor inside is always float32
        return None
    return _largest_difference(expected, values)


def check_sizes(description: Description) -> list[tuple[int, int]]:
    """Return heights and widths of images to look at, pixels: the usual one, another shape, and one to be padded.

    Of a file that takes one size, these are that size, and of a dense model a smaller image that is padded to it; of
    one that resizes by itself, a picture that it leaves at its size, a large one and a small one.
    """
    p = description.preprocess
    usual = p.get("image_size") or p.get("window") or p.get("short_side") or 224
    if description.task != "classify":
        usual = max(LEAST_SIDE, min(MOST_SIDE, usual) // STRIDE * STRIDE)
    whole = max(LEAST_SIDE, round(usual / STRIDE) * STRIDE)
    wanted = [(usual, usual), (whole + STRIDE, max(LEAST_SIDE, whole - STRIDE)), (whole - 13, whole + 5)]
    height, width = description.height, description.width
    if description.preprocessing_inside:
        sizes = [(whole, whole), (2 * whole + 11, 3 * whole + 7), (whole - 13, whole + 5)]
    elif description.task == "classify":
        sizes = [(height or h, width or w) for h, w in wanted]
    else:
        sizes = [(min(h, height or h), min(w, width or w)) for h, w in wanted]
        if height and width:
            sizes = [(height, width), (height - 13, width - 27)]
    return list(dict.fromkeys(sizes))


def _squeezed(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _inputs(images: Sequence[Image.Image], description: Description) -> tuple[Array, Array]:
    """Return what the file takes of images, and what PyTorch does: (B, C, H, W) float32, 0 to 1, as they are.

    The two are one but for a file that resizes and crops by itself.
    """
    d = description
    if d.preprocessing_inside:
        p = Preprocess.from_dict(d.preprocess)
        raw = np.stack([raw_input(image, p.channels) for image in images])
        return raw, np.stack([classifier_input(image, p) for image in images])
    if d.task == "classify":
        grey = d.preprocess["channels"] == 1
        rows = [np.asarray(image.convert("L" if grey else "RGB"), np.float32) / np.float32(255) for image in images]
        same = np.stack([row[None] if row.ndim == 2 else row.transpose(2, 0, 1) for row in rows])
    else:
        as_it_is = replace(DensePreprocess.from_dict(d.preprocess), short_side=None, long_side=None)
        same = np.stack([dense_input(image, as_it_is, height=d.height, width=d.width).pixels for image in images])
    same = np.ascontiguousarray(same)
    return same, same


def _largest_difference(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    if expected.keys() != found.keys():
        return float("inf")
    return max(relative_difference(np.asarray(found[name]), value) for name, value in expected.items())


def _latency(engine: Engine, reference: Reference, photographs: Photographs, seconds: float) -> Latency:
    """Time one call of the file and one of PyTorch, in turn."""
    size = check_sizes(engine.description)[0]
    batch = engine.description.batch or 1
    images = [_squeezed(image, *size) for image in islice(photographs.read(), 1)] * batch
    pixels, seen = _inputs(images, engine.description)
    tensor = torch.from_numpy(seen)

    def eager() -> None:
        with torch.inference_mode():
            reference(tensor)

    timed = time_interleaved({"file": lambda: engine.run(pixels), "eager": eager}, seconds=seconds)
    found = ratio(timed["file"], timed["eager"])
    return Latency(
        batch,
        seen.shape[-2],
        seen.shape[-1],
        file_ms=round(timed["file"].percentile_ms(50), 3),
        eager_ms=round(timed["eager"].percentile_ms(50), 3),
        ratio=round(found.median, 3),
        low=round(found.low, 3),
        high=round(found.high, 3),
        rounds=found.rounds,
    )
