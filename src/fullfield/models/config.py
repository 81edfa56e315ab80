"""What every family's architecture dataclass shares: changing fields by name, with an error that helps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from fullfield.errors import ConfigError, nearest

__all__ = ["FamilyConfig", "are_ints"]


@dataclass(frozen=True)
class FamilyConfig:
    """The architecture of one model; every field of a family's subclass is also an argument of `create_model`."""

    dims: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""

    def __post_init__(self) -> None:
        for name, least in (("dims", 2), ("depths", 1)):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not values or not are_ints(values, least):
                raise ConfigError(f"{name} must be one int a stage, each at least {least}, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        if len(self.depths) != len(self.dims):
            raise ConfigError(f"depths {self.depths} and dims {self.dims} must have one entry a stage")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed.

        Raises:
            ConfigError: There is no such field (the nearest is named), or a value is impossible.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                family = type(self).__name__.removesuffix("Config")
                raise ConfigError(f"{family} has no argument {name!r}{nearest(name, known)}")
        return dataclasses.replace(self, **changes)

    def per_stage(self, name: str, least: int) -> tuple[int, ...]:
        """Return the field `name`, one int for all stages or one each, as one int a stage.

        Raises:
            ConfigError: It is neither, or smaller than `least`.
        """
        value = getattr(self, name)
        values = value if isinstance(value, tuple | list) else (value,) * len(self.dims)
        if len(values) != len(self.dims) or not are_ints(values, least):
            raise ConfigError(
                f"{name} must be one int or {len(self.dims)} of them, one a stage, at least {least}, got {value!r}"
            )
        return tuple(values)


def are_ints(values: Iterable[object], least: int) -> bool:
    """Whether all values are ints (not bools) of at least `least`."""
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values)
