"""Reading the tensors of anyone's file of weights without executing anything in it.

A safetensors file holds tensors alone. PyTorch's files (.pth, .pt, .bin, .ckpt) are pickles, which in general run
code when they are opened; they are read by PyTorch's restricted unpickler (`weights_only=True`), which calls nothing
but the functions that rebuild tensors. Official files also carry training arguments and logs. The few types that
occur there are read as `_Inert`, an empty object in the type's place, so that not even they run. Every other type is
refused by name.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fullfield.errors import CheckpointError, nearest

__all__ = ["StateDict", "is_safetensors", "read_safetensors", "read_state_dict"]

PLAIN = ("model", "state_dict", "model_state_dict", "net", "network", "params", "module")
"""Keys of a file's own weights, in the order in which they are preferred."""
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema", "params_ema")
"""Keys of their exponential moving average: taken unasked only if the file has nothing else."""

ZIP = b"PK\x03\x04"


class _Inert:
    """Stands where a file has an object of a known harmless type; takes whatever the file gives it, keeps nothing."""

    def __init__(self, *_arguments: object) -> None: ...

    def __new__(cls, *_arguments: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None: ...


_STAND_INS = (
    "argparse.Namespace",  # `args` of most official files
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    # numbers of NumPy, as in `max_accuracy`
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    # the log of OpenMMLab's detection and segmentation files
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
)


@dataclass(frozen=True)
class StateDict:
    """The tensors of one state dict of a file."""

    path: Path
    container: str
    """Key of the state dict in the file; "" if the file is one state dict and nothing else."""
    others: tuple[str, ...]
    """Keys of the file's other state dicts."""
    tensors: dict[str, Tensor]
    not_tensors: tuple[str, ...] = ()
    """Entries of the state dict that are no tensors."""


def read_state_dict(path: str | Path, which: str | None = None) -> StateDict:
    """Read the tensors of a safetensors or PyTorch file, on the CPU; a PyTorch file is mapped, not copied.

    Args:
        path: The file.
        which: Key of the state dict to take, such as "model_ema"; None for the file's own weights (`PLAIN`), or its
            average (`AVERAGED`) if it has nothing else.

    Raises:
        CheckpointError: The file is missing, empty, truncated, of another kind, needs code to be run, has no tensors,
            or has no state dict called `which`.
    """
    file = Path(path)
    start = _first_bytes(file)
    if is_safetensors(file):
        contents: Any = read_safetensors(file)[1]
    else:
        contents = _unpickle(file, mapped=start.startswith(ZIP))
    containers = _containers(contents)
    if not containers:
        kind = f"its keys are {', '.join(map(str, list(contents)[:5]))}" if isinstance(contents, Mapping) else ""
        raise CheckpointError(
            f"{file} has no state dict, a dictionary from names to tensors ({kind or type(contents).__name__});"
            " save one with torch.save(model.state_dict(), path)"
        )
    container = _choose(file, containers, which)
    entries = containers[container]
    tensors = {name: value.detach() for name, value in entries.items() if isinstance(value, Tensor)}
    odd = sorted(name for name, t in tensors.items() if t.layout != torch.strided or t.is_quantized or t.is_meta)
    if odd:
        raise CheckpointError(
            f"{file} has tensors that are sparse, quantised or empty ({', '.join(odd[:3])}); save it with dense ones"
        )
    return StateDict(
        file,
        container,
        tuple(name for name in containers if name != container),
        tensors,
        tuple(name for name in entries if name not in tensors),
    )


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header in 8 bytes, then a brace."""
    with file.open("rb") as opened:
        start = opened.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size


def read_safetensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a safetensors file.

    Raises:
        CheckpointError: The file is not a whole safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {}), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size:,} bytes) is not a whole safetensors file ({error}); it may be truncated"
            " or of another format. Use another checkpoint of the run, or save it again. A PyTorch file (.pth) is made"
            " one by `fullfield convert`"
        ) from error


def _first_bytes(file: Path) -> bytes:
    """Return a file's first bytes, and refuse what is no file of weights by them."""
    try:
        with file.open("rb") as opened:
            start = opened.read(512)
    except FileNotFoundError as error:
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise CheckpointError(f"there is no file {file}{nearest(file.name, siblings)}") from error
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error.strerror}); give a file of weights") from error
    if not start:
        raise CheckpointError(f"{file} is empty (0 bytes); fetch it again")
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", start, re.IGNORECASE):
        raise CheckpointError(
            f"{file} is a web page and no file of weights: the download asked for a confirmation or a login. Fetch it"
            " with a browser"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a pointer of Git LFS and no file of weights; fetch it with `git lfs pull`")
    return start


def _unpickle(file: Path, *, mapped: bool) -> Any:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as opened:
            if any(name.endswith("/constants.pkl") for name in opened.namelist()):
                raise CheckpointError(
                    f"{file} is a TorchScript program and no file of weights. If you trust who made it, save its"
                    " tensors: torch.save(torch.jit.load(path).state_dict(), other_path)"
                )
    stand_ins: list[Any] = [(_Inert, name) for name in _STAND_INS]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(str(file), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can fail with anything
        reason = str(error)
        refused = re.search(r"GLOBAL (\S+)", reason) or re.search(r"unrecognized function (.+)", reason)
        if refused is not None:
            raise CheckpointError(
                f"{file} is refused: to read it, {refused[1]} would have to be run, and nothing from a file is"
                " executed. If you trust who made it, save its tensors alone where it was made:"
                " torch.save(model.state_dict(), path)"
            ) from error
        told = next((line for line in reason.splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(
            f"{file} ({file.stat().st_size:,} bytes) is neither a whole PyTorch file nor safetensors"
            f" ({told[:160]}); it may be truncated or of another format. Fetch it again"
        ) from error


def _containers(contents: Any) -> dict[str, Mapping[str, Any]]:
    """Return the state dicts of a file by their keys; a bare state dict has the key ""."""
    if not isinstance(contents, Mapping):
        return {}
    if _is_state_dict(contents):
        return {"": contents}
    return {str(key): value for key, value in contents.items() if _is_state_dict(value)}


def _is_state_dict(value: Any) -> bool:
    """Whether most values are tensors under names; some files have a counter or a version among them."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    return sum(isinstance(entry, Tensor) for entry in value.values()) > len(value) / 2


def _choose(file: Path, containers: Mapping[str, object], which: str | None) -> str:
    there = ", ".join(repr(name) for name in containers)
    if which is not None:
        if which not in containers:
            told = f"it has {there}" if "" not in containers else "it is one state dict; leave out which"
            raise CheckpointError(f"{file} has no state dict {which!r}{nearest(which, containers)}; {told}")
        return which
    known = next((name for name in (*PLAIN, *AVERAGED) if name in containers), None)
    if known is not None:
        return known
    if len(containers) > 1:
        raise CheckpointError(f"{file} has the state dicts {there}; say which one to take (which=, --which)")
    return next(iter(containers))
