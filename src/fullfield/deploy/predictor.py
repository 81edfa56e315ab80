"""`fullfield.Predictor`: one class that runs exported files, run folders, weights files and registered models.

The calls and the types of the answers are the same whatever it was given. For an exported file nothing is imported
but numpy, Pillow and the library that runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from PIL import Image

from fullfield.data.image import read_image
from fullfield.deploy.description import Description
from fullfield.deploy.engine import SUFFIXES, Engine, is_exported, open_engine
from fullfield.deploy.file_model import FileModel
from fullfield.errors import ConfigError, ImageError, MissingExtraError
from fullfield.lazy import TORCH
from fullfield.progress import image_progress
from fullfield.tasks.answers import Prediction, find_images

__all__ = ["Predictor", "missing_torch"]

_BATCH_SIZES = {"classify": 16, "detect": 4, "segment": 1}
_ON_GPU = (".onnx", ".pt2")

Read = tuple[Path, Any, str | None]  # the file, what was prepared of it, why it can't be read


class Model(Protocol):
    """What answers for pictures: `FileModel` or `TorchModel`."""

    task: str
    name: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    engine: str
    trained: bool

    def prepare(self, image: Image.Image) -> Any:
        """Return a picture as `answers` takes it; from any thread."""

    def answers(self, paths: Sequence[Path], prepared: Sequence[Any], *, top: int, threshold: float) -> list[Any]:
        """Return a prediction for each image, in order; from any thread."""

    def close(self) -> None:
        """Give back what it holds."""


class Predictor:
    """A model that answers for images; safe to use from several threads.

    Use it as a context manager, or call `close`, to give back its memory.

    Args:
        source: An exported file (.onnx, .xml, .pt2, .pte, .mlpackage), or what PyTorch runs: a run folder, a weights
            file (.safetensors) or a registered name. Exported files are read whole when they are opened: what becomes
            of them afterwards changes nothing. A .pt2 file may run code when it is opened: trust its maker.
        device: "auto", "cpu", "cuda", ... Exported files run on the CPU unless this names a GPU.
        threads: Of the CPU; None leaves it to the library. For what PyTorch runs it holds for the whole process.
        pretrained: For a registered name: fetch timm's weights.

    Attributes:
        task: "classify", "detect" or "segment".
        name: Of the net, with its head if it has one.
        classes: Names of the classes, in the order of the outputs.
        colours: Red, green and blue, 0 to 255, of each class of a segmenter; else empty.
        engine: What computes, such as "ONNX Runtime 1.31 on CPU".
        trained: Whether anyone trained the weights.
        description: What an exported file says of itself; None for what PyTorch runs.

    Raises:
        CheckpointError: The source is missing, damaged, or not one that Fullfield made.
        ModelNotFoundError: It is neither a path nor a registered name.
        ConfigError: An argument has an impossible value, or the device is not to be had.
        MissingExtraError: The library that runs it is not installed.
    """

    def __init__(
        self, source: str | Path, *, device: str = "auto", threads: int | None = None, pretrained: bool = False
    ) -> None:
        self._model: Model | None = None
        if is_exported(source):
            if pretrained:
                raise ConfigError(f"pretrained is for registered models; {source} is an exported file with its weights")
            model: Model = FileModel(_open_file(Path(source), device, threads), source)
        else:
            model = _torch_model(source, device, threads, pretrained)
        self._model = model
        self.task, self.name, self.classes, self.colours = model.task, model.name, model.classes, model.colours
        self.engine, self.trained = model.engine, model.trained
        self.description: Description | None = getattr(model, "description", None)

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        top: int = 5,
        threshold: float = 0.3,
        batch_size: int | None = None,
    ) -> Any:
        """Predict what is in image files; a thread reads the next batch while this one is computed.

        Args:
            images: Files and folders (searched through); one or several.
            top: Classifiers: how many classes to name for each image.
            threshold: Detectors: objects with a lower score are left out, 0 to 1.
            batch_size: Images at a time; None is 16 for classifiers, 4 for detectors and 1 for segmenters.

        Returns:
            As `fullfield.predict`: of a classifier a list of `Prediction`, of a detector one of `DetectionPrediction`,
            of a segmenter an iterator of `SegmentationPrediction` that keeps no label map. An image that can't be read
            has no answer, and says why.

        Raises:
            DataError: A path does not exist, or a folder holds no image.
            ConfigError: An argument has an impossible value.
        """
        _check(top, threshold, batch_size)
        model = self._open_model()
        files = find_images([images] if isinstance(images, str | Path) else images)
        found = _predictions(model, files, top, threshold, batch_size or _BATCH_SIZES[self.task])
        return found if self.task == "segment" else list(found)

    def answer(
        self,
        images: Sequence[Image.Image],
        names: Sequence[str] | None = None,
        *,
        top: int = 5,
        threshold: float = 0.3,
    ) -> list[Any]:
        """Predict what is in pictures in memory; safe to call from several threads.

        Args:
            images: Upright RGB pictures of any sizes, as `fullfield.data.read_image` and `decode_image` give them.
            names: What to call them, one each; they become the predictions' `path`.
            top: Classifiers: how many classes to name for each.
            threshold: Detectors: objects with a lower score are left out, 0 to 1.

        Returns:
            A `Prediction`, `DetectionPrediction` or `SegmentationPrediction` for each, in order.

        Raises:
            ConfigError: An argument has an impossible value, or a picture is not RGB.
        """
        _check(top, threshold, None)
        model = self._open_model()
        called = [f"image {number}" for number in range(1, len(images) + 1)] if names is None else list(names)
        if len(called) != len(images):
            raise ConfigError(f"{len(called)} names for {len(images)} images; give one each")
        for name, image in zip(called, images, strict=True):
            if not isinstance(image, Image.Image) or image.mode != "RGB":
                what = f"of mode {image.mode}" if isinstance(image, Image.Image) else f"a {type(image).__name__}"
                raise ConfigError(f"{name} is {what}, not an RGB picture; read it with fullfield.data.read_image")
        prepared = [model.prepare(image) for image in images]
        return model.answers([Path(name) for name in called], prepared, top=top, threshold=threshold)

    def close(self) -> None:
        """Give back what the model holds; the predictor can't be used any more. Closing twice is once."""
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_model(self) -> Model:
        if self._model is None:
            raise ConfigError(f"this predictor of {self.name} was closed; make a new one")
        return self._model


def _open_file(path: Path, device: str, threads: int | None) -> Engine:
    """Open an exported file, on a GPU only where one is asked for."""
    if device in ("auto", "cpu"):
        return open_engine(path, threads=threads)
    suffix = path.suffix.lower()
    if suffix not in _ON_GPU:
        raise ConfigError(f"{suffix} files run on the CPU alone, not on {device!r}; leave the device out")
    if not path.exists():
        return open_engine(path)  # says what there is
    opened: Engine = import_module(f"fullfield.deploy.engines.{SUFFIXES[suffix]}").open(path, threads, device)
    return opened


def _torch_model(source: str | Path, device: str, threads: int | None, pretrained: bool) -> Model:
    try:
        from fullfield.deploy.torch_model import TorchModel
    except ModuleNotFoundError as error:
        raise missing_torch(source, error) from error
    return TorchModel(source, device=device, threads=threads, pretrained=pretrained)


def missing_torch(source: object, error: ModuleNotFoundError) -> ImportError:
    """Return what to raise where a module that runs a source can't be imported: PyTorch by its extra, else itself."""
    if error.name not in TORCH:
        return error
    return MissingExtraError(
        f"{source} is no exported file ({', '.join(SUFFIXES)}), and all else needs {error.name}:"
        " pip install 'fullfield[torch]'"
    )


def _check(top: int, threshold: float, batch_size: int | None) -> None:
    if top < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; scores go from 0 to 1")


def _predictions(model: Model, files: Sequence[Path], top: int, threshold: float, batch_size: int) -> Iterator[Any]:
    with image_progress("predicting", len(files)) as advance:
        for batch in _read_ahead(model, files, batch_size):
            sound = [(path, prepared) for path, prepared, error in batch if error is None]
            paths, inputs = [path for path, _ in sound], [prepared for _, prepared in sound]
            answers = iter(model.answers(paths, inputs, top=top, threshold=threshold) if sound else ())
            for path, _, error in batch:
                yield next(answers) if error is None else _unreadable(model.task, path, error)
            advance(len(batch))


def _read_ahead(model: Model, files: Sequence[Path], batch_size: int) -> Iterator[list[Read]]:
    """Yield the files in batches, read and prepared; the next is read while this one is used."""
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(1, thread_name_prefix="fullfield-read") as pool:
        coming = pool.submit(_read, model, batches[0])
        for following in (*batches[1:], None):
            ready = coming.result()
            if following is not None:
                coming = pool.submit(_read, model, following)
            yield ready


def _read(model: Model, files: Sequence[Path]) -> list[Read]:
    read: list[Read] = []
    for file in files:
        try:
            read.append((file, model.prepare(read_image(file)), None))
        except ImageError as error:
            read.append((file, None, str(error)))
    return read


def _unreadable(task: str, path: Path, error: str) -> Any:
    if task == "classify":
        return Prediction(path, (), error)
    if task == "detect":
        from fullfield.tasks.detection.answers import DetectionPrediction

        return DetectionPrediction(path, (), None, error)
    from fullfield.tasks.segmentation.answers import SegmentationPrediction

    return SegmentationPrediction(path, None, (), error)
