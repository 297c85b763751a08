"""A policy against a whole held-out split: how far its actions lie from those recorded, and its futures from the real.

Windows follow one another, an action chunk apart, so that every action of an episode counts once, but for those at its
end that fill no window. A low error does not promise success: it says which of two checkpoints learned more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actwam.data.dataset import LeRobotDataset, require_embodiment
from actwam.inverse import deviations
from actwam.policy import Policy
from actwam.types import Group
from actwam.world import quality
from actwam.world.imagine import condition_of, imagine_clips, memory_of, read_clip

SEED = 0
"""Of the noise of all windows: the same at every examination."""


@dataclass(frozen=True)
class HeldOut:
    """Of `windows` windows. `action_error` is the mean absolute difference in standard deviations of the trained
    action, over the dimensions that move; `by_step` the same for each action of a chunk, K; `by_dimension` the mean
    absolute difference in the robot's units; `psnr` of the futures that the recorded actions bring, in dB, None without
    a future. `by_window` has the episode of each window and its error, whose mean is `action_error`.
    """

    windows: int
    action_error: float
    by_step: tuple[float, ...]
    by_dimension: dict[str, float]
    psnr: float | None
    by_window: tuple[tuple[int, float], ...]

    def metrics(self) -> dict[str, float]:
        """As numbers with names, for logs."""
        return {
            "heldout_action_error": self.action_error,
            **{f"heldout_error_of_step_{k}": error for k, error in enumerate(self.by_step)},
            **{f"heldout_error_of_{name}": error for name, error in self.by_dimension.items()},
            **({} if self.psnr is None else {"heldout_psnr": self.psnr}),
        }


def held_out(
    policy: Policy,
    dataset: LeRobotDataset,
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> HeldOut:
    """Act and imagine at every window of a dataset that the policy was not trained on.

    Raises ValueError on a dataset of another robot, and on one without a whole window.
    """
    require_embodiment(dataset, policy.robot.embodiment)
    places, has_future = windows_of(policy, dataset), bool(policy.checkpoint.window.future_offsets)
    has_future &= Group.FUTURE in policy.table.groups
    errors, psnrs = [], []
    for first in range(0, len(places), batch_size):
        clips = [read_clip(policy, dataset, *place) for place in places[first : first + batch_size]]
        seeds, memories = [SEED + first + n for n in range(len(clips))], [memory_of(policy, clip) for clip in clips]
        chunks, _ = policy.act_batch([clip.observation for clip in clips], seeds, memories)
        errors += [chunk.actions - clip.actions for chunk, clip in zip(chunks, clips, strict=True)]
        if has_future:
            futures, _ = imagine_clips(policy, clips, SEED + first, condition_of(policy))
            psnrs += [quality.psnr(clip.future, video).mean() for clip, video in zip(clips, futures, strict=True)]
        progress(len(errors), len(places))
    return _summary(policy, np.abs(np.stack(errors)), psnrs, [episode for episode, _ in places])


def windows_of(policy: Policy, dataset: LeRobotDataset) -> list[tuple[int, int]]:
    """Episode and first frame of every window. Raises ValueError where there is none."""
    window = policy.checkpoint.window
    reach = max((window.action_horizon - 1, *window.future_offsets))
    found = [(e.index, start) for e in dataset.episodes for start in range(0, e.length - reach, window.action_horizon)]
    if not found:
        raise ValueError(f"{dataset.folder}: no episode has the {reach + 1} frames of a window")
    return found


def _summary(
    policy: Policy, differences: Float[np.ndarray, "n K a"], psnrs: list[float], episodes: list[int]
) -> HeldOut:
    scaled = deviations(differences, policy.robot)
    return HeldOut(
        windows=len(differences),
        action_error=float(scaled.mean()),
        by_step=tuple(scaled.mean((0, 2)).tolist()),
        by_dimension=dict(zip(policy.robot.embodiment.action_names, differences.mean((0, 1)).tolist(), strict=True)),
        psnr=float(np.mean(psnrs)) if psnrs else None,
        by_window=tuple(zip(episodes, scaled.mean((1, 2)).tolist(), strict=True)),
    )
