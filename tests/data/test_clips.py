"""Folders of video files: which frame a row shows, which sentence a clip has, and every file that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import clip_files
import numpy as np
import pytest
import tiny
from clip_files import encode, numbers, ramp
from hypothesis import given
from hypothesis import strategies as st

from actwam.data import clips
from actwam.data.check import check
from actwam.data.clips import CAMERA, Clips, at_rate, holds_clips, nearest, open_clips
from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Encoding
from actwam.data.partial import share
from actwam.data.transforms import Slot, View, ViewLayout, whole_picture
from actwam.data.video import write_video


def shown(found: Clips, episode: int) -> list[int]:
    """The numbers of the frames that its rows show."""
    return numbers(found.frames("video", episode, np.arange(found.episodes[episode].length)))


@given(
    gaps=st.lists(st.integers(1, 40), max_size=30),
    first=st.integers(-50, 50),
    unit=st.sampled_from([25, 1000, 15360]),
    fps=st.integers(1, 60),
)
def test_the_frame_of_a_row_is_the_nearest_in_time(gaps: list[int], first: int, unit: int, fps: int) -> None:
    """Slow twin: row by row, with fractions."""
    stamps = (first + np.cumsum([0, *gaps])).tolist()
    tick = Fraction(1, unit)
    times = [(stamp - first) * tick for stamp in stamps]
    expected = []
    while Fraction(len(expected), fps) <= times[-1] + tick / 2:
        distance = [abs(time - Fraction(len(expected), fps)) for time in times]
        expected.append(distance.index(min(distance)))
    assert nearest(stamps, tick, fps).tolist() == expected


@pytest.mark.parametrize(
    ("recorded", "fps", "expected"),
    [
        (30, 10, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (30, 30, [*range(30)]),
        (5, 10, [0, 0, 1, 1, 2]),  # a tie is the earlier one
        (24, 10, [0, 2, 5, 7, 10]),
    ],
)
@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm", ".mov"])
def test_a_clip_is_read_at_the_rate_of_the_robot(
    tmp_path: Path, ending: str, recorded: int, fps: int, expected: list[int]
) -> None:
    """Containers store times in milliseconds or finer, which changes nothing."""
    path = encode(tmp_path / f"a{ending.upper()}", ramp(30), recorded)
    path.with_suffix(".txt").write_text("do it")
    found = open_clips(tmp_path, fps)
    assert shown(found, 0)[: len(expected)] == expected
    seconds = 29 / recorded
    assert len(found.state) == found.episodes[0].length == int(seconds * fps + 1e-9) + 1


def test_times_decide_where_the_rate_varies(tmp_path: Path) -> None:
    """Frame 3 stands for 700 milliseconds, frames 4 to 8 come at once."""
    encode(tmp_path / "a.mp4", ramp(9), milliseconds=[0, 90, 210, 300, 1000, 1010, 1020, 1030, 1100])
    (tmp_path / "caption.txt").write_text("do it")
    assert shown(open_clips(tmp_path, 10), 0) == [0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 8]


def test_every_file_below_the_folder_is_an_episode(tmp_path: Path) -> None:
    lengths = {"b.mp4": 12, "a/z.mkv": 21, "a/y.MP4": 15}
    for name, length in lengths.items():
        encode(tmp_path / name, ramp(length), 10)
    for other in (".hidden.mp4", "a/._y.MP4", "notes.md", ".cache/c.mp4"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("no video")
    (tmp_path / "a/z.txt").write_text(" pull \n the square\n")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "a/y.MP4", "instruction": "lift it"}) + "\n\n")
    (tmp_path / "caption.txt").write_text("push the square")
    found = open_clips(tmp_path, 10)
    assert [(e.index, e.start, e.length) for e in found.episodes] == [(0, 0, 15), (1, 15, 21), (2, 36, 12)]
    assert [e.instruction for e in found.episodes] == ["lift it", "pull the square", "push the square"]
    assert [found.where(i) for i in range(3)] == [str(tmp_path / name) for name in ("a/y.MP4", "a/z.mkv", "b.mp4")]
    assert (found.fps, found.robot_type, found.state.shape, found.action.shape) == (10, "", (48, 0), (48, 0))
    assert [camera.name for camera in found.cameras] == ["video"]
    assert holds_clips(tmp_path)


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_a_phone_held_upright_is_read_upright(tmp_path: Path, turn: int) -> None:
    """The corner that is white in the file stands where a player shows it: turned counterclockwise."""
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :16, :32] = 250
    encode(tmp_path / "a.mp4", frames, rotation=turn)
    (tmp_path / "caption.txt").write_text("do it")
    found = open_clips(tmp_path, 30)
    expected = np.rot90(frames[0], turn // 90)
    for read in (found.frames("video", 0, np.array([2]))[0], next(found.videos("video"))[1][1]):
        assert read.shape == expected.shape
        assert np.abs(read.astype(int) - expected).mean() < 5


def a_dataset(tmp_path: Path) -> Path:
    return clip_files.write_clips(tmp_path / "clips", ramp(20), ramp(33, 32, 16), ramp(9), fps=30)


@pytest.mark.parametrize("most", [1, 4, 1000, None])
def test_reading_in_order_is_reading_by_number(tmp_path: Path, most: int | None) -> None:
    for found in (open_clips(a_dataset(tmp_path), 20), open_clips(tmp_path / "clips", 60)):
        pieces: list[list[np.ndarray]] = [[], [], []]
        for episode, frames in found.videos("video", most):
            assert 1 <= len(frames) <= (most or len(frames))
            pieces[episode].append(frames)
        for episode, read in enumerate(pieces):
            whole = found.frames("video", episode, np.arange(found.episodes[episode].length))
            assert np.array_equal(np.concatenate(read), whole)


def test_a_row_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    found = open_clips(a_dataset(tmp_path), 10)
    for row in (-1, 7):
        with pytest.raises(ValueError, match=r"clip_0\.mp4: has no rows .*it has 7 at 10 fps"):
            found.frames("video", 0, np.array([row]))


def test_the_digest_is_of_pictures_and_rate(tmp_path: Path) -> None:
    folder = a_dataset(tmp_path)
    digest = open_clips(folder, 10).digest
    (folder / "caption.txt").write_text("another sentence")
    assert open_clips(folder, 10).digest == digest
    assert open_clips(folder, 12).digest != digest
    (folder / "clip_2.mp4").rename(folder / "a.mp4")
    other = open_clips(folder, 10).digest
    assert other != digest
    encode(folder / "a.mp4", 6 + ramp(9))
    assert open_clips(folder, 10).digest not in (digest, other)


def test_latents_of_clips_of_any_size_are_those_of_their_pictures(tmp_path: Path, monkeypatch) -> None:
    """With few frames in memory, however long the clip is."""
    found = open_clips(a_dataset(tmp_path), 15)
    view = whole_picture("video", ViewLayout(8, 16, (Slot("head", 0, 0, 8, 16),)))
    asked: list[int | None] = []
    real = Clips.videos

    def counted(self: Clips, camera: str, most: int, episodes: range) -> object:
        asked.append(most)
        return real(self, camera, most, episodes)

    monkeypatch.setattr(Clips, "videos", counted)

    def means(pictures: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(pictures.mean((2, 3, 4), dtype=np.float32)[:, None, :, None, None] / 255)

    encoding = Encoding(
        dataset=found,
        cameras=("video",),
        size=(8, 16),
        compose=view.picture,
        encode=means,
        time_stride=1,
        offsets=(2,),
        key="means",
        root=tmp_path / "cache",
    )
    share(encoding.jobs)
    (array,) = encoding.open().pieces
    assert asked == [8]
    assert array.shape == (10 + 17 + 5, 1, 1, 1, 1)
    for episode in found.episodes:
        whole = view.picture({"video": found.frames("video", episode.index, np.arange(episode.length))})
        rows = slice(episode.start, episode.start + episode.length)
        assert np.array_equal(array[rows], means(whole[:, None]).astype(np.float16))


def test_a_dataset_at_another_rate(tmp_path: Path) -> None:
    """Every camera in step; the numbers of the robot are left out."""
    dataset = LeRobotDataset.open(tiny.write_dataset(tmp_path / "squares", tiny.robot(), episodes=2, length=14))
    for fps, picked in ((5, [0, 2, 4, 6, 8, 10, 12]), (20, [0, 0, 1, 1, 2, 2, 3])):
        found = at_rate(dataset, fps)
        assert (found.fps, found.robot_type, found.cameras) == (fps, "robot_0", dataset.cameras)
        assert (found.state_names, found.state.shape[1], found.action.shape[1]) == ((), 0, 0)
        assert [e.instruction for e in found.episodes] == [e.instruction for e in dataset.episodes]
        assert found.digest != dataset.digest
        assert found.where(1).endswith("squares: episode 1")
        for camera in ("front", "wrist_left"):
            whole = dataset.video(camera, 1)
            assert np.array_equal(found.frames(camera, 1, np.arange(7)), whole[picked])
        pieces = [[len(f) for _, f in found.videos(camera, 3)] for camera in ("front", "wrist_left")]
        assert pieces[0] == pieces[1]
        assert sum(pieces[0]) == len(found.state)


def edit(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def damaged(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (10, 32, 48, 3), dtype=np.uint8)
    write_video(folder / "bad.mp4", frames, 10)
    data = bytearray((folder / "bad.mp4").read_bytes())
    start = data.index(b"mdat") + 5000
    data[start : start + 400] = bytes(400)
    (folder / "bad.mp4").write_bytes(data)


def cut(folder: Path) -> None:
    data = encode(folder / "bad.mp4", ramp(30)).read_bytes()
    (folder / "bad.mp4").write_bytes(data[:-300])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no video": (edit("bad.mp4", "text"), r"bad\.mp4: not a complete video file .*copy the file again"),
    "empty": (edit("bad.mp4", ""), r"bad\.mp4: not a complete video file"),
    "cut": (cut, r"bad\.mp4: (video has no frames|not a complete)"),
    "sound": (lambda f: clip_files.only_sound(f / "bad.mp4"), r"bad\.mp4: file holds no video stream"),
    "no frames": (
        lambda f: clip_files.no_frames(f / "bad.mp4"),
        r"bad\.mp4: (video has no|file holds no|not a)",
    ),
    "turned": (
        lambda f: encode(f / "bad.mp4", ramp(3), rotation=30),
        r"bad\.mp4: is to be shown turned by -?(29|30) deg",
    ),
    "pause": (
        lambda f: encode(f / "bad.mp4", ramp(4), milliseconds=[0, 100, 3200, 3300]),
        r"bad\.mp4: frame 2: comes 3\.1 s after the frame before it, more than 2; cut the clip in two",
    ),
    "no caption": (
        lambda f: (f / "caption.txt").unlink(),
        r"clip_0\.mp4: has no instruction; write clip_0\.txt beside it, a line of captions\.jsonl, or caption\.txt",
    ),
    "empty caption": (edit("clip_1.txt", " \n"), r"clip_1\.mp4: its instruction is empty"),
    "two captions": (
        lambda f: (edit("clip_1.txt", "a")(f), edit("captions.jsonl", '{"file": "clip_1.mp4", "instruction": "b"}')(f)),
        r"clip_1\.mp4: both clip_1\.txt and captions\.jsonl have its instruction; keep one",
    ),
    "not text": (edit("clip_1.txt", b"\xff\xfe"), r"clip_1\.txt: is not UTF-8 text"),
    "long": (edit("clip_1.txt", "a" * 70000), r"clip_1\.txt: is no sentence: too long"),
    "a line without a file": (
        edit("captions.jsonl", '{"instruction": "a"}'),
        r"captions\.jsonl: line 1: no file or",
    ),
    "a line of no video": (
        edit("captions.jsonl", '{"file": "clip_9.mp4", "instruction": "a"}'),
        r"captions\.jsonl: line 1: 'clip_9\.mp4' is no video of this folder",
    ),
    "a line twice": (
        edit("captions.jsonl", '{"file": "clip_0.mp4", "instruction": "a"}\n' * 2),
        r"captions\.jsonl: line 2: 'clip_0\.mp4' stands twice",
    ),
    "no line": (edit("captions.jsonl", "clip_0.mp4: a"), r"captions\.jsonl: line 1: not JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, fault: str) -> None:
    """By whoever opens the folder, and by `check` in the same words."""
    damage, message = FAULTS[fault]
    folder = a_dataset(tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        open_clips(folder, 10)
    assert "\n" not in str(caught.value)
    report = check(folder)
    assert not report.ok
    assert str(caught.value) in [str(problem) for problem in report.problems]


def test_a_picture_that_is_damaged_is_found_by_check_and_by_its_reader(tmp_path: Path) -> None:
    folder = a_dataset(tmp_path)
    damaged(folder)
    found = open_clips(folder, 10)
    with pytest.raises(ValueError, match=r"bad\.mp4: frame \d: video is damaged") as caught:
        list(found.videos("video"))
    (problem,) = check(folder).problems
    assert str(problem) == str(caught.value)


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file ends in \.mkv, \.mov, \.mp4, \.webm; give the folder"):
        open_clips(tmp_path, 10)
    assert not holds_clips(tmp_path)


def test_a_lerobot_dataset_is_no_folder_of_clips(tmp_path: Path) -> None:
    """Not even one whose info.json got lost."""
    folder = tiny.write_dataset(tmp_path / "squares", tiny.robot(), episodes=1)
    assert not holds_clips(folder)
    (folder / "meta/info.json").unlink()
    assert not holds_clips(folder)


def test_check_counts_and_finds_what_is_too_short(tmp_path: Path) -> None:
    folder = a_dataset(tmp_path)
    report = check(folder)
    assert (report.ok, report.episodes, report.frames, report.decoded) == (True, 3, 62, 62)
    assert report.seconds == pytest.approx((19 + 32 + 8) / 30)
    assert check(folder, decode="ends").decoded == 6
    assert check(folder, action_horizon=9).ok
    (problem,) = check(folder, action_horizon=4, fps=10).problems
    assert str(problem).endswith("clip_2.mp4: 3 rows at 10 fps are fewer than the 4 of one window; drop the clip, or "
                                 "train with a shorter horizon")  # fmt: skip
    assert check(folder, action_horizon=4, fps=20).ok


def test_a_view_names_its_slots_and_cameras() -> None:
    layout = ViewLayout(8, 16, (Slot("head", 0, 0, 8, 8), Slot("left", 0, 8, 8, 8)))
    frames = {"a": np.full((2, 8, 8, 3), 10, np.uint8), "b": np.full((2, 4, 4, 3), 90, np.uint8)}
    picture = View(layout, {"head": "b", "left": "a"}).picture(frames)
    assert (picture[:, :, :8] == 90).all()
    assert (picture[:, :, 8:] == 10).all()
    with pytest.raises(ValueError, match=r"a view fills slots \['head'\], its layout has \['head', 'left'\]"):
        View(layout, {"head": "a"})
    with pytest.raises(ValueError, match="one camera fills two slots"):
        View(layout, {"head": "a", "left": "a"})
    assert hash(View(layout, {"head": "b", "left": "a"})) == hash(View(layout, {"left": "a", "head": "b"}))


def test_files_that_have_not_changed_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clip_files.write_clips(tmp_path / "clips", clip_files.ramp(20), clip_files.ramp(31), fps=10)
    plain, first = open_clips(folder, 5), open_clips(folder, 5, tmp_path / "cache")
    (folder / "caption.txt").write_text("pull the square")
    with monkeypatch.context() as patch:
        patch.setattr(clips, "picked_frames", None)
        patch.setattr(clips, "require_clip", None)
        again = open_clips(folder, 5, tmp_path / "cache")
    assert [episode.length for episode in plain.episodes] == [episode.length for episode in again.episodes]
    assert {episode.instruction for episode in again.episodes} == {"pull the square"}
    assert plain.digest == first.digest == again.digest
    for (a, frames), (b, others) in zip(plain.videos(CAMERA, 4), again.videos(CAMERA, 4), strict=True):
        assert a == b
        assert np.array_equal(frames, others)
    clip_files.encode(folder / "clip_0.mp4", clip_files.ramp(12), 10)
    changed = open_clips(folder, 5, tmp_path / "cache")
    assert [episode.length for episode in changed.episodes] == [6, 16]
    assert changed.digest == open_clips(folder, 5).digest != plain.digest
    assert [episode.length for episode in open_clips(folder, 10, tmp_path / "cache").episodes] == [12, 31]
    (folder / "clip_1.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"clip_1\.mp4: not a complete video file"):
        open_clips(folder, 5, tmp_path / "cache")
