"""The run folder: what `fullfield train` makes and everything after training reads.

config.yaml          every setting as it was used, fitted ones included
metrics.csv          one row an epoch
unreadable.csv       images that could not be read, with reasons (only if there are any)
checkpoints/         best.safetensors (for use), step-00001234.ckpt (to resume; the newest two, with checksums)
evaluation/          figures and single predictions on the held-out part
report.html          all of it on one page
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fullfield.data import ImageData, read_image_data
from fullfield.errors import RunError
from fullfield.files import write_error

__all__ = ["RunFolder", "read_run_data"]


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings, YAML."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row an epoch, CSV."""
        return self.path / "metrics.csv"

    @property
    def unreadable(self) -> Path:
        """Images that could not be read, CSV."""
        return self.path / "unreadable.csv"

    @property
    def best(self) -> Path:
        """The weights with the best validation figure, safetensors."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder of weights and states."""
        return self.path / "checkpoints"

    @property
    def states(self) -> list[Path]:
        """The trainer's states, newest first; whether they are whole is not looked at."""
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)

    @property
    def evaluation(self) -> Path:
        """The folder of the held-out figures."""
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> RunFolder:
        """Make a new run folder.

        Args:
            path: Where; parents are made too.
            overwrite: Delete the run that is there first. What is not part of a run is never deleted.

        Raises:
            RunError: There is something already, or the folder can't be written.
        """
        run = cls(Path(path))
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            raise RunError(
                f"{path} is not UTF-8, and weights can't be read from such a path; choose another --out"
            ) from None
        try:
            if _is_taken(run.path):
                run._clear(overwrite)
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = run.path / ".writable"
            probe.touch()
            probe.unlink()
        except RunError:
            raise
        except OSError as error:
            raise write_error(run.path, error) from error
        return run

    def _clear(self, overwrite: bool) -> None:
        """Delete the parts of a run, and nothing that Fullfield has not made.

        Raises:
            RunError: It is not a run, or `overwrite` is false.
        """
        path = self.path
        if not (self.config.is_file() and self.best.parent.is_dir()):
            raise RunError(f"{path} exists and is not a run; nothing was written. Choose another --out")
        if not overwrite:
            raise RunError(
                f"the run {path} exists and is never overwritten unasked. Choose another --out, continue it with"
                f" --resume {path}, or replace it with --overwrite"
            )
        trackers = (path / name for name in ("tensorboard", "wandb", "mlruns", "comet"))
        for folder in (self.best.parent, self.evaluation, *trackers):
            if folder.is_dir():
                shutil.rmtree(folder)
        for file in (self.config, self.metrics, self.unreadable, self.report, path / "tracking.json"):
            file.unlink(missing_ok=True)

    @classmethod
    def next_free(cls, parent: str | Path, name: str) -> Path:
        """Return `parent/name-1`, or the first number that is not taken."""
        number = 1
        while (path := Path(parent) / f"{name}-{number}").exists():
            number += 1
        return path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run.

        Raises:
            RunError: It is not there or not a run.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            what = "is not a run: it has no config.yaml" if path.exists() else "does not exist"
            raise RunError(f"{path} {what}. Give the folder that `fullfield train` printed at its end")
        return cls(path)

    def read_config(self) -> dict[str, Any]:
        """Return the settings as they were written.

        Raises:
            RunError: The file is damaged.
        """
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise RunError(f"{self.config} can't be read ({error}); restore it, or train again") from error
        if not isinstance(config, dict):
            raise RunError(f"{self.config} is not a list of settings; restore it, or train again")
        return config


def _is_taken(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def read_run_data(source: str | Path) -> ImageData:
    """Read the data that a run was trained on, with the same split.

    Args:
        source: A run folder, or a checkpoint file inside one.

    Raises:
        RunError: It is not a run, or its settings do not say what it was trained on.
        DataError: The data is not there any more.
    """
    path = Path(source)
    run = RunFolder.open(path.parent.parent if path.is_file() else path)
    config = run.read_config()
    missing = sorted({"data", "val_share", "seed"} - config.keys())
    if missing:
        raise RunError(f"{run.config} lacks {', '.join(missing)}; restore it, or name the data to use")
    return read_image_data(config["data"], val_share=config["val_share"], seed=config["seed"])
