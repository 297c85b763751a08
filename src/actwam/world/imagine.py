"""How well a policy imagines: the real actions of held-out demonstrations in, their future frames out.

Where the table lets no action shape the future, none is given, and the future is that of the observation. A policy that
looks back is shown what was to be seen before.

The imagined frames are compared with the real ones beside two references that need no model: `persistence`
repeats the present frame, and is hard to beat where little moves; `codec` is the real future after encoding
and decoding, the most that any model behind this codec can reach.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from actwam.data.dataset import LeRobotDataset, require_embodiment
from actwam.data.partial import partial_folder
from actwam.data.transforms import RobotTransform
from actwam.policy import Policy
from actwam.types import Group, Memory, Observation
from actwam.world import quality
from actwam.world.strip import draw_strip

STRIPS = 3
"""Windows that are drawn for people to look at."""
Condition = Literal["actions", "nothing"]
METHODS = ("imagined", "persistence", "codec")


@dataclass(frozen=True)
class Score:
    """PSNR (dB) and SSIM, means over windows; `psnr_moved` is the PSNR of the mean squared error over all
    pixels that moved, of all windows together, and None when nothing did."""

    psnr: float
    ssim: float
    psnr_moved: float | None


@dataclass(frozen=True)
class Quality:
    """How close one method comes to the real future: over all frames, and for each future offset."""

    overall: Score
    per_offset: tuple[Score, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.overall), "per_offset": [asdict(score) for score in self.per_offset]}


@dataclass(frozen=True)
class Strip:
    """A picture file, and the window it shows."""

    file: str
    instruction: str
    episode: int
    start: int


@dataclass(frozen=True)
class Scored:
    """One window: PSNR and SSIM of its imagined frames, means over the offsets."""

    instruction: str
    episode: int
    start: int
    psnr: float
    ssim: float


@dataclass(frozen=True, kw_only=True)
class ImagineResult:
    """What was measured over `n` windows. `condition` is what beside what was seen and felt decides the future: the
    actions really taken, or nothing. `offsets` are the steps ahead of the future frames, `moved_share` is the part of
    their pixels that differs from the present frame by more than `moved_threshold` of 255."""

    n: int
    seed: int
    condition: Condition
    offsets: tuple[int, ...]
    fps: int
    ssim_window: int
    moved_threshold: int
    moved_share: float
    imagined: Quality
    persistence: Quality
    codec: Quality
    strips: tuple[Strip, ...]
    windows: tuple[Scored, ...] = ()

    @property
    def psnr(self) -> float:
        return self.imagined.overall.psnr

    @property
    def ssim(self) -> float:
        return self.imagined.overall.ssim

    def to_json(self) -> dict[str, Any]:
        """All but the single windows."""
        own = {name: value for name, value in asdict(self).items() if name != "windows"}
        methods = {name: getattr(self, name).to_json() for name in METHODS}
        return {"psnr": self.psnr, "ssim": self.ssim, **own, **methods}


@dataclass(frozen=True)
class Clip:
    """One window of an episode: what a policy that looks back saw before, oldest first, the present, the actions that
    were really taken, and the frames they brought."""

    episode: int
    start: int
    past: tuple[Observation, ...]
    observation: Observation
    actions: Float[np.ndarray, "K A"]
    present: UInt8[np.ndarray, "H W 3"]
    future: UInt8[np.ndarray, "T H W 3"]


@dataclass(frozen=True)
class Measures:
    """One window measured: per method PSNR, SSIM and the squared error summed over moved pixels, one number
    each per future frame; and how many pixels moved."""

    psnr: Mapping[str, Float[np.ndarray, "T"]]
    ssim: Mapping[str, Float[np.ndarray, "T"]]
    moved_error: Mapping[str, Float[np.ndarray, "T"]]
    moved_pixels: Int[np.ndarray, "T"]


def imagine_dataset(
    policy: Policy,
    dataset: LeRobotDataset,
    *,
    windows: int,
    seed: int,
    out: Path,
    batch_size: int = 16,
    give_actions: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImagineResult:
    """Imagine the future of `windows` windows of a held-out dataset, given its actions if they matter, and write
    `imagine.json` and picture strips into `out`, which must not exist and appears whole or not at all.

    `seed` chooses the windows and the noise. Without `give_actions` the policy imagines what its own actions bring, as
    families must be compared of which some were never shown a noisy future beside finished actions.

    Raises ValueError on a dataset of another robot, on one with fewer windows than asked for, on a policy without a
    future, and on damaged videos.
    """
    require_embodiment(dataset, policy.robot.embodiment)
    chosen = choose_windows(policy, dataset, windows, seed)
    condition = condition_of(policy) if give_actions else "nothing"
    drawn = _spread([dataset.episodes[episode].instruction for episode, _ in chosen], STRIPS)
    measures: list[Measures] = []
    strips: list[Strip] = []
    with partial_folder(out) as partial:
        for first in range(0, windows, batch_size):
            clips = [read_clip(policy, dataset, *window) for window in chosen[first : first + batch_size]]
            futures = imagine_clips(policy, clips, seed + first, condition)
            for number, (clip, future, decoded) in enumerate(zip(clips, *futures, strict=True), first):
                measures.append(measure(clip, future, decoded))
                if number in drawn:
                    strip = Strip(
                        f"strip_{len(strips):02d}.png", clip.observation.instruction, clip.episode, clip.start
                    )
                    picture = draw_strip(
                        clip.present, clip.future, future,
                        title=f"{strip.instruction}  (episode {strip.episode}, frame {strip.start})",
                        steps=policy.checkpoint.window.future_offsets,
                    )  # fmt: skip
                    picture.save(partial / strip.file)
                    strips.append(strip)
            progress(len(measures), windows)
        scored = [
            Scored(
                dataset.episodes[episode].instruction, episode, start,
                float(measured.psnr["imagined"].mean()), float(measured.ssim["imagined"].mean()),
            )
            for (episode, start), measured in zip(chosen, measures, strict=True)
        ]  # fmt: skip
        result = replace(_result(policy, dataset, seed, condition, measures, strips), windows=tuple(scored))
        text = json.dumps(result.to_json(), indent=2, allow_nan=False)
        (partial / "imagine.json").write_text(text + "\n", encoding="utf-8")
    return result


def condition_of(policy: Policy) -> Condition:
    """What decides the future beside what was seen: actions, where the table lets them."""
    return "actions" if Group.ACTION in policy.table.reach(Group.FUTURE) else "nothing"


def choose_windows(policy: Policy, dataset: LeRobotDataset, count: int, seed: int) -> list[tuple[int, int]]:
    """`count` pairs of episode and start frame, evenly over all windows whose actions and future frames all
    exist.

    The windows of all episodes, one after another, are cut into `count` equal parts, and `seed` draws one
    from each.
    """
    window = policy.checkpoint.window
    if not window.future_offsets or Group.FUTURE not in policy.table.groups:
        raise ValueError("this policy predicts no future frames: there is nothing to imagine")
    reach = max(window.future_offsets[-1], window.action_horizon - 1)
    found = [(e.index, start) for e in dataset.episodes for start in range(e.length - reach)]
    if not 0 < count <= len(found):
        raise ValueError(
            f"{dataset.folder}: holds {len(found)} windows of {reach + 1} frames, not {count}; "
            "ask for at least one and no more, or record more episodes"
        )
    edges = np.linspace(0, len(found), count + 1)
    places = edges[:-1] + np.random.default_rng(seed).random(count) * np.diff(edges)
    return [found[int(place)] for place in places]


def observation_at(dataset: LeRobotDataset, robot: RobotTransform, episode: int, frame: int) -> Observation:
    """What the robot saw and felt at one frame of an episode. Raises ValueError on one that is not there."""
    return _observation(dataset, episode, frame, _views(dataset, robot, episode, np.array([frame])))


def read_clip(policy: Policy, dataset: LeRobotDataset, episode: int, start: int) -> Clip:
    """Read one window: its observation as the robot gave it, and its future as one composed picture."""
    window = policy.checkpoint.window
    views = _views(dataset, policy.robot, episode, start + np.array([0, *window.future_offsets]))
    picture, row = policy.robot.picture(views), dataset.episodes[episode].start + start
    return Clip(
        episode=episode,
        start=start,
        past=tuple(
            observation_at(dataset, policy.robot, episode, start + offset)
            for offset in window.history_offsets
            if start + offset >= 0
        ),
        observation=_observation(dataset, episode, start, views),
        actions=dataset.action[row : row + window.action_horizon],
        present=picture[0],
        future=picture[1:],
    )


def _views(
    dataset: LeRobotDataset, robot: RobotTransform, episode: int, frames: Int[np.ndarray, "T"]
) -> dict[str, UInt8[np.ndarray, "T H W 3"]]:
    """Frames of all cameras of the robot, by name."""
    cameras = robot.embodiment.cameras.values()
    return {camera: dataset.frames(camera, episode, frames) for camera in cameras}


def _observation(
    dataset: LeRobotDataset, episode: int, frame: int, views: Mapping[str, UInt8[np.ndarray, "T H W 3"]]
) -> Observation:
    """The first of these frames, with the state and the instruction that belong to it."""
    info = dataset.episodes[episode]
    images = {camera: pictures[0] for camera, pictures in views.items()}
    return Observation(images, dataset.state[info.start + frame], info.instruction)


def measure(clip: Clip, imagined: UInt8[np.ndarray, "T H W 3"], decoded: UInt8[np.ndarray, "T H W 3"]) -> Measures:
    """Compare an imagined future, and both references, with the real one."""
    persistence = np.broadcast_to(clip.present, clip.future.shape)
    videos = dict(zip(METHODS, (imagined, persistence, decoded), strict=True))
    where = quality.moved(clip.present, clip.future)
    errors = {name: quality.squared_error(clip.future, video) for name, video in videos.items()}
    return Measures(
        psnr={name: quality.psnr(clip.future, video) for name, video in videos.items()},
        ssim={name: quality.ssim(clip.future, video) for name, video in videos.items()},
        moved_error={name: (error * where).sum((1, 2)) for name, error in errors.items()},
        moved_pixels=where.sum((1, 2)),
    )


def imagine_clips(
    policy: Policy, clips: Sequence[Clip], seed: int, condition: Condition
) -> tuple[list[UInt8[np.ndarray, "T H W 3"]], UInt8[np.ndarray, "B T H W 3"]]:
    """The imagined futures of these windows, and their real ones after encoding and decoding."""
    codec = policy.checkpoint.codec
    imaginations = policy.imagine_batch(
        [clip.observation for clip in clips],
        np.stack([clip.actions for clip in clips]) if condition == "actions" else None,
        range(seed, seed + len(clips)),
        [memory_of(policy, clip) for clip in clips],
    )
    # Behind the present frame, because a codec that compresses time lets its first frame stand alone.
    videos = np.stack([np.concatenate([clip.present[None], clip.future]) for clip in clips])
    decoded = codec.decode(codec.encode(torch.from_numpy(videos))).cpu().numpy()[:, 1:]
    return [imagination.video for imagination in imaginations], decoded


def memory_of(policy: Policy, clip: Clip) -> Memory | None:
    """What the policy would have at the present if it had looked at everything before."""
    memory = None
    for seen in clip.past:
        (memory,) = policy.remember([seen], [memory])
    return memory


def _result(
    policy: Policy,
    dataset: LeRobotDataset,
    seed: int,
    condition: Condition,
    measures: Sequence[Measures],
    strips: Sequence[Strip],
) -> ImagineResult:
    pixels = np.stack([m.moved_pixels for m in measures])
    qualities: dict[str, Any] = {name: _quality(name, measures, pixels) for name in METHODS}
    height, width = policy.robot.layout.height, policy.robot.layout.width
    return ImagineResult(
        n=len(measures),
        seed=seed,
        condition=condition,
        offsets=policy.checkpoint.window.future_offsets,
        fps=dataset.fps,
        ssim_window=quality.SSIM_WINDOW,
        moved_threshold=quality.MOVED_THRESHOLD,
        moved_share=float(pixels.mean() / (height * width)),
        strips=tuple(strips),
        **qualities,
    )


def _quality(name: str, measures: Sequence[Measures], pixels: Int[np.ndarray, "n T"]) -> Quality:
    psnr, ssim, error = (
        np.stack([getattr(m, field)[name] for m in measures]) for field in ("psnr", "ssim", "moved_error")
    )

    def score(frames: slice) -> Score:
        count = int(pixels[:, frames].sum())
        moved = quality.to_psnr(float(error[:, frames].sum()) / count) if count else None
        return Score(float(psnr[:, frames].mean()), float(ssim[:, frames].mean()), moved)

    return Quality(score(slice(None)), tuple(score(slice(i, i + 1)) for i in range(pixels.shape[1])))


def _spread(instructions: Sequence[str], count: int) -> set[int]:
    """At most `count` places, evenly over the windows sorted by instruction: every task is met if there is
    room."""
    order = sorted(range(len(instructions)), key=lambda i: instructions[i])
    count = min(count, len(order))
    return {order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)}
