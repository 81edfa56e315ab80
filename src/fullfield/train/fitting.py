"""Settings fitted to the data and the machine, so that `fullfield train PHOTOS` alone does something sensible.

Every rule is a few lines, and every fitted value is said on the screen with its reason. The rules look at sizes
and counts only, so that the same data on the same kind of machine gives the same settings.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import replace

import torch
from PIL import Image

from fullfield.data import ImageData, open_sample
from fullfield.models.racnn import VARIANTS, RaCNNConfig
from fullfield.train.settings import TrainSettings

__all__ = ["fit_settings", "typical_side"]

STEPS_WORTH_TAKING = 2000


def fit_settings(settings: TrainSettings, data: ImageData, device: torch.device) -> tuple[TrainSettings, list[str]]:
    """Fill in what the user left open.

    Args:
        settings: As given.
        data: What will be trained on.
        device: Where.

    Returns:
        Settings without `None` where a rule exists, and one sentence for each fitted value.
    """
    gpu = device.type != "cpu"
    count = len(data.splits["train"])
    side = typical_side(data)
    fitted: dict[str, object] = {}
    notes: list[str] = []

    def fit(name: str, value: object, why: str) -> None:
        if getattr(settings, name) is None:
            fitted[name] = value
            notes.append(f"{name.replace('_', ' ')} {value}: {why}")

    where = "a GPU" if gpu else "a CPU"
    fit("model", "racnn_tiny" if gpu else "racnn_pico", f"a size that trains well on {where}")
    size = min(max(round(side / 32) * 32, 32), 224 if gpu else 128)
    fit(
        "image_size", size, f"the images' shorter side is typically {side} px; at most {224 if gpu else 128} on {where}"
    )
    model, used_size = settings.model or str(fitted["model"]), settings.image_size or size
    region_size = fitted_region_size(settings, model, used_size)
    if region_size is not None:
        fitted["model_args"] = (*settings.model_args, f"region_size={region_size}".replace(" ", ""))
        notes.append(f"region size {region_size}: at {used_size} px larger regions leave windows of one pixel")
    most = 128 if gpu else 32
    batch = max(4, min(most, 2 ** max(count // 16, 1).bit_length() // 2))
    fit("batch_size", batch, f"{count:,} training images on {where}")
    used_batch = settings.batch_size or batch
    steps = max(1, count // used_batch)
    fit("epochs", min(max(round(STEPS_WORTH_TAKING / steps), 10), 100), f"about {STEPS_WORTH_TAKING:,} steps")
    start = 0.2 if settings.weights or settings.pretrained else 1.0
    power, rule = (0.5, "sqrt(batch / 64)") if settings.lr_rule == "sqrt" else (1.0, "batch / 64")
    fifth = "" if start == 1 else ", a fifth of it from given weights"
    rate = float(f"{1e-3 * (used_batch / 64) ** power * start:.2g}")
    fit("lr", rate, f"1e-3 * {rule} for a batch of {used_batch}{fifth}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    # on a CPU the net itself uses every core, and readers beside it would only make its threads wait
    fit("workers", min(8, cores - 1) if gpu else cores // 8, f"{cores} processor cores, training on {where}")
    return replace(settings, **fitted), notes  # type: ignore[arg-type]


def fitted_region_size(settings: TrainSettings, model: str, image_size: int) -> list[int] | None:
    """Return the region size, one a stage, that gives RaCNN at a small size the windows that it has at 224 pixels.

    A window of one pixel is degenerate: cosines are ±1 and no gradient goes through the weights (docs/models/racnn.md).

    Args:
        settings: As given.
        model: Name of the model, fitted or given.
        image_size: Side of the training images, pixels, fitted or given.

    Returns:
        None where the default has such windows already, where the user chose, where the weights were trained with
        another, and for all other models.
    """
    cfg = VARIANTS.get(model)
    arguments = settings.model_arguments()
    if cfg is None or cfg.region_size != RaCNNConfig.region_size or "region_size" in arguments:
        return None
    if settings.weights or settings.pretrained:
        return None
    stride = arguments.get("stem_stride", cfg.stem_stride)
    if stride not in (1, 2, 4):  # refused when the model is built
        return None
    side = image_size // (4 * stride)  # of the third stage's map, which is to have 2 × 2 pixels a window
    fitting = max(1, side // 2)
    default = cfg.per_stage("region_size", 1)[0]
    return None if fitting >= default else [fitting, fitting, fitting, 1]


def typical_side(data: ImageData, looks: int = 100) -> int:
    """Return the median shorter side, pixels, of up to `looks` training images spread over the list.

    Only headers are read; images that can't be opened are passed over here and reported in training.
    """
    samples = data.splits["train"]
    sides = []
    for sample in samples[:: max(1, len(samples) // looks)]:
        try:
            with open_sample(sample) as stream, Image.open(stream) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return round(statistics.median(sides)) if sides else 224
