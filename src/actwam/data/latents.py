"""Codec latents of a dataset, computed once and kept on disk: training decodes no video.

A codec that encodes each frame alone needs one latent for each row of the dataset: any window is gathered from
them. A codec that compresses time mixes neighbouring frames, so that what a latent holds depends on where the
window begins: for such a codec every row has the latents of the whole window that begins there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int, UInt8

from actwam.data.dataset import Footage
from actwam.data.info import read_json
from actwam.data.partial import made_once

Compose = Callable[[Mapping[str, UInt8[np.ndarray, "T H W 3"]]], UInt8[np.ndarray, "T H W 3"]]
Encode = Callable[[UInt8[np.ndarray, "B T H W 3"]], Float32[np.ndarray, "B Z F h w"]]
Progress = Callable[[int, int], None]

ARRAY, SHEET = "latents.npy", "latents.json"
BATCH_FRAMES = 32
"""Pictures that are encoded in one call, or one clip where that is longer."""
PIECE_FRAMES = 8
"""Frames of a camera that are in memory at once, at whatever size they were recorded."""


@dataclass(frozen=True, eq=False)
class Latents:
    """The latents of a dataset of N rows, read from disk on demand: for each row those of one clip, that begins there.

    `offsets` are the steps from the row to the further frames of its clip. They are () when `time_stride` is 1:
    each frame stands alone then, and n is 1. Otherwise `time_stride` of them make one latent frame: n is 1+F.
    """

    folder: Path
    array: Float16[np.ndarray, "N n Z h w"]
    time_stride: int = 1
    offsets: tuple[int, ...] = ()

    def window(
        self, start: Int[np.ndarray, "B"], last: Int[np.ndarray, "B"], offsets: tuple[int, ...]
    ) -> Float32[np.ndarray, "B Z F h w"]:
        """Copy into memory the latents of the windows that begin at rows `start`: first the present, then the future
        at `offsets`. Frames behind row `last`, the end of the episode, repeat it.

        Raises ValueError on a row that does not exist, and on offsets that were not encoded.
        """
        rows = start[:, None] + np.array([0, *offsets] if self.time_stride == 1 else [0])
        rows = np.minimum(rows, last[:, None])
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self.array):
            raise ValueError(f"{self.folder}: rows {rows} are not all within the {len(self.array)} cached ones")
        if self.time_stride == 1:
            found = self.array[rows, 0]
        elif offsets == self.offsets:
            found = self.array[rows[:, 0]]
        else:
            raise ValueError(f"{self.folder}: holds windows of frames {self.offsets}, not {offsets}; encode those")
        return np.ascontiguousarray(found.swapaxes(1, 2), np.float32)

    def single(self, rows: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B Z n h w"]:
        """Copy into memory the latents of pictures that stand alone."""
        return np.ascontiguousarray(self.array[rows, 0].swapaxes(1, 2), np.float32)


def cache_latents(
    dataset: Footage,
    *,
    cameras: tuple[str, ...],
    compose: Compose,
    encode: Encode,
    time_stride: int,
    offsets: tuple[int, ...],
    key: str,
    root: Path,
    progress: Progress = lambda done, total: None,
) -> Latents:
    """Open the latents of this dataset under `root`, encoding it first if that was never done.

    `compose` joins the frames of `cameras` (by name) of one episode to one picture per frame, `encode` maps
    clips of these to latents, stored as float16: `time_stride` pictures become one latent frame, except the first
    of a clip, which stands alone. `offsets` are the future frames of a window. `key` must change whenever
    `compose` or `encode` would give something else: put the codec's hash, the layout and its cameras in it. Every
    video is decoded once, a few frames at a time. `progress(done, total)` counts rows. The folder appears whole or
    not at all; a process that comes while another one encodes waits for it.

    Raises ValueError when the latents change shape, exceed float16 or do not fit on the disk, and if the cache
    is damaged.
    """
    clip = () if time_stride == 1 else offsets
    identity = {"dataset": dataset.digest, "key": key, "time_stride": time_stride, "offsets": list(clip)}
    folder = root / hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    with made_once(folder) as partial:
        if partial is not None:
            batches = _encoded(dataset, cameras, compose, encode, np.array([0, *clip]), progress)
            array = _write(partial, dataset, 1 + len(clip) // time_stride, batches)
            sheet = {**identity, "shape": list(array.shape), "sha256": _sha256(partial / ARRAY)}
            (partial / SHEET).write_text(json.dumps(sheet, indent=2) + "\n", encoding="utf-8")
    return Latents(folder, _open(folder, dataset, identity), time_stride, clip)


def _encoded(
    dataset: Footage,
    cameras: tuple[str, ...],
    compose: Compose,
    encode: Encode,
    steps: Int[np.ndarray, "T"],
    progress: Progress,
) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Where it comes from, its first row, its length, and the latents of every batch of clips, in the order of rows.

    Of an episode only the composed pictures are held that a batch of clips reaches.
    """
    size, total = max(1, BATCH_FRAMES // len(steps)), len(dataset.state)
    pieces = zip(*(dataset.videos(camera, PIECE_FRAMES) for camera in cameras), strict=True)
    for episode in dataset.episodes:
        held: list[np.ndarray] = []  # from row `first` of the episode
        for first in range(0, episode.length, size):
            end = min(first + size, episode.length)
            reach = min(end + int(steps[-1]), episode.length) - first
            while len(held) < reach:
                views = zip(cameras, next(pieces), strict=True)
                held.extend(compose({camera: frames for camera, (_, frames) in views}))
            rows = np.minimum(np.arange(first, end)[:, None] + steps, episode.length - 1) - first
            clips = np.stack([held[row] for row in rows.flat]).reshape(*rows.shape, *held[0].shape)
            yield dataset.where(episode.index), episode.start + first, end - first, encode(clips)
            progress(episode.start + end, total)
            del held[: end - first]


def _write(
    folder: Path, dataset: Footage, frames: int, batches: Iterator[tuple[str, int, int, np.ndarray]]
) -> np.memmap:
    array: np.memmap | None = None
    for where, row, count, latents in batches:
        _check_latents(latents, count, frames, where)
        clips = latents.swapaxes(1, 2)
        if array is None:
            shape = (len(dataset.state), *clips.shape[1:])
            _require_space(folder, shape)
            array = np.lib.format.open_memmap(folder / ARRAY, mode="w+", dtype=np.float16, shape=shape)
        if clips.shape[1:] != array.shape[1:]:
            raise ValueError(
                f"{where}: latents of shape {clips.shape[1:]} after others of {array.shape[1:]}; "
                "all episodes need one picture size"
            )
        array[row : row + count] = clips
    assert array is not None  # a dataset has at least one episode
    array.flush()
    return array


def _check_latents(latents: np.ndarray, count: int, frames: int, where: str) -> None:
    if latents.ndim != 5 or (latents.shape[0], latents.shape[2]) != (count, frames):
        raise ValueError(
            f"{where}: {count} clips gave latents of shape {latents.shape}, expected ({count}, Z, {frames}, h, w); "
            "the time stride of the codec is not the one that it was said to have"
        )
    limit = float(np.finfo(np.float16).max)
    if not (np.abs(latents) <= limit).all():
        raise ValueError(f"{where}: latents have NaN, Inf or numbers beyond {limit:g} of float16; rescale the codec")


def _require_space(folder: Path, shape: tuple[int, ...]) -> None:
    needed, free = np.float16(0).nbytes * int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder.parent}: the latents need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
            "free some or choose another folder for the cache"
        )


def _open(folder: Path, dataset: Footage, identity: Mapping[str, object]) -> np.ndarray:
    """Check everything the sheet says, the hash of the array too, and map the array."""
    repair = f"delete {folder} and run again"
    sheet = read_json(folder / SHEET)
    if {name: sheet.get(name) for name in identity} != identity:
        raise ValueError(f"{folder / SHEET}: belongs to another dataset or codec; {repair}")
    path = folder / ARRAY
    if not path.is_file() or _sha256(path) != sheet.get("sha256"):
        raise ValueError(f"{path}: missing or damaged, its SHA-256 is not the one in {SHEET}; {repair}")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if list(array.shape) != sheet.get("shape") or len(array) != len(dataset.state) or array.dtype != np.float16:
        raise ValueError(
            f"{path}: {array.dtype} of shape {array.shape}, expected float16 {sheet.get('shape')}; {repair}"
        )
    return array


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
