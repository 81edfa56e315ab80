"""Distillation: a student learns from a trained teacher's answers beside the labels.

Source: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015 (soft answers); Touvron et al.,
DeiT, 2021, equation 3 (hard ones). The teacher answers for exactly the pictures that the student sees, mixed and
erased as they are ("consistent teaching", Beyer et al., 2022), in its own normalisation and at its own size.

The teacher is no submodule: it is not in the student's state, not averaged, not given to the optimiser. It follows the
images to their device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from fullfield.data import Preprocess
from fullfield.errors import ConfigError
from fullfield.tasks.model_file import is_model_file, load_model_file
from fullfield.tasks.pretrained import published_preprocess
from fullfield.tasks.source import open_model
from fullfield.train.image_sizes import resize_batch

__all__ = ["Distillation", "Teacher", "open_teacher"]

LUMA = (0.299, 0.587, 0.114)  # RGB to grey, ITU-R BT.601, as images are read
_PLACEHOLDER = re.compile(r"class \d+")


class Teacher:
    """A trained net that answers for a student's batches.

    Args:
        model: Module (B, C, S, S) -> (B, classes). It is put into eval mode and its parameters are frozen.
        own: How it wants its images.
        student: How the student's images were made: its mean and std are undone.
        columns: Position of each of the student's classes among the teacher's; None where they are the same.
    """

    def __init__(
        self, model: nn.Module, own: Preprocess, student: Preprocess, columns: Sequence[int] | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.own = own
        self.student = student
        self.columns = None if columns is None else torch.tensor(columns)

    def __deepcopy__(self, _: Any) -> Teacher:
        """Return itself: a copy of the student, an average of it say, has the same teacher."""
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, classes), float32, of the student's images (B, C, S, S), in the student's classes."""
        like = next(self.model.parameters(), images)
        if like.device != images.device:
            self.model.to(images.device)
        logits: Tensor = self.model(self.adapt(images).to(like.dtype)).float()
        return logits if self.columns is None else logits[:, self.columns.to(logits.device)]

    def adapt(self, images: Tensor) -> Tensor:
        """Return the student's images (B, C, S, S) as the teacher wants them (B, C', S', S').

        The student's normalisation is undone and the teacher's applied, grey becomes RGB or RGB grey, and the side
        becomes the teacher's (bilinear, antialiased). The teacher's share of the centre does not apply: training
        images are random crops.
        """
        own, student = self.own, self.student
        same = (own.mean, own.std, own.channels) == (student.mean, student.std, student.channels)
        if not same:
            values = images * _per_channel(student.std, images) + _per_channel(student.mean, images)
            if own.channels == 1 and student.channels == 3:
                values = (values * _per_channel(LUMA, images)).sum(dim=1, keepdim=True)
            images = (values - _per_channel(own.mean, images)) / _per_channel(own.std, images)  # grey broadcasts to RGB
        return resize_batch(images, own.image_size)


class Distillation:
    """The loss of a student with a teacher: (1 - weight) * cross-entropy + weight * distillation.

    Soft: T^2 KL(teacher || student), both softened by the temperature T, the mean over images, nats; T^2 keeps the size
    of its gradient. Hard: cross-entropy with the teacher's first answer.

    Args:
        teacher: As `open_teacher` gives it.
        temperature: Above 0; larger shows more of what the teacher thinks of the wrong classes. Not for hard answers.
        weight: Share of the teacher in the loss, 0 to 1.
        hard: Only the teacher's first answer counts.

    Raises:
        ConfigError: `temperature` or `weight` is impossible.
    """

    def __init__(self, teacher: Teacher, *, temperature: float = 1.0, weight: float = 0.5, hard: bool = False) -> None:
        if not 0 < temperature < float("inf"):
            raise ConfigError(f"the temperature of distillation must be more than 0 and finite, got {temperature}")
        if not 0 <= weight <= 1:
            raise ConfigError(f"the weight of distillation must lie between 0 and 1, got {weight}")
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self.hard = hard

    def __call__(self, cross_entropy: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            cross_entropy: The student's loss on the labels, with whatever smoothing and mixing.
            logits: The student's, (B, classes).
            images: What the student saw, (B, C, S, S).
        """
        answers = self.teacher(images)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.hard:
            taught = F.cross_entropy(logits, answers.argmax(dim=1))
        else:
            soft = F.log_softmax(logits / self.temperature, dim=1)
            goal = F.log_softmax(answers.to(logits.dtype) / self.temperature, dim=1)
            taught = F.kl_div(soft, goal, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.weight) * cross_entropy + self.weight * taught


def open_teacher(source: str | Path, *, classes: Sequence[str], preprocess: Preprocess) -> Teacher:
    """Open a trained net as the teacher of a student.

    Args:
        source: A run folder, a checkpoint, a registered name (its published weights are fetched), or
            "path/to/file.py:factory", which is run and must load its weights itself.
        classes: The student's, in its order. A teacher that knows the same names in another order is put into theirs.
        preprocess: The student's.

    Raises:
        ConfigError: The teacher has other classes, gives no logits, or its file makes no model.
        CheckpointError: Its weights can't be used or fetched.
        ModelNotFoundError: There is no such model.
    """
    known: Sequence[str] = ()
    if is_model_file(source):
        model = load_model_file(source)
        own = published_preprocess(model)  # ImageNet's mean and std where the model does not say
    else:
        opened = open_model(source, pretrained=True, device="cpu")
        if not opened.trained:
            raise ConfigError(f"{source} has no trained weights, so it can teach nothing; give a run or a checkpoint")
        model, own, known = opened.model, opened.preprocess, opened.classes
    count = _answers(model, own, source)
    if count != len(classes):
        raise ConfigError(
            f"the teacher {source} knows {count} classes and the data has {len(classes)}; give one that was trained on"
            " the same classes"
        )
    return Teacher(model, own, preprocess, _columns(source, known, classes))


def _answers(model: nn.Module, own: Preprocess, source: str | Path) -> int:
    """Return how many logits a model gives, by asking it.

    Raises:
        ConfigError: It gives something else.
    """
    where = next(model.parameters(), torch.empty(0))
    blank = torch.zeros(1, own.channels, own.image_size, own.image_size, device=where.device, dtype=where.dtype)
    with torch.no_grad():
        answer = model.eval()(blank)
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ConfigError(f"the teacher {source} must give logits (B, classes), got {shape} for one image")
    return answer.shape[1]


def _columns(source: str | Path, known: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Return where the student's classes are among those that the teacher knows by name.

    Raises:
        ConfigError: The names are others.
    """
    if not known or all(_PLACEHOLDER.fullmatch(name) for name in known) or list(known) == list(classes):
        return None
    subset = infer_imagenet_subset({"num_classes": len(known)})
    if subset is not None and not set(classes) <= set(known):
        known = ImageNetInfo(subset).label_names()  # ImageNet's folders are named by WordNet numbers
    position = {name: index for index, name in enumerate(known)}
    missing = [name for name in classes if name not in position]
    if missing:
        raise ConfigError(
            f"the teacher {source} was trained on other classes: it does not know {', '.join(map(repr, missing[:3]))}"
            f" but {', '.join(map(repr, list(known)[:3]))}, ...; give a teacher of the same classes, or name the"
            " folders as it does"
        )
    columns = [position[name] for name in classes]
    return None if columns == list(range(len(columns))) else columns


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None, None]
