from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Latents, cache_latents
from actwam.data.video import iterate_frames

CAMERAS = ("wrist_left", "front")


def side_by_side(views: Mapping[str, np.ndarray]) -> np.ndarray:
    assert tuple(views) == CAMERAS
    return np.concatenate([views[camera] for camera in CAMERAS], axis=2)


def shrink(frames: np.ndarray) -> np.ndarray:
    """A stand-in for a codec: means of 8 x 8 blocks, (T, 3, h, w)."""
    T, H, W, _ = frames.shape
    blocks = frames.reshape(T, H // 8, 8, W // 8, 8, 3).astype(np.float32) / 255
    return blocks.mean((2, 4)).transpose(0, 3, 1, 2)


def build(dataset: LeRobotDataset, root: Path, **changes) -> Latents:
    arguments = {
        "cameras": CAMERAS,
        "compose": side_by_side,
        "encode": shrink,
        "key": "shrink 8",
        "root": root,
    }
    return cache_latents(dataset, **arguments | changes)


@pytest.fixture
def dataset(written: Path) -> LeRobotDataset:
    return LeRobotDataset.open(written)


def test_latents_are_those_of_the_frames(dataset: LeRobotDataset, tmp_path: Path) -> None:
    latents = build(dataset, tmp_path)
    assert latents.starts == (0, 24, 55, 75)
    for episode in dataset.episodes:
        views = {camera: dataset.video(camera, episode.index) for camera in CAMERAS}
        expected = shrink(side_by_side(views)).astype(np.float16)
        rows = episode.start + np.arange(episode.length)
        assert np.array_equal(latents.window(rows), expected)
    window = latents.window(np.array([70, 3, 3]))
    assert window.shape == (3, 3, 4, 12)
    assert window.dtype == np.float16
    assert np.array_equal(window[1], window[2])
    assert latents.window(np.array([], int)).shape == (0, 3, 4, 12)


def test_each_video_is_decoded_once_and_never_again(dataset, tmp_path: Path, monkeypatch) -> None:
    decoded, encoded = [], []

    def counting(path: Path) -> Iterator[np.ndarray]:
        for picture in iterate_frames(path):
            decoded.append(path)
            yield picture

    monkeypatch.setattr("actwam.data.dataset.iterate_frames", counting)
    monkeypatch.delattr("actwam.data.dataset.read_frames")  # the other way to a picture
    first = build(dataset, tmp_path, progress=lambda *call: encoded.append(call))
    assert Counter(decoded) == {dataset.episodes[0].clips[camera].path: 100 for camera in CAMERAS}
    assert encoded == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def never(frames: np.ndarray) -> np.ndarray:
        raise AssertionError("encoded again")

    second = build(dataset, tmp_path, encode=never)
    assert len(decoded) == 200
    assert np.array_equal(first.array, second.array)


def test_another_key_or_dataset_is_another_cache(dataset, dataset_folder: Path, tmp_path: Path) -> None:
    (dataset_folder / "meta/extra.json").write_text("{}")
    other = LeRobotDataset.open(dataset_folder)
    root = tmp_path / "cache"
    folders = {
        build(dataset, root).folder,
        build(dataset, root, key="shrink 8, other weights").folder,
        build(other, root).folder,
    }
    assert len(folders) == 3


def test_rows_outside_are_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    latents = build(dataset, tmp_path)
    for rows in ([100], [-1]):
        with pytest.raises(ValueError, match="not all within the 100 cached ones"):
            latents.window(np.array(rows))


def test_a_failure_leaves_no_cache(dataset: LeRobotDataset, tmp_path: Path) -> None:
    calls = []

    def fails(frames: np.ndarray) -> np.ndarray:
        calls.append(len(frames))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return shrink(frames)

    with pytest.raises(RuntimeError, match="out of memory"):
        build(dataset, tmp_path, encode=fails)
    assert list(tmp_path.iterdir()) == []
    assert build(dataset, tmp_path).array.shape == (100, 3, 4, 12)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (
            lambda frames: shrink(frames)[::4],
            r"episode 0: 24 frames gave latents .* encodes each frame alone",
        ),
        (lambda frames: shrink(frames)[:, 0], "expected .24, Z, h, w."),
        (lambda frames: shrink(frames) * np.float32(1e6), "beyond 65504 of float16"),
        (lambda frames: shrink(frames) * np.float32(np.nan), "NaN"),
        (
            lambda frames: shrink(frames)[:, :, : 1 + len(frames) % 2],
            "episode 1: latents of shape .* after others",
        ),
    ],
)
def test_codecs_that_do_not_fit_are_refused(dataset, tmp_path: Path, encode, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build(dataset, tmp_path, encode=encode)
    assert list(tmp_path.iterdir()) == []


def damage_byte(folder: Path) -> None:
    data = bytearray((folder / "latents.npy").read_bytes())
    data[-7] ^= 1
    (folder / "latents.npy").write_bytes(data)


def other_sheet(**changes) -> object:
    def damage(folder: Path) -> None:
        path = folder / "latents.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_byte, r"latents\.npy: missing or damaged.*delete .* and run again"),
        (lambda folder: os.truncate(folder / "latents.npy", 500), r"latents\.npy: missing or damaged"),
        (lambda folder: (folder / "latents.npy").unlink(), r"latents\.npy: missing or damaged"),
        (lambda folder: (folder / "latents.json").unlink(), r"latents\.json: file is missing"),
        (other_sheet(shape=[100, 3, 4, 13]), r"float16 of shape \(100, 3, 4, 12\), expected"),
        (other_sheet(starts=[0]), "belongs to another dataset or codec"),
        (other_sheet(key="another"), "belongs to another dataset or codec"),
    ],
)
def test_a_damaged_cache_is_refused_with_what_to_do(dataset, tmp_path: Path, damage, message: str) -> None:
    damage(build(dataset, tmp_path).folder)
    with pytest.raises(ValueError, match=message):
        build(dataset, tmp_path)
