"""Exact statistics per dimension, and the map from robot units to the model's range and back.

The statistics belong to the numbers the model sees: take them *after* the action has been made relative to
the state, with `quantiles.compute_stats(actions_as_trained_on)`. They travel in the checkpoint as JSON.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

NormMode = Literal["quantile", "mean_std", "min_max"]
Constant = Literal["error", "center"]
Array = TypeVar("Array", np.ndarray, Tensor)

CONSTANT_RANGE = 1e-6
"""A range below this share of the largest magnitude is float32 rounding, not motion."""

_COLUMNS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True)
class NormStats:
    """D named dimensions, D numbers in every column. `std` divides by n; quantiles interpolate linearly."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int

    def __post_init__(self) -> None:
        for column in _COLUMNS:
            values = getattr(self, column)
            if len(values) != len(self.names):
                raise ValueError(f"norm_stats: {column} has {len(values)} numbers for {len(self.names)} dimensions")
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"norm_stats: {column} has NaN or Inf: {values}; compute the statistics again")
        for i, name in enumerate(self.names):
            if not (self.min[i] <= self.q01[i] <= self.q99[i] <= self.max[i] and self.std[i] >= 0):
                raise ValueError(f"norm_stats: {name}: min <= q01 <= q99 <= max and std >= 0 do not hold")
        if self.count < 1:
            raise ValueError(f"norm_stats: count is {self.count}; statistics need at least one row")

    def to_json(self) -> dict[str, Any]:
        """Plain lists. Python writes a float so that it reads back bit for bit."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NormStats:
        """Raises ValueError on a missing, unknown or ill-typed entry."""
        expected = {"names", "count", *_COLUMNS}
        if set(data) != expected:
            raise ValueError(f"norm_stats: entries {sorted(data)}, expected {sorted(expected)}")
        kinds: dict[str, tuple[type, ...]] = {"names": (str,), **dict.fromkeys(_COLUMNS, (int, float))}
        for key, kind in kinds.items():
            if not isinstance(data[key], list) or not all(isinstance(value, kind) for value in data[key]):
                raise ValueError(f"norm_stats: {key} is {str(data[key])[:80]}, expected a list of its kind")
        if not isinstance(data["count"], int):
            raise ValueError(f"norm_stats: count is {data['count']!r}, expected a whole number")
        columns = {column: tuple(float(value) for value in data[column]) for column in _COLUMNS}
        return cls(names=tuple(data["names"]), count=data["count"], **columns)


@dataclass(frozen=True)
class Normalizer:
    """An affine map per dimension, to about [-1, 1], and its inverse.

    ==========  =====================  =====================================================
    mode        maps                   to
    ==========  =====================  =====================================================
    quantile    [q01, q99]             [-1, 1], and what lies outside linearly beyond: no clamp
    min_max     [min, max]             [-1, 1]
    mean_std    mean, one std          0, one
    ==========  =====================  =====================================================

    A dimension that never moved has no range to map. `constant="error"` refuses it by name,
    `constant="center"` maps it to 0 whatever it is, and back to the constant.
    """

    stats: NormStats
    mode: NormMode = "quantile"
    constant: Constant = "error"

    def __post_init__(self) -> None:
        _require_known(self.mode, self.constant)
        self.affine  # noqa: B018 - an impossible range is refused now, not at the first call

    def normalize(self, values: Array) -> Array:
        """Robot units to the model's range, over the last axis. Float32, or float64 for float64.

        Raises ValueError on another width, NaN or Inf.
        """
        values = self._checked(values, "normalize")
        center, scale, moves = (_like(row, values) for row in self.affine)
        return (values - center) / scale * moves

    def denormalize(self, values: Array) -> Array:
        """The inverse of `normalize`: the model's range to robot units. Raises ValueError as that does."""
        values = self._checked(values, "denormalize")
        center, scale, moves = (_like(row, values) for row in self.affine)
        return values * moves * scale + center

    def to_json(self) -> dict[str, Any]:
        return {"mode": self.mode, "constant": self.constant, "stats": self.stats.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Normalizer:
        if set(data) != {"mode", "constant", "stats"}:
            raise ValueError(f"normaliser: entries {sorted(data)}, expected mode, constant and stats")
        _require_known(data["mode"], data["constant"])
        return cls(stats=NormStats.from_json(data["stats"]), mode=data["mode"], constant=data["constant"])

    @property
    def still(self) -> Bool[np.ndarray, "D"]:
        """True for the dimensions that never moved, which are held at their constant."""
        return self.affine[2] == 0

    @cached_property
    def affine(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Center, scale, and 1 where the dimension moves, 0 where it is held at its constant."""
        stats = self.stats
        low, high = np.array(stats.min), np.array(stats.max)
        if self.mode == "mean_std":
            center, scale = np.array(stats.mean), np.array(stats.std)
        else:
            ends = (stats.q01, stats.q99) if self.mode == "quantile" else (stats.min, stats.max)
            center, scale = (np.array(ends[0]) + ends[1]) / 2, (np.array(ends[1]) - ends[0]) / 2
        floor = CONSTANT_RANGE * np.maximum(np.abs(low), np.abs(high)) / 2
        still = (high - low) / 2 <= floor
        for i, name in enumerate(stats.names):
            if still[i] and self.constant == "error":
                raise ValueError(
                    f"{name} (dimension {i}) is {low[i]:g} in all {stats.count} rows: zero range; record "
                    'motion in it, drop it, or choose constant="center" to map it to 0 and back'
                )
            if not still[i] and scale[i] <= floor[i]:
                raise ValueError(
                    f"{name} (dimension {i}) moves from {low[i]:g} to {high[i]:g}, but so rarely that its "
                    f'{self.mode} range is zero; choose mode="min_max"'
                )
        return np.where(still, low, center), np.where(still, 1.0, scale), np.where(still, 0.0, 1.0)

    def _checked(self, values: Array, action: str) -> Array:
        names = self.stats.names
        if values.ndim == 0 or values.shape[-1] != len(names):
            raise ValueError(f"{action}: shape {tuple(values.shape)} does not end in the {len(names)} of {names}")
        if isinstance(values, Tensor):
            values = values if values.dtype == torch.float64 else values.float()
            bad = torch.nonzero(~torch.isfinite(values))
        else:
            values = values if values.dtype == np.float64 else values.astype(np.float32)
            bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            place = tuple(int(i) for i in bad[0])
            raise ValueError(f"{action}: {names[place[-1]]} is {float(values[place])} at index {place}")
        return values


def _require_known(mode: Any, constant: Any) -> None:
    for what, value, choices in (
        ("mode", mode, get_args(NormMode)),
        ("constant", constant, get_args(Constant)),
    ):
        if value not in choices:
            raise ValueError(f"normaliser: {what} is {value!r}; choose one of {choices}")


def _like(row: np.ndarray, values: Array) -> Array:
    if isinstance(values, Tensor):
        return torch.as_tensor(row, dtype=values.dtype, device=values.device)
    return row.astype(values.dtype)
