"""Small video files as phones, cameras and the web make them: any container, rate, rotation and damage."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def ramp(length: int, height: int = 16, width: int = 24) -> np.ndarray:
    """Frame t is the grey 6 * t: its number can be read off a pixel, whatever the codec does to it."""
    return np.broadcast_to((6 * np.arange(length, dtype=np.uint8))[:, None, None, None], (length, height, width, 3))


def numbers(frames: np.ndarray) -> list[int]:
    return np.rint(frames[:, 8, 8, 1] / 6).astype(int).tolist()


def encode(
    path: Path,
    frames: np.ndarray,
    fps: int = 30,
    *,
    milliseconds: Sequence[int] | None = None,
    rotation: int = 0,
    sound: bool = False,
) -> Path:
    """H.264 or, in a webm, VP9, with B-frames; `milliseconds` are the times of the frames where their rate varies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9" if path.suffix.lower() == ".webm" else "libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        noise = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if noise is not None:
            container.mux(noise.encode(silence()))
            container.mux(noise.encode(None))
    return path


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        container.mux(stream.encode(silence()))
        container.mux(stream.encode(None))
    return path


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
        container.start_encoding()
    return path


def silence() -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, 0
    return frame


def write_clips(folder: Path, *clips: np.ndarray, fps: int = 30, instruction: str = "push the square") -> Path:
    """A folder of `clip_0.mp4`, `clip_1.mp4`, ... which all have one instruction."""
    for number, frames in enumerate(clips):
        encode(folder / f"clip_{number}.mp4", frames, fps)
    (folder / "caption.txt").write_text(f"{instruction}\n")
    return folder
