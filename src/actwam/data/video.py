"""Video files, addressed by frame number: h264 out, whatever FFmpeg decodes in.

A frame is found by its rank in presentation order, read from the packets of the file, never by a timestamp
with a tolerance: timestamps of concatenated files drift, ranks do not. Decoding stops at the first damaged
picture, since FFmpeg's concealment would paint over it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from jaxtyping import Int, UInt8

from actwam.data.problem import Problem

CODEC = "h264"
PIXEL_FORMAT = "yuv420p"
GROUP = 2
"""Frames from one keyframe to the next: any frame is at most one picture away from a seek point."""
RATE_FACTOR = 18
"""x264's constant rate factor: 18 is called visually lossless."""
PRESET = "veryfast"
MAX_SIDE = 8192
"""The largest height or width that is read: a larger one is refused before any picture is decoded."""

_COPY_AGAIN = "copy the file again from its source, or record the episode again"


class VideoWriter:
    """One mp4 file of constant frame rate, closed groups of pictures and no reordering, written frame by
    frame.

    Every `append` begins with a keyframe, so an episode can be cut out without encoding it again. One
    encoder thread, so that the same pictures give the same bytes on every machine.
    """

    def __init__(self, path: Path, *, height: int, width: int, fps: int) -> None:
        check_size(str(path), height, width)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.frames = 0
        self.bytes = 0
        self._reformatter = VideoReformatter()
        self._container = av.open(str(path), "w", format="mp4")
        self._tick = Fraction(1, fps)
        options = {
            "preset": PRESET,
            "crf": str(RATE_FACTOR),
            "g": str(GROUP),
            "bf": "0",
            "forced-idr": "1",
            "x264-params": "mbtree=0",  # of a small picture it makes other bytes once in some hundred times
        }
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = PIXEL_FORMAT
        self._stream.codec_context.time_base = self._tick
        self._stream.codec_context.thread_count = 1

    def append(self, frames: UInt8[np.ndarray, "T H W 3"]) -> None:
        """Encode T frames after those that are there. Raises ValueError on another size."""
        size = (self._stream.height, self._stream.width)
        if frames.shape[1:3] != size:
            raise ValueError(f"{self.path}: frames of {frames.shape[1:3]} in a video of {size} (height, width)")
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = self._reformatter.reformat(frame, format=PIXEL_FORMAT)
            frame.pts, frame.time_base = self.frames, self._tick
            frame.pict_type = PictureType.I if number == 0 else PictureType.NONE
            self._mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Flush the encoder and write the index of the file."""
        try:
            self._mux(self._stream.encode(None))
        finally:
            self._container.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            self.bytes += packet.size
            self._container.mux(packet)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_size(where: str, height: int, width: int) -> None:
    """Raises ValueError, beginning with `where`, on a size that 4:2:0 colour cannot store."""
    if height % 2 or width % 2 or not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ValueError(
            f"{where}: pictures of {height}x{width} (height x width) cannot be stored as {PIXEL_FORMAT}; "
            f"choose an even height and an even width up to {MAX_SIDE}"
        )


def write_video(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: int) -> None:
    """Write T RGB frames as one mp4. Raises ValueError on an odd height or width, or without any frame."""
    if len(frames) == 0:
        raise ValueError(f"{path}: a video needs at least one frame")
    with VideoWriter(path, height=frames.shape[1], width=frames.shape[2], fps=fps) as writer:
        writer.append(frames)


def video_bytes(frames: UInt8[np.ndarray, "T H W 3"], fps: int) -> bytes:
    """What `write_video` would write."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames, fps)
        return path.read_bytes()


@dataclass(frozen=True)
class VideoIndex:
    """What the packets say: the time stamp of every frame in presentation order, in `tick` seconds, and the
    keyframes.
    """

    height: int
    width: int
    tick: Fraction
    stamps: tuple[int, ...]
    keyframes: tuple[int, ...]

    @property
    def frames(self) -> int:
        return len(self.stamps)

    def rank(self, stamp: int | None) -> int | None:
        """The number of the frame with this time stamp, if there is one."""
        place = self.frames if stamp is None else bisect_left(self.stamps, stamp)
        return place if place < self.frames and self.stamps[place] == stamp else None

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return float((self.stamps[-1] - self.stamps[0]) * self.tick)


@dataclass(frozen=True)
class Header:
    """What a file announces of its pictures; `frames` is None where it does not say how many there are."""

    height: int
    width: int
    frames: int | None


def read_header(path: Path) -> Header:
    """Read the beginning and the end of a file, all of it if it cannot be entered there. Raises ValueError if it is
    missing or was cut off.
    """
    if not path.is_file():
        raise ValueError(Problem(file=path, what="video file is missing", fix=_COPY_AGAIN))
    with opened(path) as (container, stream):
        with suppress(FFmpegError):
            container.seek(stream.duration or 0, stream=stream)
        try:
            last = [packet for packet in container.demux(stream) if packet.size]
        except FFmpegError as error:
            what = f"video is damaged or truncated ({error.strerror})"
            raise ValueError(Problem(file=path, what=what, fix=_COPY_AGAIN)) from error
        if not last or last[-1].is_corrupt:
            raise ValueError(Problem(file=path, what="video is damaged or truncated at its end", fix=_COPY_AGAIN))
        return Header(stream.height, stream.width, stream.frames or None)


def index_video(path: Path) -> VideoIndex:
    """Read the index of a file, decoding nothing. Raises ValueError if it is missing or truncated."""
    if not path.is_file():
        raise ValueError(Problem(file=path, what="video file is missing", fix=_COPY_AGAIN))
    stat = path.stat()
    return _index(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _index(path: Path, size: int, modified: int) -> VideoIndex:
    """`size` and `modified` are there so that a file that changes is read again."""
    with opened(path) as (container, stream):
        # Packets without data flush the decoder; those marked "discard" are decoded but never shown.
        try:
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        except FFmpegError as error:
            what = f"video is damaged or truncated ({error.strerror})"
            raise ValueError(Problem(file=path, what=what, fix=_COPY_AGAIN)) from error
        if not packets:
            raise ValueError(Problem(file=path, what="video has no frames", fix=_COPY_AGAIN))
        if any(packet.pts is None for packet in packets):
            raise ValueError(Problem(file=path, what="a frame has no time stamp", fix="encode the video again"))
        packets.sort(key=lambda packet: packet.pts)
        stamps = tuple(packet.pts for packet in packets)
        keyframes = tuple(number for number, packet in enumerate(packets) if packet.is_keyframe)
        height, width, tick = stream.height, stream.width, Fraction(stream.time_base)
    if len(set(stamps)) < len(stamps) or not keyframes or keyframes[0] != 0:
        what = "frames share a time stamp, or the first one is no keyframe"
        raise ValueError(Problem(file=path, what=what, fix="encode the video again"))
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        what = f"pictures of {height}x{width} (height x width) are beyond the limit of {MAX_SIDE}"
        raise ValueError(Problem(file=path, what=what, fix="encode the video again, smaller"))
    return VideoIndex(height=height, width=width, tick=tick, stamps=stamps, keyframes=keyframes)


def quarter_turns(path: Path) -> int:
    """How often a player turns the pictures counterclockwise by 90 degrees, as those of a phone held upright; what
    reads frames here does not. Decodes the first frame. Raises ValueError if it cannot, and on another angle.
    """
    with opened(path) as (container, stream):
        try:
            first = next(container.decode(stream), None)
        except FFmpegError as error:
            what = f"video is damaged or truncated here ({error.strerror})"
            raise ValueError(Problem(file=path, frame=0, what=what, fix=_COPY_AGAIN)) from error
    if first is None:
        raise ValueError(Problem(file=path, frame=0, what="video is damaged or truncated here", fix=_COPY_AGAIN))
    if first.rotation % 90:
        what = f"is to be shown turned by {first.rotation} degrees, which no quarter turn makes"
        raise ValueError(Problem(file=path, what=what, fix="encode the video again, upright"))
    return first.rotation // 90 % 4


def read_frames(path: Path, numbers: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Decode the frames with these numbers (0 is the first of the file), in the order asked for.

    Seeks to the keyframe before a frame only when that saves decoding. Raises ValueError with the file and
    the frame if it is missing, too short, or damaged.
    """
    index = index_video(path)
    wanted = np.unique(numbers)
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < index.frames:
        frame = int(wanted[-1] if wanted[0] >= 0 else wanted[0])
        what = f"video has {index.frames} frames, so this one is missing"
        raise ValueError(Problem(file=path, frame=frame, what=what, fix=_COPY_AGAIN))
    try:
        pictures = _pick(path, index, wanted.tolist(), seek=True)
    except ValueError:
        # A file of open groups cannot be entered at every keyframe; damage is found again, and where.
        pictures = _pick(path, index, wanted.tolist(), seek=False)
    return pictures[np.searchsorted(wanted, numbers)]


def _pick(path: Path, index: VideoIndex, wanted: list[int], seek: bool) -> UInt8[np.ndarray, "T H W 3"]:
    """Decode frames of ascending numbers."""
    pictures = np.empty((len(wanted), index.height, index.width, 3), np.uint8)
    with opened(path) as (container, stream):
        reformatter = VideoReformatter()
        decoded = _decoded(path, container, stream, index, reformatter, start=0)
        position = 0  # the number of the frame that `decoded` yields next
        for row, number in enumerate(wanted):
            keyframe = index.keyframes[bisect_right(index.keyframes, number) - 1]
            if seek and keyframe > position:
                container.seek(index.stamps[keyframe], stream=stream)
                decoded = _decoded(path, container, stream, index, reformatter, start=keyframe)
            for position, picture in decoded:
                if position == number:
                    pictures[row] = picture
                    break
            position += 1
    return pictures


def iterate_frames(path: Path, first: int = 0) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decode a file frame by frame from frame `first` on. Raises ValueError with the file and the damaged frame."""
    index = index_video(path)
    keyframe = index.keyframes[bisect_right(index.keyframes, first) - 1]
    if keyframe:
        try:
            _pick(path, index, [first], seek=True)
        except ValueError:
            keyframe = 0  # a file of open groups cannot be entered at every keyframe
    with opened(path) as (container, stream):
        if keyframe:
            container.seek(index.stamps[keyframe], stream=stream)
        for number, picture in _decoded(path, container, stream, index, VideoReformatter(), start=keyframe):
            if number >= first:
                yield picture


def _decoded(
    path: Path, container: Any, stream: Any, index: VideoIndex, reformatter: VideoReformatter, start: int
) -> Iterator[tuple[int, Any]]:
    """Number and picture of all frames from `start`, the keyframe that the container stands at."""
    expected = start
    try:
        for frame in container.decode(stream):
            rank = index.rank(frame.pts)
            if rank is None or rank < start:
                continue  # leading pictures of an open group, which belong to the keyframe before
            if rank != expected or frame.is_corrupt:
                break
            if (frame.height, frame.width) != (index.height, index.width):
                break
            yield rank, reformatter.reformat(frame, format="rgb24").to_ndarray()
            expected += 1
    except FFmpegError as error:
        what = f"video is damaged or truncated here ({error.strerror})"
        raise ValueError(Problem(file=path, frame=expected, what=what, fix=_COPY_AGAIN)) from error
    if expected < index.frames:
        what = f"video is damaged or truncated here: {index.frames} frames are announced"
        raise ValueError(Problem(file=path, frame=expected, what=what, fix=_COPY_AGAIN))


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream. Raises ValueError where there is none, and on damage."""
    try:
        container = av.open(str(path))
    except FFmpegError as error:
        what = f"not a complete video file ({error.strerror})"
        raise ValueError(Problem(file=path, what=what, fix=_COPY_AGAIN)) from error
    with container:
        if not container.streams.video:
            raise ValueError(Problem(file=path, what="file holds no video stream", fix=_COPY_AGAIN))
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(Problem(file=path, what="video codec is unknown or damaged", fix=_COPY_AGAIN))
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream
