"""A worker: a process that holds one predictor, decodes images and answers batches of them.

It talks with the service on its standard input and output (`wire`). It ends when that pipe is closed, whoever closed
it: a service that was killed leaves no worker behind. Whatever prints goes nowhere, since decoders print what they
find in a client's file.
"""

from __future__ import annotations

import io
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import IO, Any

from PIL import Image

from fullfield.data.image import FORMATS, decode_image
from fullfield.deploy.serve.answers import to_answer
from fullfield.deploy.serve.wire import Frame, frame, read_frame
from fullfield.errors import FullfieldError, ImageError

__all__ = ["Answerer", "main"]

Result = dict[str, Any]


class Answerer:
    """Answers batches with a predictor.

    Args:
        predictor: As `fullfield.deploy.predictor.Predictor`.
        max_pixels: Of one image, and of those that are decoded at one time.
        decoders: Threads that decode.
    """

    def __init__(self, predictor: Any, *, max_pixels: int, decoders: int) -> None:
        self.predictor, self.max_pixels = predictor, max_pixels
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def describe(self) -> dict[str, Any]:
        """Return what the service tells of the model."""
        known = self.predictor
        description = getattr(known, "description", None)
        size = {key: getattr(description, key, None) for key in ("batch", "height", "width", "precision")}
        return {
            "task": known.task,
            "net": known.name,
            "classes": list(known.classes),
            "colours": [list(colour) for colour in known.colours or ()],
            "engine": known.engine,
            "trained": bool(known.trained),
            **size,
        }

    def answer(self, items: Sequence[dict[str, Any]], blobs: Sequence[bytes]) -> list[Result]:
        """Answer a batch.

        Args:
            items: Of each image: "name" for messages, and the options "top", "threshold" and "mask".
            blobs: The image files.

        Returns:
            Of each image {"answer": ...}, or {"status", "code", "message"}, and "fault" where it is the service's.
        """
        results: list[Result] = [{} for _ in items]
        for group in self._groups(blobs):
            sent = [(items[i], blobs[i]) for i in group]
            decoded = dict(zip(group, self._decoders.map(self._decode, sent), strict=True))
            images = {i: image for i, image in decoded.items() if isinstance(image, Image.Image)}
            for i, result in {**decoded, **self._predict(items, images)}.items():
                results[i] = result
        return results

    def _groups(self, blobs: Sequence[bytes]) -> Iterator[list[int]]:
        """Cut a batch so that the images decoded at one time have no more pixels than one image may have."""
        group: list[int] = []
        held = 0
        for index, blob in enumerate(blobs):
            pixels = _pixels(blob)
            if group and held + pixels > self.max_pixels:
                yield group
                group, held = [], 0
            group.append(index)
            held += pixels
        if group:
            yield group

    def _decode(self, task: tuple[dict[str, Any], bytes]) -> Image.Image | Result:
        item, blob = task
        try:
            return decode_image(blob, item["name"], max_pixels=self.max_pixels)
        except ImageError as error:
            return {"status": 422, "code": "image", "message": str(error)}
        except Exception as error:  # one image must not cost the others
            return _failure(error)

    def _predict(self, items: Sequence[dict[str, Any]], images: dict[int, Image.Image]) -> dict[int, Any]:
        if not images:
            return {}
        asked = [items[i] for i in images]
        try:
            predictions = self.predictor.answer(
                list(images.values()),
                [item["name"] for item in asked],
                top=max(item["top"] for item in asked),
                threshold=min(item["threshold"] for item in asked),
            )
            return {
                i: {"answer": to_answer(self.predictor.task, prediction, items[i], self.predictor.colours)}
                for i, prediction in zip(images, predictions, strict=True)
            }
        except Exception as error:  # the predictor's, of any kind
            if len(images) > 1:  # one of them is to blame; the others get their answers
                return {k: v for i in images for k, v in self._predict(items, {i: images[i]}).items()}
            told = isinstance(error, FullfieldError)
            result = {"status": 422, "code": "image", "message": str(error)} if told else _failure(error)
            return dict.fromkeys(images, result)


def main() -> None:
    """Load what the first message names, say so, and answer batches until the pipe is closed."""
    # The service alone ends its workers. A signal sent to all processes must not cost what it has taken.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "r+b", buffering=0) as nowhere:  # noqa: PTH123 - pathlib has no devnull
        for descriptor in (0, 1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    settings, _ = read_frame(source)
    try:
        answerer = _load(settings)
        ready = frame({"ready": answerer.describe()})
    except BaseException as error:  # told to the service, whatever it is
        sentence = str(error)
        if not isinstance(error, FullfieldError):  # nothing of a client's is in it yet
            sentence = f"{type(error).__name__}: {error} ({_trace(error)[-1]})"
        _write(sink, frame({"failed": sentence}))
        os._exit(1)
    _write(sink, ready)
    batches: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, batches), daemon=True).start()
    while True:
        header, blobs = batches.get()
        results = answerer.answer(header["items"], blobs)
        try:
            pieces = frame({"results": results})
        except ValueError:
            pieces = frame({"results": [_finite(result) for result in results]})
        _write(sink, pieces)


def _load(settings: dict[str, Any]) -> Answerer:
    module, _, name = settings["factory"].partition(":")
    predictor = getattr(import_module(module), name)(
        settings["source"], device=settings["device"], threads=settings["threads"], pretrained=settings["pretrained"]
    )
    decoders = min(settings["threads"] or os.cpu_count() or 1, 4)
    return Answerer(predictor, max_pixels=settings["max_pixels"], decoders=decoders)


def _read(source: IO[bytes], batches: queue.SimpleQueue[Frame]) -> None:
    """Pass batches on; end the process with the pipe, even in the middle of a batch that nobody waits for."""
    while True:
        try:
            batches.put(read_frame(source))
        except BaseException:
            os._exit(0)


def _write(sink: IO[bytes], pieces: Sequence[bytes]) -> None:
    try:
        sink.writelines(pieces)
        sink.flush()
    except OSError:
        os._exit(0)  # nobody reads any more


def _pixels(blob: bytes) -> int:
    """Return the number of pixels that an image's header tells, 0 if there is none: decoding will say why."""
    try:
        with Image.open(io.BytesIO(blob), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # Pillow raises almost anything on a damaged file
        return 0


def _finite(result: Result) -> Result:
    """Return a result, or a failure if a number in it is not finite, which JSON can't hold."""
    try:
        frame(result)
    except ValueError:
        return {"status": 500, "code": "not_finite", "message": "The model's answer has values that are not finite."}
    return result


def _failure(error: Exception) -> Result:
    if isinstance(error, MemoryError):
        return {"status": 503, "code": "memory", "message": "The image needs more memory than there is just now."}
    return {"status": 500, "code": "failed", "message": "The model failed on this image.", "fault": _trace(error)}


def _trace(error: BaseException) -> list[str]:
    """Return the kind of an error and where it was raised, without its message: that may quote an image's bytes."""
    places = traceback.extract_tb(error.__traceback__)
    return [type(error).__name__, *(f"{place.filename}:{place.lineno} {place.name}" for place in places[-8:])]


if __name__ == "__main__":
    sys.exit("a worker is started by `fullfield serve`")
