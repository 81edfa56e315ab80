"""`fullfield.export`: from a run, a weights file or a registered model to a file that others run, verified at once.

The file is written into a folder of its own beside its place, run there next to PyTorch, and moved when all is done,
so that a failing or interrupted export leaves nothing behind, and what was there before stays.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fullfield.deploy.description import PRECISIONS, Description
from fullfield.deploy.graph import export_module
from fullfield.deploy.photographs import Photographs, for_calibration, for_verification, model_inputs
from fullfield.deploy.verification import Verification
from fullfield.deploy.verify import parts_of
from fullfield.deploy.verify import verify as verify_file
from fullfield.errors import ConfigError, FullfieldError, RunError, nearest
from fullfield.files import write_error, write_json
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.source import OpenedModel, is_registered_name

__all__ = ["FORMATS", "Exported", "Format", "export"]

Paths = str | Path | Sequence[str | Path]
STRIDE = 32


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: Of its name.
        writer: Module of `formats`, and the function in it.
        precisions: In which it can be written.
        quantizer: Function of `quantize` that makes int8 of such a file; None where there is none.
        preprocessing: Whether resizing and cropping can be part of it.
    """

    suffix: str
    writer: tuple[str, str]
    precisions: tuple[str, ...]
    quantizer: str | None = None
    preprocessing: bool = False


FORMATS = {
    "onnx": Format(".onnx", ("onnx_file", "write_onnx"), PRECISIONS, "quantize_onnx", preprocessing=True),
    "openvino": Format(".xml", ("openvino_file", "write_openvino"), PRECISIONS, "quantize_openvino"),
    "torch": Format(".pt2", ("torch_file", "write_torch"), ("fp32", "fp16")),
    "coreml": Format(".mlpackage", ("coreml_file", "write_coreml"), ("fp32", "fp16")),
    "executorch": Format(".pte", ("executorch_file", "write_executorch"), ("fp32", "fp16")),
}
"""What `--to` takes."""


@dataclass(frozen=True)
class Exported:
    """A file that was made.

    Attributes:
        path: The file, or the folder of formats that are folders.
        description: What it says of itself.
        verification: What was found when it was run beside PyTorch; None if that was not wanted.
        seconds: For all of it.
    """

    path: Path
    description: Description
    verification: Verification | None
    seconds: float


def export(
    source: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    preprocessing_inside: bool = False,
    calibration: Paths | None = None,
    images: Paths | None = None,
    verify: bool = True,
    timing_seconds: float = 2.0,
    overwrite: bool = False,
    pretrained: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Exported:
    """Write a model as a file that runs without Fullfield's code, and run it beside PyTorch.

    Branches are fused first. The file takes RGB images with values from 0 to 1 and normalises by itself; names of the
    classes and how to prepare images lie inside.

    Args:
        source: A run folder or weights file of any task, or a registered classifier.
        to: "onnx", "openvino", "torch", "coreml" or "executorch".
        out: The file, or a folder for it. None puts it into the run's folder, beside the weights file, or, for a
            registered model, into the current folder.
        precision: "fp32", "fp16" or "int8"; images and outputs are float32 in all of them.
        size: Height and width of the only images that it takes, pixels; None for any, where model and format allow.
        batch: Images a call; None for any number, where model and format allow.
        preprocessing_inside: Resize and crop inside the graph too, for runtimes without code around them (ONNX).
        calibration: Images that int8 is fitted to; None for the training images of the run.
        images: Images whose answers are compared with PyTorch's; None for held-out images of the run if they are still
            there, else for the sample that ships.
        verify: Whether to run the file and write FILE.verification.json beside it.
        timing_seconds: Time for the latency here, all calls together; 0 leaves it out.
        overwrite: Replace what is there.
        pretrained: For a registered name: fetch timm's weights.
        on_step: Told what is being done.

    Returns:
        The file with its verification. One that fails is kept: ask `verification.passed`.

    Raises:
        ConfigError: An argument is impossible, the format can't carry the model, or int8 has no images.
        RunError: The file exists, or its folder can't be written.
        CheckpointError: The source holds no usable weights.
        ModelNotFoundError: It is neither a path nor a registered name.
        DataError: Images are not there.
        MissingExtraError: What writes the format is not installed.
    """
    start = time.perf_counter()
    told = on_step or (lambda _: None)
    kind = _checked_format(to, precision, preprocessing_inside)
    _check_shape(size, batch)
    if calibration is not None and precision != "int8":
        raise ConfigError(f"calibration images are for int8; {precision} needs none. Leave them out, or ask for int8")
    target = _target(source, kind, precision, out)
    _check_free(target, overwrite)
    told("opening the model")
    opened = _at_size(open_any(source, pretrained=pretrained, device="cpu"), size)
    fitted = for_calibration(opened, calibration) if precision == "int8" else None
    compared = for_verification(opened, images) if verify else None
    module, description = export_module(opened)
    description = _described(description, size, batch, precision, preprocessing_inside)
    with _workplace(target) as folder:
        made = _write(kind, module, description, folder / target.name, fitted, told)
        found = None
        if compared is not None:
            told("running it beside PyTorch")
            found = verify_file(
                made,
                opened,
                compared,
                description=description,
                seconds=timing_seconds,
                calibration=fitted.source if fitted else None,
            )
            write_json(Verification.path_for(made), found.to_dict())
            shape = {name: getattr(found, name) for name in ("batch", "height", "width")}
            description = replace(description, **shape)  # a format may fix what was left free
        _move(made, target)
    return Exported(target, description, found, time.perf_counter() - start)


def _checked_format(to: str, precision: str, preprocessing_inside: bool) -> Format:
    if to not in FORMATS:
        hint = nearest(to, FORMATS) or f"; there are {', '.join(FORMATS)}"
        raise ConfigError(f"there is no format {to!r}{hint}")
    kind = FORMATS[to]
    if precision not in PRECISIONS:
        hint = nearest(precision, PRECISIONS) or f"; there are {', '.join(PRECISIONS)}"
        raise ConfigError(f"there is no precision {precision!r}{hint}")
    if precision not in kind.precisions:
        others = [name for name, other in FORMATS.items() if precision in other.precisions]
        raise ConfigError(
            f"{to} is written in {' and '.join(kind.precisions)}, not in {precision}; {' and '.join(others)} can be"
        )
    if preprocessing_inside and not kind.preprocessing:
        raise ConfigError(f"{to} can't hold the preprocessing; leave out --preprocessing-inside, or use onnx")
    if preprocessing_inside and precision == "int8":
        raise ConfigError("int8 with the preprocessing inside can't be made; leave one of the two out")
    return kind


def _check_shape(size: tuple[int, int] | None, batch: int | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigError(f"size is {size}; it is a height and a width in pixels, both at least 1")
    if batch is not None and batch < 1:
        raise ConfigError(f"batch is {batch}; it is a number of images, at least 1")


def _target(source: str | Path, kind: Format, precision: str, out: str | Path | None) -> Path:
    """Return where the file goes; its folder may not exist yet."""
    origin = Path(source)
    is_name = is_registered_name(source)
    stem = origin.resolve().name if origin.is_dir() else (str(source) if is_name else origin.stem)
    name = stem + ("" if precision == "fp32" else f"-{precision}") + kind.suffix
    if out is None:
        folder = Path() if is_name else (origin if origin.is_dir() else origin.parent)
        return folder / name
    path = Path(out)
    target = path / name if path.suffix == "" or (path.is_dir() and path.suffix != kind.suffix) else path
    if target.suffix != kind.suffix:
        raise ConfigError(f"out is {out}; name a folder, or a file that ends in {kind.suffix}")
    return target


def _check_free(target: Path, overwrite: bool) -> None:
    taken = [part for part in parts_of(target) if part.exists()]
    if taken and not overwrite:
        raise RunError(
            f"{taken[0]} exists and is never overwritten unasked; choose another --out, or replace it with --overwrite"
        )


def _at_size(opened: OpenedModel | OpenedDense, size: tuple[int, int] | None) -> OpenedModel | OpenedDense:
    """Return the model set to a size.

    Raises:
        ConfigError: The model does not take it.
    """
    if size is None:
        return opened
    height, width = size
    if isinstance(opened, OpenedDense):
        if height % STRIDE or width % STRIDE:
            fits = " × ".join(str(-(-side // STRIDE) * STRIDE) for side in size)
            raise ConfigError(f"size is {height} × {width}; of a {opened.task}or both are multiples of 32: use {fits}")
        return opened
    if height != width:
        raise ConfigError(f"size is {height} × {width}; a classifier looks at squares: name one side twice")
    resize: Any = getattr(opened.model, "set_input_size", None)
    if callable(resize):  # timm's nets with positions for one size
        resize(img_size=(height, width))
    return replace(opened, preprocess=replace(opened.preprocess, image_size=height))


def _described(
    description: Description, size: tuple[int, int] | None, batch: int | None, precision: str, inside: bool
) -> Description:
    height, width = size or (description.height, description.width)
    return replace(
        description,
        height=height,
        width=width,
        batch=batch or description.batch,
        precision=precision,
        preprocessing_inside=inside,
    )


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Yield a new folder beside the target, on the same disk; remove it at the end, and if all fails its parents too.

    Raises:
        RunError: The folder can't be made, or the disk is full.
    """
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    except OSError as error:
        raise write_error(target, error) from error
    done = False
    try:
        yield folder
        done = True
    except OSError as error:
        if isinstance(error, FullfieldError) or error.errno is None:
            raise
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not done:
            for made in missing:
                with suppress(OSError):
                    made.rmdir()


def _write(
    kind: Format,
    module: torch.nn.Module,
    description: Description,
    path: Path,
    fitted: Photographs | None,
    told: Callable[[str], None],
) -> Path:
    """Write the file, through one in float32 for int8."""
    told(f"writing {path.name}")
    module_name, function = kind.writer
    write: Any = getattr(import_module(f"fullfield.deploy.formats.{module_name}"), function)
    more: dict[str, Any] = {"preprocessing_inside": True} if description.preprocessing_inside else {}
    if fitted is None or kind.quantizer is None:
        made: Path = write(module, description, path, half=description.precision == "fp16", **more)
        return made
    whole = path.parent / "float32"
    whole.mkdir()
    source = write(module, replace(description, precision="fp32"), whole / path.name, **more)
    told(f"fitting int8 to {len(fitted)} images of {fitted.source}")
    quantize: Any = getattr(import_module("fullfield.deploy.quantize"), kind.quantizer)
    quantized: Path = quantize(source, path, model_inputs(fitted, description))
    shutil.rmtree(whole)
    return quantized


def _move(made: Path, target: Path) -> None:
    """Move a file with all its parts over what is there, the file itself last."""
    report = Verification.path_for(made)
    parts = [*([report] if report.exists() else []), *reversed(parts_of(made))]
    kept = {part.name for part in parts}
    for old in (Verification.path_for(target), *parts_of(target)):
        if old.is_dir():  # a folder can't be replaced by another
            shutil.rmtree(old)
        elif old.name not in kept:
            old.unlink(missing_ok=True)
    for part in parts:
        part.replace(target.with_name(part.name))
