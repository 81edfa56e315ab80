"""Make a Fullfield file of anyone's checkpoint, so that `predict`, `eval`, `train --weights` and `load` take it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.data import Preprocess
from fullfield.errors import CheckpointError, ConfigError, RunError
from fullfield.models.official import LoadReport, load_weights, models_in
from fullfield.models.weight_file import is_safetensors, read_safetensors
from fullfield.models.weights import find_weights, load, read_header, save
from fullfield.tasks.pretrained import published_classes, published_preprocess
from fullfield.tasks.source import checkpoint_metadata

__all__ = ["Conversion", "convert"]

PROBE_PIXELS = 64  # what is compared are weights, which an image of any size reads
FUSED_TOLERANCE = 1e-3
"""Relative difference of the logits that folding norms in float32 may cause."""


@dataclass(frozen=True)
class Conversion:
    """What was made of a file."""

    path: Path
    report: LoadReport
    parameters: int
    difference: float
    """‖logits of the file - logits of the loaded model‖ / ‖logits‖, on a random image: 0, or rounding if fused."""


def convert(
    source: str | Path,
    target: str | Path,
    *,
    model: str | None = None,
    which: str | None = None,
    fuse: bool = False,
    image_size: int | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the weights of any file that `load_weights` reads as a Fullfield safetensors file, and check it.

    Beside the weights the file says how to build the model, how to prepare images, and what the classes are called
    (ImageNet's names for 1000 or 21841 classes). A file of a backbone alone is written without a classifier.

    Args:
        source: The checkpoint.
        target: The file to make, ending in .safetensors.
        model: Registered name; None to find it from the names and shapes in the file (Fullfield's models only).
        which: As for `load_weights`.
        fuse: Fold all norms; the file is then for inference only.
        image_size: Pixels at which the weights were trained, where that is not the model's own resolution.
        overwrite: Replace `target` if it exists.

    Raises:
        CheckpointError: The file can't be read or fits no model, or several (name one), or the file written does not
            give the same outputs.
        ConfigError: `target` has another ending, or the image size is impossible.
        RunError: `target` exists or can't be written.
    """
    path = Path(target)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path} must end in .safetensors, the format that is written")
    if path.exists() and not overwrite:
        raise RunError(f"{path} exists and is not overwritten unasked; choose another name or pass --overwrite")
    name = model if model is not None else _only_model(source, which)
    made: Any = load_weights(name, source, which=which)
    report: LoadReport = made.loaded_from
    if report.classifier == "fresh":
        made.reset_classifier(0)
    probe = torch.randn(1, made.in_chans, PROBE_PIXELS, PROBE_PIXELS, generator=torch.Generator().manual_seed(0))
    expected = _logits(made, probe)
    if fuse and hasattr(made, "fuse"):
        made.fuse()
    save(made, path, _metadata(made, source, image_size))
    difference = _difference(_logits(load(path), probe), expected)
    if not difference <= (FUSED_TOLERANCE if fuse else 0.0):
        raise CheckpointError(
            f"{path} was written, but its outputs differ from those of {source} by {difference:.1e} (relative norm);"
            " do not use it, and report this"
        )
    return Conversion(path, report, sum(p.numel() for p in made.parameters()), difference)


def _only_model(source: str | Path, which: str | None) -> str:
    names = models_in(source, which)
    if len(names) > 1:
        raise CheckpointError(
            f"{source} fits {' and '.join(names)}, which differ in no weight; say which one it is (--model)"
        )
    return names[0]


def _metadata(model: Any, source: str | Path, image_size: int | None) -> dict[str, Any]:
    """Return what the source says beside its weights, if it is a Fullfield file, and else what was published."""
    file = find_weights(source)
    header = read_header(file, read_safetensors(file)[0]) if is_safetensors(file) else None
    stored = header.metadata if header is not None else {}
    preprocess = Preprocess.from_dict(stored["preprocess"]) if "preprocess" in stored else published_preprocess(model)
    if image_size is not None:
        preprocess = replace(preprocess, image_size=image_size)
    if not model.num_classes:
        return stored | {"preprocess": preprocess.to_dict()}
    classes = tuple(stored.get("classes") or published_classes(model.num_classes))
    return stored | checkpoint_metadata(classes, preprocess)


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits.double()


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return ‖found - expected‖ / ‖expected‖; 0 if they are the same, be they finite or not."""
    if torch.equal(found.nan_to_num(), expected.nan_to_num()):
        return 0.0
    return float((found - expected).norm() / expected.norm())
