"""Episodes taken over packet by packet: not one pixel changes, and what cannot be cut is not."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset
from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.remux import VideoFormat, copyable
from actwam.data.video import index_video
from actwam.data.writer import DatasetWriter

OURS = VideoFormat("h264", "yuv420p")


def encode(path: Path, frames: np.ndarray, codec: str = "libx264", **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def copy(source: LeRobotDataset, out: Path, robot: Embodiment, left_out: int, **more: int) -> LeRobotDataset:
    """The first frames of every episode, taken over."""
    cameras = tuple(robot.cameras.values())
    with DatasetWriter(out, robot, copied=dict.fromkeys(cameras, OURS), **more) as writer:
        for episode in source.episodes:
            rows = slice(episode.start, episode.start + episode.length - left_out)
            images = {name: source.video(name, episode.index)[: episode.length - left_out] for name in cameras}
            made = Episode(images, source.state[rows], source.action[rows], episode.instruction)
            writer.add_episode(made, episode.clips)
    return LeRobotDataset.open(out)


@pytest.mark.parametrize("left_out", [0, 1, 5])
def test_no_pixel_changes(written: Path, tmp_path: Path, robot: Embodiment, left_out: int) -> None:
    source = LeRobotDataset.open(written)
    for camera in source.cameras:
        paths = {episode.clips[camera.name].path for episode in source.episodes}
        assert copyable(paths.pop(), [e.clips[camera.name].first_frame for e in source.episodes]) == OURS
    made = copy(source, tmp_path / "d", robot, left_out)
    for episode in source.episodes:
        for camera in robot.cameras.values():
            taken = made.video(camera, episode.index)
            assert np.array_equal(taken, source.video(camera, episode.index)[: episode.length - left_out])
    assert check(tmp_path / "d").ok
    info = json.loads((tmp_path / "d/meta/info.json").read_text())["features"]["observation.images.front"]["info"]
    assert (info["video.codec"], info["video.pix_fmt"]) == ("h264", "yuv420p")
    assert "video.crf" not in info  # nobody knows it
    assert not (tmp_path / "d/meta/seeds.json").exists()


def test_a_file_holds_what_came_from_one_file(v30: Path, tmp_path: Path, arms: Embodiment) -> None:
    source = LeRobotDataset.open(v30)  # one episode in every file
    made = copy(source, tmp_path / "d", arms, 2)
    for camera in arms.cameras.values():
        assert len({episode.clips[camera].path for episode in made.episodes}) == len(source.episodes)
        for episode in source.episodes:
            whole = source.video(camera, episode.index)
            assert np.array_equal(made.video(camera, episode.index), whole[: episode.length - 2])


def test_files_of_a_limited_size_go_on_where_the_last_one_ended(written: Path, tmp_path: Path, robot) -> None:
    source = LeRobotDataset.open(written)
    made = copy(source, tmp_path / "d", robot, 1, video_file_bytes=1)
    assert len({episode.clips["front"].path for episode in made.episodes}) == len(source.episodes)
    for episode in source.episodes:
        assert np.array_equal(made.video("front", episode.index), source.video("front", episode.index)[:-1])


def test_stamps_are_whole_multiples_of_the_frame_time(written: Path, tmp_path: Path, robot: Embodiment) -> None:
    source = LeRobotDataset.open(written)
    made = copy(source, tmp_path / "d", robot, 3)
    path = made.episodes[0].clips["front"].path
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
    stamps = [stamp * base for stamp in index_video(path).stamps]
    assert stamps == [Fraction(n, 10) for n in range(sum(episode.length for episode in made.episodes))]


def test_what_cannot_be_cut_is_not_copied(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (24, 32, 48, 3), np.uint8)
    fluent = encode(tmp_path / "fluent.mp4", frames, g="12", bf="0", **{"x264-params": "scenecut=0"})
    assert index_video(fluent).keyframes == (0, 12)
    assert copyable(fluent, [0, 12]) == OURS
    assert copyable(fluent, [0, 7]) is None  # a picture that is told as the change from the one before it
    assert copyable(fluent, [0, 24]) is None  # not there
    reordered = encode(tmp_path / "reordered.mp4", frames, g="12", bf="3", **{"x264-params": "b-adapt=0:scenecut=0"})
    assert copyable(reordered, [0]) is None
    other = encode(tmp_path / "other.mp4", frames, "mpeg4", g="1")
    assert copyable(other, [0, 7]) == VideoFormat("mpeg4", "yuv420p")
    with pytest.raises(ValueError, match="not a complete video file"):
        copyable(Path(__file__), [0])


def test_a_feature_that_nobody_recorded_is_left_out(tmp_path: Path, robot: Embodiment, make_episode) -> None:
    bare = replace(robot, state_names=(), action_names=(), delta_mask=())
    with DatasetWriter(tmp_path / "d", bare) as writer:
        for number in range(2):
            made = make_episode(number)
            writer.add_episode(replace(made, state=made.state[:, :0], action=made.action[:, :0], seed=None))
    dataset = LeRobotDataset.open(tmp_path / "d")
    assert (dataset.state_names, dataset.action_names, dataset.confidence) == ((), (), None)
    assert dataset.state.shape == (55, 0)
    features = json.loads((tmp_path / "d/meta/info.json").read_text())["features"]
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    assert not {"observation.state", "action", "action_confidence"} & {*features, *stats}
    assert check(tmp_path / "d").ok


def test_confidence_is_kept_beside_the_action(tmp_path: Path, robot: Embodiment, make_episode) -> None:
    trust = [np.linspace(0.25, 1, len(make_episode(number).state), dtype=np.float32) for number in range(2)]
    with DatasetWriter(tmp_path / "d", robot) as writer:
        for number in range(2):
            writer.add_episode(replace(make_episode(number), confidence=trust[number]))
        for wrong in (None, trust[0] - 0.25, trust[0][:-1], trust[0] + np.nan):
            with pytest.raises(ValueError, match=r"episode 2: .*confidence"):
                writer.add_episode(make_episode(0, confidence=wrong))
    dataset = LeRobotDataset.open(tmp_path / "d")
    assert np.array_equal(dataset.confidence, np.concatenate(trust))
    feature = json.loads((tmp_path / "d/meta/info.json").read_text())["features"]["action_confidence"]
    assert feature == {"dtype": "float32", "shape": [1], "names": None}
    assert json.loads((tmp_path / "d/meta/stats.json").read_text())["action_confidence"]["max"] == [1.0]
    assert check(tmp_path / "d").ok


def test_a_confidence_that_is_none_is_refused(tmp_path: Path, robot: Embodiment, make_episode, rewrite) -> None:
    folder = tmp_path / "d"
    with DatasetWriter(folder, robot) as writer:
        writer.add_episode(replace(make_episode(0), confidence=np.full(24, 0.5, np.float32)))
    rewrite(folder, "data", "action_confidence", lambda column: np.where(np.arange(len(column)) == 3, 1.5, column))
    with pytest.raises(ValueError, match=r"action_confidence, frame 3: is 1\.5, expected 0 to 1"):
        LeRobotDataset.open(folder)
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action_confidence"]["dtype"] = "int64"
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match="action_confidence is int64 of shape"):
        LeRobotDataset.open(folder)
