"""What was found when an exported file was run beside the PyTorch model that it was made from, and what must hold.

The differences are those of the arithmetic alone, on the same pixels; the agreement is that of the answers, through
all that a user of the file runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["LIMITS", "Agreement", "Checked", "Latency", "Limits", "Verification", "limits_for"]


@dataclass(frozen=True)
class Limits:
    """What a file must keep to; None where nothing is asked.

    Attributes:
        difference: The largest max |a - b| / max |b| of an output a to PyTorch's b.
        agreement: The smallest share of equal answers.
    """

    difference: float | None
    agreement: float | None


LIMITS: dict[tuple[str, str], Limits] = {
    ("classify", "fp32"): Limits(1e-4, 1.0),
    ("segment", "fp32"): Limits(1e-4, 0.999),
    ("detect", "fp32"): Limits(1e-4, 0.99),
    ("classify", "fp16"): Limits(2e-2, 0.99),
    ("segment", "fp16"): Limits(2e-2, 0.99),
    ("detect", "fp16"): Limits(2e-2, 0.95),
    ("classify", "int8"): Limits(None, 0.99),
    ("segment", "int8"): Limits(None, 0.95),
    ("detect", "int8"): Limits(None, 0.8),
}
"""Task and precision -> limits. Which class a pixel at an edge has, and which object just reaches a threshold, is
sometimes decided by the last digit, so that not all of them are asked for."""


def limits_for(task: str, precision: str, *, trained: bool, preprocessing_inside: bool = False) -> Limits:
    """Return what a file must keep to.

    The answers of random weights are ties that the smallest rounding decides: below fp32 nothing is asked of them. A
    file that resizes by itself rounds a few pixels otherwise than Pillow, and is held to what fp16 is.
    """
    limits = LIMITS[task, "fp16" if preprocessing_inside else precision]
    exact = precision == "fp32" and not preprocessing_inside
    return limits if trained or exact else Limits(limits.difference, None)


@dataclass(frozen=True)
class Checked:
    """Real images of one size, through the file and through PyTorch.

    Attributes:
        height: Of the images, pixels, before any padding.
        width: Likewise.
        batch: Images in the call.
        padded: Whether some map of the net had to be padded: a side is no multiple of 32 pixels.
        difference: The largest max |a - b| / max |b| over the outputs; infinite where the file gave no answer, or one
            that is not finite.
        error: Why there is nothing to compare, such as what the file's library said instead of an answer.
        rounding: The same difference of PyTorch in float32 to PyTorch in float64; looked at only where `difference` is
            over its limit. One that is as large says that the weights magnify rounding, not that the file is wrong.
    """

    height: int
    width: int
    batch: int
    padded: bool
    difference: float
    error: str | None = None
    rounding: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How far the answers of the file are those of PyTorch, over a set of images.

    Attributes:
        kind: "top-1", "pixels" or "objects".
        share: Of equal answers, 0 to 1. Two sets of objects agree by twice the pairs over all objects.
        images: How many were looked at.
        source: Where they come from.
        answers: Images, pixels or objects that were compared.
        distinct: Different classes among PyTorch's answers: with one or none of them the share says little.
        unreadable: Images left out.
    """

    kind: str
    share: float
    images: int
    source: str
    answers: int
    distinct: int
    unreadable: int = 0


@dataclass(frozen=True)
class Latency:
    """One call of the file and one of PyTorch, eager and in float32, in turn on this machine.

    Attributes:
        batch: Images a call.
        height: Pixels.
        width: Pixels.
        file_ms: Median, milliseconds.
        eager_ms: Likewise of PyTorch.
        ratio: Speed of the file over that of PyTorch, median over rounds.
        low: 10th percentile of the rounds' ratios.
        high: 90th percentile.
        rounds: How many there were.
    """

    batch: int
    height: int
    width: int
    file_ms: float
    eager_ms: float
    ratio: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Verification:
    """All that was found; `passed` is the verdict, `problems` says what differs.

    Attributes:
        file: Its name.
        task: Of the model.
        model: Its name.
        precision: "fp32", "fp16" or "int8".
        trained: Whether anyone trained the weights.
        megabytes: Size of the file with all that belongs to it, MB.
        limits: What it must keep to.
        batch: Images a call that the file takes; None for any number.
        height: Of them, pixels; None for any.
        width: Likewise.
        preprocessing_inside: Whether it resizes and crops by itself.
        engine: What ran it.
        checked: Each size that was looked at.
        agreement: Of the answers.
        latency: Here; None where it was not asked for.
        calibration: The images that int8 was fitted to.
        not_run: Why the file could not be run here; then nothing above is known.
        environment: Device, threads, versions and date.
    """

    file: str
    task: str
    model: str
    precision: str
    trained: bool
    megabytes: float
    limits: Limits
    batch: int | None = None
    height: int | None = None
    width: int | None = None
    preprocessing_inside: bool = False
    engine: str | None = None
    checked: tuple[Checked, ...] = ()
    agreement: Agreement | None = None
    latency: Latency | None = None
    calibration: str | None = None
    not_run: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def difference(self) -> float | None:
        """The largest over all sizes; None if the file was not run."""
        return max((one.difference for one in self.checked), default=None)

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps the file from passing, one sentence each."""
        found = []
        for one in self.checked:
            where = f"at {one.batch} × {one.height}×{one.width} pixels"
            if one.error is not None:
                found.append(f"{where} {one.error}")
            elif not math.isfinite(one.difference):
                found.append(f"{where} the file's output is not finite, or of another shape than PyTorch's")
            elif self.limits.difference is not None and one.difference > self.limits.difference:
                found.append(
                    f"{where} the outputs differ by {one.difference:.1e} of the largest; {self.precision} allows"
                    f" {self.limits.difference:.0e}{_told_rounding(one.rounding, self.limits.difference)}"
                )
        agreement, least = self.agreement, self.limits.agreement
        if agreement is not None and least is not None and agreement.share < least:
            found.append(
                f"{agreement.kind} agree to {agreement.share:.2%} over {agreement.images} images; {self.precision}"
                f" asks for {least:.1%}"
            )
        return tuple(found)

    @property
    def passed(self) -> bool | None:
        """Whether the file keeps to all limits; None if it could not be run here."""
        return None if self.not_run is not None else not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not finite becomes None."""
        verdict = {"passed": self.passed, "problems": self.problems, "difference": self.difference}
        values = {"file": self.file, **verdict, **asdict(self)}
        return {name: _plain(value) for name, value in values.items()}

    @staticmethod
    def path_for(file: Path) -> Path:
        """Return where the verification of a file lies: beside it."""
        return file.with_name(f"{file.name}.verification.json")


def _told_rounding(rounding: float | None, limit: float) -> str:
    if rounding is None or rounding <= limit:
        return ""
    return f" (PyTorch in float32 is {rounding:.1e} from itself in float64 there: these weights magnify rounding)"


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples, and None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
