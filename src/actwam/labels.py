"""Pseudo-labels: a dataset whose actions an inverse dynamics model inferred, with a measure of how good they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from actwam.data.dataset import EpisodeInfo, LeRobotDataset, require_embodiment
from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.normalize import CONSTANT_RANGE
from actwam.data.remux import VideoFormat, common_format
from actwam.data.transforms import RobotTransform
from actwam.data.writer import DatasetWriter
from actwam.inverse import Inference, Inferred, deviations, infer, require_inverse, require_video
from actwam.policy import Policy
from actwam.provenance import provenance

QUARTERS = ("lowest", "second", "third", "highest")
SHEET = "labels.json"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """What a spread says of the error: error² = floor + gain * spread², all in standard deviations of the action."""

    floor: float = 0.0
    gain: float = 1.0

    @classmethod
    def fit(cls, spread: Float[np.ndarray, "N"], error: Float[np.ndarray, "N"]) -> Calibration:
        """Least squares of error² by spread², neither number below 0."""
        x, y = np.square(spread), np.square(error)
        varies = float(np.square(x - x.mean()).sum())
        gain = float(((x - x.mean()) * y).sum()) / varies if varies else 0.0
        floor = float(y.mean() - gain * x.mean())
        if floor < 0:
            return cls(0.0, float((x * y).sum() / np.square(x).sum()))
        return cls(floor, gain) if gain >= 0 else cls(float(y.mean()), 0.0)

    def confidence(self, spread: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
        """1 / (1 + error²): the share of the action's variance in what variance and squared error come to together. It
        is 1 without error, 1/2 where the error is as large as the action varies, and falls with the spread.
        """
        return (1 / (1 + self.floor + self.gain * np.square(spread))).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DimensionError:
    """Errors of one action dimension, in the robot's units; `*_normalised` in standard deviations of the action that
    the model was trained on (None for a dimension that never moved there). `baseline_*` are those of always answering
    the mean of the recorded actions, which is why `r2`, None where those do not move, is 0 for it.
    """

    rmse: float
    mae: float
    rmse_normalised: float | None
    mae_normalised: float | None
    r2: float | None
    baseline_rmse: float
    baseline_mae: float


@dataclass(frozen=True, kw_only=True)
class Quarter:
    """A quarter of the rows, by confidence, and their root mean square error in standard deviations of the action."""

    confidence_from: float
    confidence_to: float
    frames: int
    rmse_normalised: float


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Inferred against recorded actions. `r2` is the mean over dimensions, `rank_correlation` Spearman's, of spread and
    error of the rows; None where there is nothing to say.
    """

    folder: str
    episodes: int
    frames: int
    r2: float | None
    rmse_normalised: float
    rank_correlation: float | None
    dimensions: dict[str, DimensionError]
    quarters: dict[str, Quarter]


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What was labelled, and how well. `left_out` are the rows behind the last frame that shows what an action did.
    `own_actions` compares with actions that the dataset had itself, which nothing else looked at.
    """

    folder: str
    episodes: int
    frames: int
    left_out: int
    with_state: bool
    confidence: dict[str, Any]
    videos: dict[str, str]
    heldout: Errors | None
    own_actions: Errors | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset that got an action, and what was recorded there, if anything was."""

    inferred: Float[np.ndarray, "N a"]
    recorded: Float[np.ndarray, "N b"]
    spread: Float[np.ndarray, "N"]

    @classmethod
    def of(cls, dataset: LeRobotDataset, episode: EpisodeInfo, found: Inferred) -> Rows:
        recorded = dataset.action[episode.start : episode.start + len(found.action)]
        return cls(found.action, recorded, found.spread)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        names = ("inferred", "recorded", "spread")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def errors(self, robot: RobotTransform) -> Float[np.ndarray, "N"]:
        """Of every row, the root mean square over the dimensions that move, in standard deviations of the action."""
        return np.sqrt(np.square(deviations(self.inferred.astype(np.float64) - self.recorded, robot)).mean(1))


def label(
    policy: Policy,
    dataset: LeRobotDataset,
    out: Path,
    *,
    heldout: LeRobotDataset | None = None,
    ask: Inference | None = None,
    progress: Progress = lambda what, done, total: None,
) -> LabelReport:
    """Write `out`, which must not exist and appears whole or not at all: the videos of the dataset with the actions
    that `policy` infers from them, a confidence, and `meta/labels.json`.

    `heldout` has recorded actions, which the model never saw: the error is measured on it, and the confidence fitted to
    that. Raises ValueError, before anything is inferred, when the policy cannot infer actions or was trained on other
    videos, or an episode is shorter than its window.
    """
    ask = ask or Inference()
    robot = policy.robot.embodiment
    require_inverse(policy, ask)
    with_state = bool(dataset.state_names)
    for videos in (dataset, *([] if heldout is None else [heldout])):
        require_video(policy, videos)
        _require_instructions(policy, videos)
    if heldout is not None:
        _require_heldout(heldout, robot, with_state)
    copied = _copied(dataset, tuple(robot.cameras.values()))
    written = robot if with_state else replace(robot, state_names=())
    with DatasetWriter(out, written, copied=copied) as writer:
        calibration, measured = Calibration(), None
        if heldout is not None:
            rows = _gather(policy, heldout, ask, with_state, lambda done, total: progress("held out", done, total))
            calibration = Calibration.fit(rows.spread, rows.errors(policy.robot))
            measured = measure(heldout, rows, calibration, policy.robot)
        rows = _write(policy, dataset, ask, calibration, writer, lambda done, total: progress("label", done, total))
        trust = calibration.confidence(rows.spread)
        own = dataset.action_names == robot.action_names and bool(np.isfinite(dataset.action).all())
        report = LabelReport(
            folder=str(out),
            episodes=len(dataset.episodes),
            frames=len(rows.spread),
            left_out=len(dataset.state) - len(rows.spread),
            with_state=with_state,
            confidence={
                "formula": "1 / (1 + floor + gain * spread^2)",
                **asdict(calibration),
                "fitted_on": None if heldout is None else str(heldout.folder),
                "mean": float(trust.mean()),
                "q05": float(np.quantile(trust, 0.05)),
                "median": float(np.median(trust)),
                "q95": float(np.quantile(trust, 0.95)),
            },
            videos={name: "copied" if name in copied else "encoded again" for name in robot.cameras.values()},
            heldout=measured,
            own_actions=measure(dataset, rows, calibration, policy.robot) if own else None,
        )
        writer.write_json(SHEET, {**report.to_json(), **_origin(policy, dataset, heldout, ask)})
    return report


def _require_heldout(heldout: LeRobotDataset, robot: Embodiment, with_state: bool) -> None:
    """Raises ValueError unless it has finite actions of the robot, and the state if what is labelled has it."""
    if not heldout.action_names:
        raise ValueError(f"{heldout.folder}: has no actions to measure the error on; give labelled episodes")
    if with_state and not heldout.state_names:
        raise ValueError(f"{heldout.folder}: has no state, and what is labelled has: the errors would not be the same")
    require_embodiment(heldout, robot if heldout.state_names else replace(robot, state_names=()))
    if len(bad := np.argwhere(~np.isfinite(heldout.action))):
        row, i = (int(n) for n in bad[0])
        raise ValueError(f"{heldout.folder}: row {row}: {robot.action_names[i]} is {heldout.action[row, i]}; drop it")


def _require_instructions(policy: Policy, dataset: LeRobotDataset) -> None:
    for episode in dataset.episodes:
        try:
            policy.checkpoint.text.encode([episode.instruction])
        except ValueError as error:
            raise ValueError(f"{dataset.folder}: episode {episode.index}: {error}") from error


def _copied(dataset: LeRobotDataset, cameras: Sequence[str]) -> dict[str, VideoFormat]:
    """The cameras whose videos can be taken over as they are, all in one format."""
    found = {camera: common_format(episode.clips[camera] for episode in dataset.episodes) for camera in cameras}
    return {camera: video for camera, video in found.items() if video is not None}


def _gather(
    policy: Policy, dataset: LeRobotDataset, ask: Inference, with_state: bool, progress: Callable[[int, int], None]
) -> Rows:
    parts = [
        Rows.of(dataset, episode, found)
        for episode, _, found in infer(policy, dataset, ask, with_state=with_state, progress=progress)
    ]
    return Rows.join(parts)


def _write(
    policy: Policy,
    dataset: LeRobotDataset,
    ask: Inference,
    calibration: Calibration,
    writer: DatasetWriter,
    progress: Callable[[int, int], None],
) -> Rows:
    parts = []
    with_state = bool(dataset.state_names)
    for episode, images, found in infer(policy, dataset, ask, with_state=with_state, progress=progress):
        count = len(found.action)
        labelled = Episode(
            images={camera: frames[:count] for camera, frames in images.items()},
            state=dataset.state[episode.start : episode.start + count],
            action=found.action,
            instruction=episode.instruction,
            confidence=calibration.confidence(found.spread),
        )
        writer.add_episode(labelled, episode.clips)
        parts.append(Rows.of(dataset, episode, found))
    return Rows.join(parts)


def measure(dataset: LeRobotDataset, rows: Rows, calibration: Calibration, robot: RobotTransform) -> Errors:
    """Compare what was inferred for these rows of the dataset with the actions that were recorded there."""
    error = rows.inferred.astype(np.float64) - rows.recorded
    away = rows.recorded - rows.recorded.mean(0, dtype=np.float64)
    scale = np.where(robot.action.still, np.nan, np.array(robot.action.stats.std))
    dimensions = {}
    for i, name in enumerate(robot.embodiment.action_names):
        rmse, mae, std = _rms(error[:, i]), float(np.abs(error[:, i]).mean()), _rms(away[:, i])
        dimensions[name] = DimensionError(
            rmse=rmse,
            mae=mae,
            rmse_normalised=None if np.isnan(scale[i]) else rmse / float(scale[i]),
            mae_normalised=None if np.isnan(scale[i]) else mae / float(scale[i]),
            r2=1 - (rmse / std) ** 2 if std > CONSTANT_RANGE * np.abs(rows.recorded[:, i]).max() else None,
            baseline_rmse=std,
            baseline_mae=float(np.abs(away[:, i]).mean()),
        )
    known = [each.r2 for each in dimensions.values() if each.r2 is not None]
    errors = rows.errors(robot)
    return Errors(
        folder=str(dataset.folder),
        episodes=len(dataset.episodes),
        frames=len(errors),
        r2=float(np.mean(known)) if known else None,
        rmse_normalised=_rms(errors),
        rank_correlation=rank_correlation(rows.spread, errors),
        dimensions=dimensions,
        quarters=_quarters(calibration.confidence(rows.spread), errors),
    )


def _quarters(confidence: Float[np.ndarray, "N"], errors: Float[np.ndarray, "N"]) -> dict[str, Quarter]:
    order = np.argsort(confidence, kind="stable")
    return {
        name: Quarter(
            confidence_from=float(confidence[part[0]]),
            confidence_to=float(confidence[part[-1]]),
            frames=len(part),
            rmse_normalised=_rms(errors[part]),
        )
        for name, part in zip(QUARTERS, np.array_split(order, len(QUARTERS)), strict=True)
        if len(part)
    }


def rank_correlation(a: Float[np.ndarray, "N"], b: Float[np.ndarray, "N"]) -> float | None:
    """Spearman's coefficient, equal numbers sharing a rank. None where one of the two does not vary."""
    ranks = []
    for values in (a, b):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(count) - (count - 1) / 2)[place]
        ranks.append(rank - rank.mean())
    one, other = ranks
    size = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / size if size else None


def _rms(values: Float[np.ndarray, "N"]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _origin(policy: Policy, dataset: LeRobotDataset, heldout: LeRobotDataset | None, ask: Inference) -> dict[str, Any]:
    """What the labels were made from, and how often the model was asked."""
    checkpoint = policy.checkpoint
    return {
        "policy": {
            "digest": checkpoint.digest,
            "table": policy.table.name,
            "robot": policy.robot.embodiment.name,
            "window": asdict(checkpoint.window),
            "sampling": asdict(checkpoint.sampling),
            **{name: checkpoint.trained.get(name) for name in ("recipe", "stage", "step")},
        },
        "asked": asdict(ask),
        "datasets": {
            what: {"folder": str(each.folder), "digest": each.digest}
            for what, each in (("labelled", dataset), ("heldout", heldout))
            if each is not None
        },
        "provenance": provenance(),
    }
