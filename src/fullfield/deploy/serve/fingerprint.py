"""SHA-256 of the files of a model, so that one that was swapped or cut off is not loaded in place of the first."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fullfield.errors import CheckpointError

__all__ = ["changed", "fingerprint", "model_files"]

# What belongs to a file beside it.
_BESIDE = {".xml": (".bin",), ".onnx": (".onnx.data",), ".pte": (".pte.json",)}


def model_files(source: str | Path) -> list[Path]:
    """Return the files that a model is loaded from; none for a registered name.

    Of a run folder it is the checkpoint that is used; the others change while a run trains on.
    """
    path = Path(source)
    if path.is_dir():
        pattern = "**/*" if path.suffix == ".mlpackage" else "checkpoints/best.safetensors"
        return sorted(p for p in path.glob(pattern) if p.is_file())
    if not path.is_file():
        return []
    beside = [path.with_suffix(suffix) for suffix in _BESIDE.get(path.suffix.lower(), ())]
    return [path, *(p for p in beside if p.is_file())]


def fingerprint(source: str | Path) -> dict[str, str]:
    """Return the SHA-256 of each of the `model_files`, by path.

    Raises:
        CheckpointError: A file can't be read.
    """
    digests = {}
    for path in model_files(source):
        try:
            with path.open("rb") as file:
                digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error
    return digests


def changed(first: dict[str, str], now: dict[str, str]) -> str | None:
    """Say which file is not what it was, or return None.

    Args:
        first: What `fingerprint` gave when the service started.
        now: What it gives now.
    """
    for path, digest in first.items():
        if path not in now:
            return f"{path} is gone; put the file back, or restart the service with another"
        if now[path] != digest:
            return (
                f"{path} has changed since the service started (sha256 {now[path][:12]}, was {digest[:12]}); put the"
                " first file back, or restart the service to serve the new one"
            )
    extra = sorted(now.keys() - first.keys())
    return f"{extra[0]} is new since the service started; restart the service to serve it" if extra else None
