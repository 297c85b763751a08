from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actwam.data import latents as latents_module
from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Encoding, Latents, require_space
from actwam.data.partial import share
from actwam.data.video import iterate_frames

CAMERAS = ("wrist_left", "front")


def side_by_side(views: Mapping[str, np.ndarray]) -> np.ndarray:
    assert tuple(views) == CAMERAS
    return np.concatenate([views[camera] for camera in CAMERAS], axis=2)


def shrink(clips: np.ndarray) -> np.ndarray:
    """A stand-in for a codec: means of 8 x 8 blocks, (B, 3, T, h, w)."""
    B, T, H, W, _ = clips.shape
    blocks = clips.reshape(B, T, H // 8, 8, W // 8, 8, 3).astype(np.float32) / 255
    return np.ascontiguousarray(blocks.mean((3, 5)).transpose(0, 4, 1, 2, 3))


def pair(clips: np.ndarray) -> np.ndarray:
    """A stand-in for a codec that makes one latent of two frames: twice the first and three times the second."""
    latents = shrink(clips)
    return np.concatenate([latents[:, :, :1], 2 * latents[:, :, 1::2] + 3 * latents[:, :, 2::2]], axis=2)


def rows(*values: int) -> np.ndarray:
    return np.array(values, int)


def encoding(dataset: LeRobotDataset, root: Path, **changes) -> Encoding:
    arguments = {
        "cameras": CAMERAS,
        "size": (32, 96),
        "compose": side_by_side,
        "encode": shrink,
        "time_stride": 1,
        "offsets": (),
        "key": "shrink 8",
        "root": root,
    }
    return Encoding(dataset=dataset, **arguments | changes)


def build(dataset: LeRobotDataset, root: Path, **changes) -> Latents:
    made = encoding(dataset, root, **changes)
    share(made.jobs)
    return made.open()


def every_row(latents: Latents) -> np.ndarray:
    return np.concatenate(list(latents.pieces))


def left(root: Path) -> list[Path]:
    """Files of a cache."""
    return [path for path in root.rglob("*") if path.is_file()]


def never(clips: np.ndarray) -> np.ndarray:
    raise AssertionError("encoded again")


def pictures(dataset: LeRobotDataset, episode: int) -> np.ndarray:
    return side_by_side({camera: dataset.video(camera, episode) for camera in CAMERAS})


@pytest.fixture
def dataset(written: Path) -> LeRobotDataset:
    return LeRobotDataset.open(written)


def test_latents_are_those_of_the_frames(dataset: LeRobotDataset, tmp_path: Path) -> None:
    latents = build(dataset, tmp_path)
    assert every_row(latents).shape == (100, 1, 3, 4, 12)
    for episode in dataset.episodes:
        expected = shrink(pictures(dataset, episode.index)[None]).astype(np.float16)
        starts = episode.start + np.arange(episode.length)
        last = np.full(episode.length, episode.start + episode.length - 1)
        assert np.array_equal(latents.window(starts, last, ())[:, :, 0], expected[0].swapaxes(0, 1))
        moments = np.minimum(np.arange(episode.length)[:, None] + [0, 2, 5], episode.length - 1)
        window = latents.window(starts, last, (2, 5))
        assert np.array_equal(window, expected[0][:, moments].swapaxes(0, 1))
    window = latents.window(rows(70, 3, 3), rows(74, 23, 23), (1,))
    assert window.shape == (3, 3, 2, 4, 12)
    assert window.dtype == np.float32
    assert np.array_equal(window[1], window[2])
    assert latents.window(rows(), rows(), (1,)).shape == (0, 3, 2, 4, 12)


@pytest.mark.parametrize("batch_frames", [1, 12, 1000])
def test_a_codec_that_compresses_time_has_the_window_of_every_row(
    dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_frames: int
) -> None:
    """Row by row what encoding the window alone gives, whatever clips are encoded together."""
    monkeypatch.setattr("actwam.data.latents.BATCH_FRAMES", batch_frames)
    offsets, together = (1, 3, 4, 9), []

    def encode(clips: np.ndarray) -> np.ndarray:
        together.append(len(clips))
        return pair(clips)

    latents = build(dataset, tmp_path, encode=encode, time_stride=2, offsets=offsets)
    assert every_row(latents).shape == (100, 3, 3, 4, 12)
    assert max(together) == {1: 1, 12: 2, 1000: 31}[batch_frames]
    for episode in dataset.episodes:
        whole = pictures(dataset, episode.index)
        starts = np.arange(episode.length)
        moments = np.minimum(starts[:, None] + [0, *offsets], episode.length - 1)  # the last frame is repeated
        expected = np.concatenate([pair(whole[window][None]) for window in moments]).astype(np.float16)
        last = np.full(episode.length, episode.start + episode.length - 1)
        assert np.array_equal(latents.window(episode.start + starts, last, offsets), expected)
    again = build(dataset, tmp_path, encode=never, time_stride=2, offsets=offsets)
    assert (again.time_stride, again.offsets) == (2, offsets)
    assert np.array_equal(every_row(again), every_row(latents))


def test_other_offsets_are_encoded_anew_only_where_windows_are_cached(dataset, tmp_path: Path) -> None:
    frames = build(dataset, tmp_path, offsets=(1, 2))
    assert build(dataset, tmp_path, encode=never, offsets=(3,)).folder == frames.folder
    windows = build(dataset, tmp_path, encode=pair, time_stride=2, offsets=(1, 2))
    others = build(dataset, tmp_path, encode=pair, time_stride=2, offsets=(1, 3))
    assert len({frames.folder, windows.folder, others.folder}) == 3
    with pytest.raises(ValueError, match=r"holds windows of frames \(1, 2\), not \(1, 3\)"):
        windows.window(rows(0), rows(23), (1, 3))


def test_a_window_without_future_is_one_frame_for_any_codec(dataset, tmp_path: Path) -> None:
    latents = build(dataset, tmp_path, encode=pair, time_stride=2)
    assert latents.window(rows(0, 99), rows(23, 99), ()).shape == (2, 3, 1, 4, 12)


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_encoded(
    dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 rows of 3 x 4 x 12 float16 numbers are 28,800 bytes; of all datasets together what is not there counts."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=28_800))
    first, again, other = (encoding(dataset, tmp_path, key=key) for key in ("one", "one", "two"))
    require_space([first])
    with pytest.raises(ValueError, match=r"the latents need 0\.0 GB, the disk has 0\.0 GB free; free some"):
        require_space([first, other])
    share(first.jobs)
    require_space([again, other])
    assert (again.missing_bytes, other.missing_bytes) == (0, 28_800)
    assert encoding(dataset, tmp_path, encode=pair, time_stride=2, offsets=(1, 2)).missing_bytes == 2 * 28_800


def test_disk_space_is_told_in_gigabytes(dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=12_300_000_000))
    monkeypatch.setattr(Encoding, "missing_bytes", 92_160_000_000)
    with pytest.raises(ValueError, match=r"need 92\.2 GB, the disk has 12\.3 GB free"):
        require_space([encoding(dataset, tmp_path)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_disk_that_is_full_is_one_line(dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", **how: real(Path("/dev/full") if mode == "wb" else self, mode, **how)
    )
    with pytest.raises(ValueError, match=r"latents\.npy: cannot be written: .*No space left.*; free disk space"):
        build(dataset, tmp_path)
    assert left(tmp_path) == []


def test_each_video_is_decoded_once_and_never_again(dataset, tmp_path: Path, monkeypatch) -> None:
    decoded, encoded = [], []

    def counting(path: Path, first: int) -> Iterator[np.ndarray]:
        for picture in iterate_frames(path, first):
            decoded.append(path)
            yield picture

    monkeypatch.setattr("actwam.data.dataset.iterate_frames", counting)
    monkeypatch.delattr("actwam.data.dataset.read_frames")  # the other way to a picture
    first = build(dataset, tmp_path, progress=lambda *call: encoded.append(call))
    assert Counter(decoded) == {dataset.episodes[0].clips[camera].path: 100 for camera in CAMERAS}
    assert encoded == [(24, 100), (55, 100), (75, 100), (100, 100)]
    second = build(dataset, tmp_path, encode=never)
    assert len(decoded) == 200
    assert np.array_equal(every_row(first), every_row(second))


@pytest.mark.parametrize(("time_stride", "offsets"), [(1, ()), (2, (1, 3, 4, 9))])
def test_pieces_hold_what_one_array_would(
    dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_stride: int, offsets: tuple[int, ...]
) -> None:
    """Windows of all rows, asked for together and in any order, from four pieces of one episode and from one of all."""
    how = {"encode": shrink if time_stride == 1 else pair, "time_stride": time_stride, "offsets": offsets}
    whole_one = build(dataset, tmp_path / "one", **how)
    monkeypatch.setattr(latents_module, "PIECE_ROWS", 20)
    cut = build(dataset, tmp_path / "cut", **how)
    assert (len(whole_one.pieces), len(cut.pieces)) == (1, 4)
    starts = np.random.default_rng(0).permutation(100)
    last = np.array([next(e.start + e.length - 1 for e in dataset.episodes if e.start + e.length > s) for s in starts])
    for asked in (offsets, *([(2, 5)] if time_stride == 1 else [])):
        assert np.array_equal(cut.window(starts, last, asked), whole_one.window(starts, last, asked))
    past = np.maximum(last[:, None] - np.array([6, 3]), 0)
    past = np.minimum(past, last[:, None])
    assert np.array_equal(cut.single(past[:, 1:]), whole_one.single(past[:, 1:]))
    assert cut.single(past[:, :0]).shape == (100, 3, 0, 4, 12)
    with pytest.raises(ValueError, match="not all within the 100 cached ones"):
        cut.window(rows(100), rows(200), offsets)


def test_what_is_left_after_a_failure_goes_on_piece_by_piece(
    dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents_module, "PIECE_ROWS", 20)
    encoded: list[int] = []

    def fails(clips: np.ndarray) -> np.ndarray:
        if len(encoded) == 3:
            raise RuntimeError("out of memory")
        encoded.append(len(clips))
        return shrink(clips)

    with pytest.raises(RuntimeError, match="out of memory"):
        build(dataset, tmp_path, encode=fails)
    encoded.clear()
    decoded: list[int] = []
    real = LeRobotDataset.videos

    def counted(self: LeRobotDataset, camera: str, most: int, episodes: range) -> object:
        decoded.extend(episodes)
        return real(self, camera, most, episodes)

    monkeypatch.setattr(LeRobotDataset, "videos", counted)
    found = build(dataset, tmp_path, encode=lambda clips: encoded.append(len(clips)) or shrink(clips))
    assert sorted(set(decoded)) == [e.index for e in dataset.episodes if e.index not in (0, 1, 2)]
    assert np.array_equal(every_row(found), every_row(build(dataset, tmp_path / "other")))


def test_pieces_of_other_sizes_are_refused(dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents_module, "PIECE_ROWS", 20)

    def cropped(clips: np.ndarray) -> np.ndarray:
        return shrink(clips)[:, :, :, : 1 + len(clips) % 2]

    with pytest.raises(ValueError, match=r"episode 1: latents of shape .* after others of .*; all episodes need one"):
        build(dataset, tmp_path, encode=cropped)


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
    for row in (100, -1):
        with pytest.raises(ValueError, match="not all within the 100 cached ones"):
            latents.window(rows(row), rows(200), (1,))


def test_a_failure_leaves_no_cache(dataset: LeRobotDataset, tmp_path: Path) -> None:
    calls = []

    def fails(frames: np.ndarray) -> np.ndarray:
        calls.append(len(frames))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return shrink(frames)

    with pytest.raises(RuntimeError, match="out of memory"):
        build(dataset, tmp_path, encode=fails)
    assert left(tmp_path) == []
    assert every_row(build(dataset, tmp_path)).shape == (100, 1, 3, 4, 12)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (
            lambda clips: shrink(clips)[::4],
            r"episode 0: 24 clips gave latents .*expected .24, Z, 1, h, w.",
        ),
        (lambda clips: shrink(clips)[:, 0], "expected .24, Z, 1, h, w."),
        (lambda clips: shrink(clips)[:, :, [0, 0]], "the time stride of the codec is not the one"),
        (lambda frames: shrink(frames) * np.float32(1e6), "beyond 65504 of float16"),
        (lambda frames: shrink(frames) * np.float32(np.nan), "NaN"),
        (
            lambda frames: shrink(frames)[:, :, :, : 1 + len(frames) % 2],
            "episode 1: latents of shape .* after others",
        ),
    ],
)
def test_codecs_that_do_not_fit_are_refused(dataset, tmp_path: Path, encode, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build(dataset, tmp_path, encode=encode)
    assert left(tmp_path) == []


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
        (
            lambda folder: (folder / "latents.json").unlink(),
            r"latents\.json: missing or damaged; delete .* and run again",
        ),
        (other_sheet(shape=[100, 1, 3, 4, 13]), r"float16 of shape \(100, 1, 3, 4, 12\), expected"),
        (other_sheet(offsets=[1]), "belongs to another dataset or codec"),
        (other_sheet(key="another"), "belongs to another dataset or codec"),
    ],
)
def test_a_damaged_cache_is_refused_with_what_to_do(dataset, tmp_path: Path, damage, message: str) -> None:
    damage(next(build(dataset, tmp_path).folder.iterdir()))
    with pytest.raises(ValueError, match=message):
        build(dataset, tmp_path)
