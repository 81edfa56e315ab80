"""What an exported file says of itself: enough to feed it and to read its answers, without anything else.

The same JSON text lies inside every format that can hold text (in ONNX's metadata, for instance), and beside the file
otherwise. Nothing here needs PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fullfield.errors import CheckpointError

__all__ = ["KEY", "OUTPUTS", "PRECISIONS", "TASKS", "Description", "Selection"]

KEY = "fullfield"
"""The name of the JSON text in a format's metadata."""
TASKS = ("classify", "detect", "segment")
OUTPUTS = {"classify": ("logits",), "detect": ("boxes", "scores"), "segment": ("logits",)}
"""Task -> names of the outputs, in order."""
PRECISIONS = ("fp32", "fp16", "int8")
_VERSION = 1


@dataclass(frozen=True)
class Selection:
    """How the objects are chosen among a detector's boxes, as torchvision's RetinaNet and FCOS do.

    Attributes:
        strides: Of the maps, pixels of the input, the finest first.
        boxes_per_place: Boxes at each place of a map.
        score_threshold: A class of a box with a lower score is no candidate.
        candidates: At most so many of each map go on, the surest.
        nms_threshold: Of two boxes of one class that overlap more (intersection over union), the surer stays.
        detections: At most so many an image.
    """

    strides: tuple[int, ...]
    boxes_per_place: int
    score_threshold: float
    candidates: int
    nms_threshold: float
    detections: int


@dataclass(frozen=True)
class Description:
    """An exported model, told in plain values.

    Attributes:
        task: One of `TASKS`.
        name: Of the net, with its head if it has one, such as "fcos racnn_pico".
        classes: Names of the classes, in the order of the outputs.
        preprocess: `Preprocess.to_dict()` of a classifier, `DensePreprocess.to_dict()` of the others. Mean and
            standard deviation are for the reader alone: the graph normalises by itself, and takes values from 0 to 1.
        colours: Red, green and blue, 0 to 255, of each class of a segmenter; else empty.
        batch: Images a call; None for any number.
        height: Pixels; None for any.
        width: Pixels; None for any.
        precision: One of `PRECISIONS`; input and outputs are float32 whatever it is.
        trained: Whether anyone trained the weights.
        preprocessing_inside: The graph takes uint8 pixels (1, H, W, C) of any size instead, and resizes and crops by
            itself.
        selection: How a detector's boxes are chosen; None for the other tasks.
    """

    task: str
    name: str
    classes: tuple[str, ...]
    preprocess: Mapping[str, Any]
    colours: tuple[tuple[int, int, int], ...] = ()
    batch: int | None = None
    height: int | None = None
    width: int | None = None
    precision: str = "fp32"
    trained: bool = True
    preprocessing_inside: bool = False
    selection: Selection | None = None

    def to_json(self) -> str:
        """Return the values as one JSON text; `from_json` reads it back."""
        return json.dumps({"version": _VERSION, **asdict(self), "preprocess": dict(self.preprocess)})

    @classmethod
    def from_json(cls, text: str, file: object) -> Description:
        """Read what `to_json` wrote.

        Args:
            text: The JSON.
            file: Where it was found, for messages.

        Raises:
            CheckpointError: It is no such text, or of a later version of Fullfield.
        """
        try:
            values = json.loads(text)
            version = values.pop("version")
            if version > _VERSION:
                raise CheckpointError(f"{file} was exported by a later Fullfield; install that version to run it")
            unknown = sorted(values.keys() - {field.name for field in fields(cls)})
            if unknown:
                raise ValueError(f"unknown keys {', '.join(unknown)}")
            selection = values.pop("selection", None)
            if selection is not None:
                selection = Selection(**{**selection, "strides": tuple(selection["strides"])})
            classes = tuple(str(name) for name in values.pop("classes"))
            colours = tuple((int(r), int(g), int(b)) for r, g, b in values.pop("colours"))
            made = cls(classes=classes, colours=colours, selection=selection, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{file}: its description can't be read ({error}); export it again with `fullfield export`"
            ) from error
        if made.task not in TASKS or made.precision not in PRECISIONS or not made.classes:
            raise CheckpointError(
                f"{file}: its description says task {made.task!r}, precision {made.precision!r} and"
                f" {len(made.classes)} classes; export it again with `fullfield export`"
            )
        return made
