"""Codec latents of a dataset, computed once and kept on disk: training decodes no video.

It serves codecs that encode each frame alone, so that any row can be read by itself. A codec that compresses
time mixes neighbouring frames: what a latent holds would depend on where the window begins. Such a codec is
refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int, UInt8

from actwam.data.dataset import LeRobotDataset
from actwam.data.info import read_json
from actwam.data.partial import partial_folder

Compose = Callable[[Mapping[str, UInt8[np.ndarray, "T H W 3"]]], UInt8[np.ndarray, "T H W 3"]]
Encode = Callable[[UInt8[np.ndarray, "T H W 3"]], Float32[np.ndarray, "T Z h w"]]

ARRAY, SHEET = "latents.npy", "latents.json"


@dataclass(frozen=True, eq=False)
class Latents:
    """One latent per row of the dataset, read from disk on demand. `starts` are the episodes' first rows."""

    folder: Path
    starts: tuple[int, ...]
    array: Float16[np.ndarray, "N Z h w"]

    def window(self, rows: Int[np.ndarray, "n"]) -> Float16[np.ndarray, "n Z h w"]:
        """Copy these rows into memory. Raises ValueError on a row that does not exist."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.array):
            raise ValueError(f"{self.folder}: rows {rows} are not all within the {len(self.array)} cached ones")
        return np.array(self.array[rows])


def cache_latents(
    dataset: LeRobotDataset,
    *,
    cameras: tuple[str, ...],
    compose: Compose,
    encode: Encode,
    key: str,
    root: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Latents:
    """Open the latents of this dataset under `root`, encoding it first if that was never done.

    `compose` joins the frames of `cameras` (by name) of one episode to one picture per frame, `encode` maps
    these to latents, stored as float16. `key` must change whenever either of them would give something else:
    put the codec's hash and the layout in it. Every video is decoded once, an episode at a time.
    `progress(done, total)` counts episodes. The folder appears whole or not at all.

    Raises ValueError if the codec compresses time, changes shape, or exceeds float16, and if the cache is
    damaged.
    """
    name = hashlib.sha256(f"{dataset.digest}\0{key}".encode()).hexdigest()
    folder = root / name
    if not folder.exists():
        with partial_folder(folder) as partial:
            _encode_all(partial, dataset, cameras, compose, encode, key, progress)
    return _open(folder, dataset, key)


def _encode_all(
    folder: Path,
    dataset: LeRobotDataset,
    cameras: tuple[str, ...],
    compose: Compose,
    encode: Encode,
    key: str,
    progress: Callable[[int, int], None],
) -> None:
    array: np.memmap | None = None
    for episode, *views in zip(dataset.episodes, *(dataset.videos(camera) for camera in cameras), strict=True):
        images = {camera: frames for camera, (_, frames) in zip(cameras, views, strict=True)}
        latents = encode(compose(images))
        where = f"{dataset.folder}: episode {episode.index}"
        _check_latents(latents, episode.length, where)
        if array is None:
            shape = (len(dataset.state), *latents.shape[1:])
            array = np.lib.format.open_memmap(folder / ARRAY, mode="w+", dtype=np.float16, shape=shape)
        if latents.shape[1:] != array.shape[1:]:
            raise ValueError(
                f"{where}: latents of shape {latents.shape[1:]} after others of {array.shape[1:]}; "
                "all episodes need one picture size"
            )
        array[episode.start : episode.start + episode.length] = latents
        progress(episode.index + 1, len(dataset.episodes))
    assert array is not None  # a dataset has at least one episode
    array.flush()
    sheet = {
        "shape": list(array.shape),
        "starts": [episode.start for episode in dataset.episodes],
        "dataset": dataset.digest,
        "key": key,
        "sha256": _sha256(folder / ARRAY),
    }
    (folder / SHEET).write_text(json.dumps(sheet, indent=2) + "\n", encoding="utf-8")


def _check_latents(latents: np.ndarray, length: int, where: str) -> None:
    if latents.ndim != 4 or len(latents) != length:
        raise ValueError(
            f"{where}: {length} frames gave latents of shape {latents.shape}, expected ({length}, Z, h, w); "
            "this cache needs a codec that encodes each frame alone; encode others window by window"
        )
    limit = float(np.finfo(np.float16).max)
    if not (np.abs(latents) <= limit).all():
        raise ValueError(f"{where}: latents have NaN, Inf or numbers beyond {limit:g} of float16; rescale the codec")


def _open(folder: Path, dataset: LeRobotDataset, key: str) -> Latents:
    """Check everything the sheet says, the hash of the array too, and map the array."""
    repair = f"delete {folder} and run again"
    sheet = read_json(folder / SHEET)
    starts = [episode.start for episode in dataset.episodes]
    if (sheet.get("dataset"), sheet.get("key"), sheet.get("starts")) != (dataset.digest, key, starts):
        raise ValueError(f"{folder / SHEET}: belongs to another dataset or codec; {repair}")
    path = folder / ARRAY
    if not path.is_file() or _sha256(path) != sheet.get("sha256"):
        raise ValueError(f"{path}: missing or damaged, its SHA-256 is not the one in {SHEET}; {repair}")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if list(array.shape) != sheet.get("shape") or len(array) != len(dataset.state) or array.dtype != np.float16:
        raise ValueError(
            f"{path}: {array.dtype} of shape {array.shape}, expected float16 {sheet.get('shape')}; {repair}"
        )
    return Latents(folder=folder, starts=tuple(starts), array=array)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
