"""What of a trained model may leave this machine: its weights, how it is built, its figures, its settings.

A run folder also knows where its images lie, what they are called and where it stands itself. So nothing is copied
from it: every value that is shared is named here, and its form is checked. The names of the classes and of embedded
samples are the only free words among them.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from fullfield.data.sample import SAMPLE_PREFIX, sample_names
from fullfield.errors import CheckpointError, RunError
from fullfield.models.flops import count_flops
from fullfield.models.weight_file import read_safetensors
from fullfield.models.weights import HEADER, find_weights, read_header
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import OpenedModel, is_registered_name

__all__ = ["Evaluated", "SharedFacts", "read_facts", "shared_weights"]

FIGURES = {
    "classify": ("top1", "top5", "mean_recall", "loss", "majority"),
    "detect": (
        *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100"),
        *("mask_ap", "mask_ap50", "mask_ap75"),
    ),
    "segment": ("miou", "macc", "pixel_accuracy", "loss", "majority_miou"),
}
"""Task -> its single figures, as evaluations write them."""
PER_CLASS = {"classify": "recall", "detect": "ap", "segment": "iou"}
SPLITS = ("train", "val", "test", "all")
SETTINGS = (
    *("epochs", "image_size", "long_side", "batch_size", "repeats", "lr", "lr_rule", "weight_decay"),
    *("layer_decay", "warmup_epochs", "clip_grad", "ema", "sparsity", "precision"),
    *("drop_path", "drop_rate", "label_smoothing", "mixup", "cutmix", "rand_augment", "erasing", "scale_min"),
    *("scale_jitter", "crop", "photometric", "copy_paste", "mosaic", "loss", "hflip", "vflip", "val_share", "seed"),
)
"""Settings that are told; a word among them must look like one (`_WORD`)."""
_OF_TASKS = {
    **dict.fromkeys(("label_smoothing", "scale_min"), ("classify",)),
    **dict.fromkeys(("scale_jitter", "photometric", "crop"), ("detect", "segment")),
    "loss": ("segment",),
}
"""Settings that every run has, and only those of some tasks use."""
STORED = ("task", "classes", "preprocess", "head", "head_arguments", "colours", "ignore_index", "epoch")
"""What a shared file keeps of what was saved beside its weights; figures (`_FIGURE`) too."""

_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,40}")
_FIGURE = re.compile(r"val_[a-z0-9_]{1,30}")
_COARSEST = 32  # stride of the last stage: images of dense models are padded to a multiple of it


@dataclass(frozen=True)
class Evaluated:
    """Figures of a model on one part of a data set.

    Attributes:
        split: One of `SPLITS`.
        images: How many; None if that is not known.
        figures: Of `FIGURES`; shares from 0 to 1 but for the loss.
        per_class: Class -> recall, AP or IoU, 0 to 1; empty if that is not known.
    """

    split: str
    images: int | None
    figures: Mapping[str, float]
    per_class: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SharedFacts:
    """A trained model, told to strangers.

    Attributes:
        task: classify, detect or segment.
        name: Of the net, with its head if it has one.
        architecture: Registered name of the net.
        arguments: Of its `create_model`.
        form: "training", "merged" or "fused".
        classes: In the order of the outputs.
        preprocess: As it is stored with the weights.
        params: Learned numbers.
        macs: Of one image of `macs_size`; of a detector, those of its backbone.
        macs_size: (C, H, W).
        evaluated: None if there are no figures.
        settings: Those of `SETTINGS` that the run used.
        data: Name of an embedded sample that it was trained on; else None.
        started_from: "other weights", "timm's weights" or "random weights"; None if that is not known.
        head: Of a detector or segmenter; else "".
        head_arguments: Likewise.
    """

    task: str
    name: str
    architecture: str
    arguments: Mapping[str, Any]
    form: str
    classes: tuple[str, ...]
    preprocess: Mapping[str, Any]
    params: int
    macs: int
    macs_size: tuple[int, int, int]
    evaluated: Evaluated | None = None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    data: str | None = None
    started_from: str | None = None
    head: str = ""
    head_arguments: Mapping[str, Any] = field(default_factory=dict)


def read_facts(source: str | Path, opened: OpenedModel | OpenedDense | None = None) -> SharedFacts:
    """Read what may be told of a trained model.

    Args:
        source: A run folder, or a weights file of Fullfield's.
        opened: What `open_any` returned for it, if it was opened already.

    Raises:
        CheckpointError: It is a registered name, or holds no usable weights.
    """
    if is_registered_name(source):
        raise CheckpointError(
            f"{source} is a registered model without weights of your own; give a run folder or a weights file"
        )
    opened = open_any(source, device="cpu") if opened is None else opened
    file = find_weights(source)
    header = read_header(file, read_safetensors(file)[0])
    if header is None:  # whoever opened it has found one
        raise CheckpointError(f"{file} was not written by Fullfield; make a file of it with `fullfield convert`")
    stored, config = header.metadata, _config(file)
    macs, size = _macs(opened)
    return SharedFacts(
        task=opened.task,
        name=opened.name,
        architecture=header.spec.name,
        arguments=header.spec.arguments,
        form=header.form,
        classes=opened.classes,
        preprocess=opened.preprocess.to_dict(),
        params=sum(p.numel() for p in opened.model.parameters()),
        macs=macs,
        macs_size=size,
        evaluated=_evaluated(file, opened) or _while_training(stored, opened.task),
        settings={
            name: config[name]
            for name in SETTINGS
            if _is_plain(config.get(name)) and opened.task in _OF_TASKS.get(name, (opened.task,))
        },
        data=_sample(config.get("data")),
        started_from=_start(config),
        head=str(stored.get("head", "")),
        head_arguments=stored.get("head_arguments", {}),
    )


def shared_weights(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a weights file and its header, without what strangers need not know (see `STORED`).

    Args:
        source: A run folder, or a weights file of Fullfield's.

    Returns:
        What `models.weights.write_weights` takes.

    Raises:
        CheckpointError: The file is damaged or not Fullfield's.
    """
    file = find_weights(source)
    entries, tensors = read_safetensors(file)
    found = read_header(file, entries)
    if found is None:
        raise CheckpointError(f"{file} was not written by Fullfield; make a file of it with `fullfield convert`")
    kept = {key: value for key, value in found.metadata.items() if key in STORED or _is_figure(key, value)}
    whole = json.loads(entries[HEADER])
    header = {key: whole[key] for key in ("name", "arguments", "merged", "fused", "task") if key in whole}
    return tensors, header | {"metadata": kept}


def _config(file: Path) -> dict[str, Any]:
    """Return the settings of the run that a weights file lies in; nothing if it lies in none."""
    try:
        return RunFolder.open(file.parent.parent).read_config()
    except RunError:
        return {}


def _evaluated(file: Path, opened: OpenedModel | OpenedDense) -> Evaluated | None:
    """Return the figures of the run's evaluation; None if there are none."""
    try:
        text = (RunFolder(file.parent.parent).evaluation / "evaluation.json").read_text(encoding="utf-8")
        found = json.loads(text)
        split, images = found["split"], found.get("images")
        if images is None:  # a classifier's: every image is counted once in its matrix
            images = sum(map(sum, found["confusion"]))
        figures = {key: float(found[key]) for key in FIGURES[opened.task] if _is_number(found.get(key))}
        by_class = found["per_class"] if opened.task == "detect" else found[PER_CLASS[opened.task]]
        per_class = {}
        for name in opened.classes:
            value = by_class.get(name)
            value = value.get("ap") if isinstance(value, dict) else value
            if _is_number(value):
                per_class[name] = float(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # an edited or damaged file has no figures
        return None
    if split not in SPLITS or not figures:
        return None
    return Evaluated(split, int(images), figures, per_class)


def _while_training(stored: Mapping[str, Any], task: str) -> Evaluated | None:
    """Return the figure by which the trainer chose these weights; None if it is not there."""
    found = {key: stored.get(f"val_{key}") for key in FIGURES[task]}
    figures = {key: float(value) for key, value in found.items() if _is_number(value)}
    images = stored.get("val_images")
    return Evaluated("val", int(images) if _is_number(images) else None, figures) if figures else None


def _macs(opened: OpenedModel | OpenedDense) -> tuple[int, tuple[int, int, int]]:
    """Return the MACs of one image and its (C, H, W); of a detector, those of its backbone."""
    p = opened.preprocess
    if isinstance(opened, OpenedModel):
        height = width = opened.preprocess.image_size
        net: nn.Module = opened.model
    else:
        wide = opened.preprocess
        side = wide.window or wide.short_side or 512
        height, width = side, side if wide.window else (wide.long_side or side)
        height, width = height + -height % _COARSEST, width + -width % _COARSEST
        net = opened.model.backbone if opened.task == "detect" else opened.model
    size = (p.channels, height, width)
    try:
        return count_flops(copy.deepcopy(net).to("meta"), size) // 2, size
    except RuntimeError:  # a few of timm's compute with numbers of their weights
        return count_flops(net.to(torch.float32), size) // 2, size


def _sample(data: Any) -> str | None:
    """Return the name of an embedded sample; None for any other data, whose name may be a path."""
    name = data.removeprefix(SAMPLE_PREFIX) if isinstance(data, str) and data.startswith(SAMPLE_PREFIX) else None
    return name if name in sample_names() else None


def _start(config: Mapping[str, Any]) -> str | None:
    if not config:
        return None
    if config.get("weights"):
        return "other weights"
    return "timm's weights" if config.get("pretrained") is True else "random weights"


def _is_plain(value: Any) -> bool:
    """Whether a setting is a switch, a number, or one short word that can't be a path."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return isinstance(value, bool) or _is_number(value)


def _is_figure(key: str, value: Any) -> bool:
    return _FIGURE.fullmatch(key) is not None and _is_number(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
