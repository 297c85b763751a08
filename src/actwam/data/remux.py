"""Episodes of a video file taken over packet by packet: no picture is decoded and encoded again, so none gets worse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from actwam.data.tables import Clip
from actwam.data.video import opened


@dataclass(frozen=True)
class VideoFormat:
    """What the pictures of a file are encoded as, in FFmpeg's names."""

    codec: str
    pixel_format: str


def copyable(path: Path, firsts: Sequence[int]) -> VideoFormat | None:
    """The format of a file out of which episodes that begin with the frames `firsts` can be cut, else None.

    It can when every episode begins with a keyframe and frames are stored in the order in which they are shown: the
    first n of an episode need nothing behind them then. Decodes nothing. Raises ValueError on a file that is missing
    or damaged.
    """
    with opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        stamps = [packet.pts for packet in packets]
        context = stream.codec_context
        found = VideoFormat(context.name, context.pix_fmt or "")
    whole = not any(packet.is_discard or packet.pts is None for packet in packets)
    ordered = whole and all(now < then for now, then in pairwise(stamps))
    entered = ordered and all(first < len(packets) and packets[first].is_keyframe for first in firsts)
    return found if entered else None


def common_format(clips: Iterable[Clip]) -> VideoFormat | None:
    """The format of all files of these clips, if all of them can be cut out, and have the same; else None."""
    firsts: dict[Path, list[int]] = {}
    for clip in clips:
        firsts.setdefault(clip.path, []).append(clip.first_frame)
    formats = {copyable(path, frames) for path, frames in firsts.items()}
    return formats.pop() if len(formats) == 1 else None


class VideoCopy:
    """One mp4 file with the packets of some episodes of one `copyable` source, at exact multiples of 1 / fps.

    Episodes come in the order in which they stand in the source.
    """

    def __init__(self, path: Path, source: Path, fps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.source = source
        self.frames = 0
        self.bytes = 0
        self._tick = Fraction(1, fps)
        self._packets = _packets(source)
        self._read = 0
        self._container = av.open(str(path), "w", format="mp4")
        with opened(source) as (_, stream):
            self._stream = self._container.add_stream_from_template(stream, opaque=True)
        self._stream.time_base = self._tick

    def append(self, first: int, count: int) -> None:
        """Take over `count` frames of the source from frame `first` on."""
        while self._read < first + count:
            packet = next(self._packets)
            self._read += 1
            if self._read <= first:
                continue
            packet.stream, packet.time_base = self._stream, self._tick
            packet.pts = packet.dts = self.frames
            packet.duration = 1
            self.bytes += packet.size
            self._container.mux(packet)
            self.frames += 1

    def close(self) -> None:
        """Write the index of the file."""
        self._packets.close()
        self._container.close()


def _packets(path: Path) -> Any:
    def read() -> Iterator[Any]:
        with opened(path) as (container, stream):
            yield from (packet for packet in container.demux(stream) if packet.size)

    return read()
