"""An exported file as a model that answers for pictures: prepare, run, read the outputs; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fullfield.data.dense import DensePreprocess
from fullfield.data.preprocess import Preprocess
from fullfield.deploy.answer_classify import label_answers
from fullfield.deploy.answer_detect import choose_objects, object_answer
from fullfield.deploy.answer_segment import pixel_answer
from fullfield.deploy.engine import Engine
from fullfield.deploy.prepare import DenseInput, classifier_input, dense_input, raw_input
from fullfield.errors import CheckpointError, ConfigError

__all__ = ["FileModel"]

Array = NDArray[Any]
Outputs = Mapping[str, Array]


class FileModel:
    """What `Predictor` asks for answers when it was given an exported file.

    Args:
        engine: The opened file.
        file: For messages.

    Raises:
        CheckpointError: The file's description is not complete.
    """

    trained: bool

    def __init__(self, engine: Engine, file: str | Path) -> None:
        d = engine.description
        self.task, self.name, self.classes, self.colours = d.task, d.name, d.classes, d.colours
        self.trained = d.trained
        self.engine = engine.name
        self._engine = engine
        self.description = d
        try:
            kind = Preprocess if d.task == "classify" else DensePreprocess
            self._preprocess: Any = kind.from_dict(d.preprocess)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{file}: its preprocessing can't be used ({error}); export it again") from error
        missing = {
            "no rule to choose boxes": d.task == "detect" and d.selection is None,
            "not as many colours as classes": d.task == "segment" and len(d.colours) != len(d.classes),
            "preprocessing inside, which is for classifiers": d.task != "classify" and d.preprocessing_inside,
        }
        for what, is_so in missing.items():
            if is_so:
                raise CheckpointError(f"{file} is for {d.task} and has {what}; export it again with `fullfield export`")

    def prepare(self, image: Image.Image) -> Array | DenseInput:
        """Return an upright RGB picture as the file takes it; safe to call from any thread."""
        d = self.description
        if d.preprocessing_inside:
            return raw_input(image, self._preprocess.channels)
        if d.task == "classify":
            return classifier_input(image, self._preprocess)
        return dense_input(image, self._preprocess, height=d.height, width=d.width)

    def answers(
        self, paths: Sequence[Path], prepared: Sequence[Array | DenseInput], *, top: int, threshold: float
    ) -> list[Any]:
        """Return a prediction for each image, in order; images of one prepared size are computed together.

        Args:
            paths: Of the images.
            prepared: What `prepare` returned for each.
            top: Classifiers: classes to name.
            threshold: Detectors: the least score.

        Raises:
            ConfigError: The file's library can't compute images of these sizes.
        """
        found: list[Any] = [None] * len(prepared)
        for places in self._groups(prepared):
            chosen = [prepared[place] for place in places]
            outputs = self._run(np.stack([one.pixels if isinstance(one, DenseInput) else one for one in chosen]))
            named = self._read([paths[place] for place in places], chosen, outputs, top, threshold)
            for place, answer in zip(places, named, strict=True):
                found[place] = answer
        return found

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()

    def _groups(self, prepared: Sequence[Array | DenseInput]) -> Iterator[list[int]]:
        """Yield the positions of images that are run at once: of one size, and no more than the file takes."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(prepared):
            by_size.setdefault((one.pixels if isinstance(one, DenseInput) else one).shape, []).append(place)
        most = 1 if self.description.preprocessing_inside else self.description.batch
        for places in by_size.values():
            at_once = most or len(places)
            for start in range(0, len(places), at_once):
                yield places[start : start + at_once]

    def _run(self, images: Array) -> Outputs:
        """Run at most as many images as the file takes; where it takes no fewer, the last fills the batch."""
        batch = self.description.batch
        if batch is None or self.description.preprocessing_inside or len(images) == batch:
            return self._engine.run(images)
        filled = np.concatenate([images, np.repeat(images[-1:], batch - len(images), axis=0)])
        return {name: values[: len(images)] for name, values in self._engine.run(filled).items()}

    def _read(
        self, paths: Sequence[Path], inputs: Sequence[Any], outputs: Outputs, top: int, threshold: float
    ) -> list[Any]:
        """Return the predictions for the images of one run."""
        if self.task == "classify":
            self._check_classes(outputs["logits"].shape[1])
            return label_answers(paths, outputs["logits"], self.classes, top)
        if self.task == "segment":
            self._check_classes(outputs["logits"].shape[1])
            return [
                pixel_answer(path, logits, self.classes, seen=one.seen, original=one.original)
                for path, one, logits in zip(paths, inputs, outputs["logits"], strict=True)
            ]
        self._check_classes(outputs["scores"].shape[2])
        selection = self.description.selection
        assert selection is not None  # noqa: S101 - for the type checker: __init__ looked
        answers = []
        for path, one, boxes, scores in zip(paths, inputs, outputs["boxes"], outputs["scores"], strict=True):
            padded = (one.pixels.shape[1], one.pixels.shape[2])
            objects = choose_objects(boxes, scores, selection, padded=padded, seen=one.seen)
            sizes = {"seen": one.seen, "original": one.original}
            answers.append(object_answer(path, objects, self.classes, **sizes, threshold=threshold))
        return answers

    def _check_classes(self, given: int) -> None:
        if given != len(self.classes):
            raise CheckpointError(
                f"{self.name} gives {given} classes and names {len(self.classes)}; export it again with"
                " `fullfield export`"
            )
