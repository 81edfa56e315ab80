"""The forms of answers, as OpenAPI tells them. The endpoints send plain JSON; the tests hold it to these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fullfield.deploy.serve.uploads import FIELD, IMAGE_TYPES, MULTIPART

__all__ = ["ErrorAnswer", "Health", "ModelList", "PredictAnswer", "Readiness", "refusals", "request_body"]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Size(_Form):
    """Pixels of the upright image."""

    width: int
    height: int


class Label(_Form):
    """A class and how likely it is."""

    name: str = Field(alias="class")
    probability: float = Field(ge=0, le=1.0001)


class ClassifyAnswer(_Form):
    """A classifier's answer: the likeliest classes, best first."""

    labels: list[Label]


class FoundObject(_Form):
    """An object; the box is left, top, right, bottom in pixels, the mask COCO's run lengths."""

    name: str = Field(alias="class")
    score: float
    box: list[float] = Field(min_length=4, max_length=4)
    mask: dict[str, Any] | None = None


class DetectAnswer(_Form):
    """A detector's answer: the objects, the surest first."""

    size: Size
    detections: list[FoundObject]


class Share(_Form):
    """A class and its share of the pixels, 0 to 1."""

    name: str = Field(alias="class")
    share: float


class SegmentAnswer(_Form):
    """A segmenter's answer; the mask is a PNG of the image's size in base64, whose pixel values are the classes."""

    size: Size
    shares: list[Share]
    mask: str | None = None


class PredictAnswer(_Form):
    """One answer an image, in the order of the request."""

    model: str
    task: Literal["classify", "detect", "segment"]
    answers: list[ClassifyAnswer | DetectAnswer | SegmentAnswer]


class InputForm(_Form):
    """What the model's file takes; null means any."""

    batch: int | None
    height: int | None
    width: int | None
    precision: str | None


class ModelRow(_Form):
    """A model; what is null is not known before it is loaded."""

    name: str
    default: bool
    ready: bool
    task: str | None
    net: str | None
    classes: list[str]
    colours: list[list[int]]
    engine: str | None
    trained: bool | None
    input: InputForm


class Limits(_Form):
    """What a request may hold."""

    bytes: int
    pixels: int
    images: int
    seconds: float


class ModelList(_Form):
    """The models, the default one first."""

    models: list[ModelRow]
    limits: Limits


class Health(_Form):
    """The process lives."""

    status: Literal["ok"]


class Readiness(_Form):
    """Whether every model can answer, and the state of each: loading, ready, restarting or refused."""

    ready: bool
    models: dict[str, str]


class ErrorBody(_Form):
    """Why there is no answer: a word for programs, a sentence for people, and the number of the image, from 1."""

    code: str
    message: str
    image: int | None
    request_id: str


class ErrorAnswer(_Form):
    """The form of every status but 200."""

    error: ErrorBody


_REFUSALS = {
    400: "The body is incomplete or the form can't be read",
    401: "No valid key",
    404: "No such model",
    408: "The body came too slowly",
    413: "Too many bytes",
    415: "Not an image or a form of images",
    422: "An image that can't be decoded or has too many pixels, too many images, or a wrong parameter",
    429: "Too much at one time: ask again after `Retry-After` seconds",
    500: "The model failed on the image",
    503: "The model is not ready, or its process died: ask again after `Retry-After` seconds",
    504: "The answer took too long",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: those of some statuses, all of the predicting ones if none is named."""
    return {status: {"model": ErrorAnswer, "description": _REFUSALS[status]} for status in statuses or _REFUSALS}


def request_body(max_images: int) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that takes images, in a form or as the body itself."""
    image = {"type": "string", "format": "binary"}
    files = {"type": "array", "items": image, "minItems": 1, "maxItems": max_images}
    form = {
        "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: files}, "additionalProperties": False},
        "encoding": {FIELD: {"contentType": ", ".join(IMAGE_TYPES)}},
    }
    return {
        "requestBody": {"required": True, "content": {MULTIPART: form} | {t: {"schema": image} for t in IMAGE_TYPES}}
    }
