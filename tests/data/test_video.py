from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from actwam.data.video import VideoWriter, index_video, iterate_frames, read_frames, write_video


def ramp(length: int, height: int = 16, width: int = 24) -> np.ndarray:
    """Frame t is the grey 6 * t: its number can be read off a pixel, whatever the codec does to it."""
    return np.broadcast_to((6 * np.arange(length, dtype=np.uint8))[:, None, None, None], (length, height, width, 3))


def numbers(frames: np.ndarray) -> list[int]:
    return np.rint(frames[:, 8, 8, 1] / 6).astype(int).tolist()


def encode(path: Path, frames: np.ndarray, codec: str, **options: str) -> None:
    """What another tool may have written."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode(None))


def test_frames_come_back_in_order_and_nearly_unchanged(tmp_path: Path) -> None:
    frames = ramp(40)
    write_video(tmp_path / "a.mp4", frames, fps=10)
    read = np.stack(list(iterate_frames(tmp_path / "a.mp4")))
    assert read.shape == frames.shape
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - frames).max() <= 2


def test_colours_keep_their_channels(tmp_path: Path) -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    frames[..., 0] = 200
    write_video(tmp_path / "red.mp4", frames, fps=10)
    red, green, blue = read_frames(tmp_path / "red.mp4", np.array([1]))[0, 8, 8]
    assert red > 190
    assert max(green, blue) < 10


def test_random_access_equals_sequential(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramp(40), fps=10)
    read = np.stack(list(iterate_frames(tmp_path / "a.mp4")))
    for wanted in ([39], [0], [7, 8, 9], [38, 3, 3, 20], []):
        frames = read_frames(tmp_path / "a.mp4", np.array(wanted, int))
        assert np.array_equal(frames, read[wanted])


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "12", "bf": "3"}),
        ("libx264", {"g": "8", "bf": "3", "x264-params": "open-gop=1"}),
        ("libx264", {}),
    ],
)
def test_files_of_other_encoders_are_read_by_frame_number(tmp_path: Path, codec: str, options: dict) -> None:
    path = tmp_path / "other.mp4"
    encode(path, ramp(40, 32, 48), codec, **options)
    assert index_video(path).frames == 40
    for number in range(40):
        assert numbers(read_frames(path, np.array([number]))) == [number]


def test_every_episode_begins_with_a_keyframe(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", height=16, width=24, fps=10) as writer:
        for length in (5, 4, 7):
            writer.append(ramp(length))
    assert writer.frames == 16
    assert {0, 5, 9} <= set(index_video(tmp_path / "a.mp4").keyframes)
    assert numbers(read_frames(tmp_path / "a.mp4", np.arange(16))) == [*range(5), *range(4), *range(7)]


def test_frame_n_is_shown_at_exactly_n_over_fps(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramp(30), fps=7)
    with av.open(str(tmp_path / "a.mp4")) as container:
        times = [frame.pts * frame.time_base * 7 for frame in container.decode(video=0)]
    assert times == list(range(30))


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", ramp(20), fps=10)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("size", [(15, 16), (16, 15)])
def test_odd_sizes_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"a\.mp4.*choose an even height and an even width"):
        write_video(tmp_path / "a.mp4", ramp(3, *size), fps=10)


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", ramp(0), fps=10)


def test_another_size_in_one_file_is_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", height=16, width=24, fps=10) as writer:
        writer.append(ramp(2))
        with pytest.raises(ValueError, match=r"\(32, 24\) in a video of \(16, 24\)"):
            writer.append(ramp(2, 32, 24))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.mp4: video file is missing; copy"):
        read_frames(tmp_path / "gone.mp4", np.array([0]))


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, ramp(40), fps=10)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"a\.mp4: not a complete video file"):
        next(iterate_frames(path))


def test_a_file_without_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(ValueError, match=r"a\.mp4: not a complete video file"):
        index_video(tmp_path / "a.mp4")


def test_a_damaged_picture_is_named_not_painted_over(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (40, 32, 48, 3), dtype=np.uint8)
    write_video(path, frames, fps=10)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or truncated") as caught:
        list(iterate_frames(path))
    frame = caught.value.args[0].frame
    assert 15 <= frame <= 25
    assert len(read_frames(path, np.arange(10))) == 10
    with pytest.raises(ValueError, match="damaged or truncated") as again:
        read_frames(path, np.array([frame]))
    assert again.value.args[0].frame == frame


def test_a_frame_past_the_end_is_named(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramp(10), fps=10)
    with pytest.raises(ValueError, match=r"a\.mp4: frame 12: video has 10 frames"):
        read_frames(tmp_path / "a.mp4", np.array([3, 12]))


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, ramp(10), fps=10)
    assert index_video(path).frames == 10
    path.unlink()
    write_video(path, ramp(12), fps=10)
    assert index_video(path).frames == 12
