"""Writes demonstrations as a LeRobotDataset v3.0: parquet tables, one video per camera with many episodes in
it.

The format is described at https://github.com/huggingface/lerobot; what readers rely on and is easily got
wrong: one row group per episode, `index` equal to the row number, timestamps that restart in every episode,
time stamps in video files that are exact multiples of 1 / fps, and tasks in a pandas index, which is written
here without pandas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.info import ACTION, CAMERA_NAME, CAMERA_PREFIX, CONFIDENCE, STATE
from actwam.data.partial import partial_folder
from actwam.data.remux import VideoCopy, VideoFormat
from actwam.data.stats import count_colours, feature_stats, image_stats
from actwam.data.tables import Clip
from actwam.data.video import CODEC, GROUP, PIXEL_FORMAT, RATE_FACTOR, VideoWriter, check_size

VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"

_INDEXES = ("frame_index", "episode_index", "index", "task_index")
_OWN_META = {"info.json", "stats.json"}


class DatasetWriter:
    """A context manager: `with DatasetWriter(folder, embodiment) as writer: writer.add_episode(episode)`.

    Files grow in `<folder>.partial`; leaving the block closes and renames it, an exception removes it. A
    file is closed at the first end of an episode past its size limit. Of an embodiment without state or without
    action names that feature is left out. `copied` names the cameras whose pictures are not encoded here: every
    episode brings the clips that hold them in this format.

    Raises ValueError if the folder exists, if an episode does not fit the embodiment, or if there was no
    episode.
    """

    def __init__(
        self,
        folder: Path,
        embodiment: Embodiment,
        *,
        copied: Mapping[str, VideoFormat] | None = None,
        data_file_bytes: int = DATA_FILE_MB * 2**20,
        video_file_bytes: int = VIDEO_FILE_MB * 2**20,
    ) -> None:
        _check_embodiment(folder, embodiment)
        self.folder = folder
        self.embodiment = embodiment
        self._copied = dict(copied or {})
        self._limits = data_file_bytes, video_file_bytes
        self._stack = ExitStack()
        self._broken = False
        self._frames = 0
        self._tasks: dict[str, int] = {}
        self._seeds: list[int | None] = []
        self._rows: list[dict[str, Any]] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._colours: dict[str, tuple[np.ndarray, int]] = {}

    def __enter__(self) -> DatasetWriter:
        self._root = self._stack.enter_context(partial_folder(self.folder))
        fps, size = self.embodiment.fps, self.embodiment.image_size
        self._data = _DataFiles(self._root, self._limits[0])
        self._videos = {
            camera: _VideoFiles(self._root, CAMERA_PREFIX + camera, size, fps, self._limits[1])
            for camera in self.embodiment.cameras.values()
        }
        self._stack.callback(self._close_files)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if self._broken or not self._rows:
                what = "an episode was only half written" if self._broken else "no episode was added"
                raise ValueError(f"{self.folder}: {what}; nothing is kept")
            self._close_files()
            self._write_meta()

    @property
    def episodes(self) -> int:
        """How many episodes were added so far."""
        return len(self._rows)

    def add_episode(self, episode: Episode, clips: Mapping[str, Clip] | None = None) -> None:
        """Append one episode, or write nothing and raise a ValueError that names episode and key.

        `clips` are where the pictures of the `copied` cameras are stored: `episode.images` are their first frames.
        """
        number = len(self._rows)
        if self._broken:
            raise ValueError(f"{self.folder}: episode {number}: the one before was only half written; start again")
        check_episode(episode, self.embodiment, f"{self.folder}: episode {number}")
        if number and (episode.confidence is None) != (CONFIDENCE not in self._columns):
            raise ValueError(f"{self.folder}: episode {number}: all episodes have a confidence, or none has")
        self._broken = True  # until the last file has its part, a failure leaves files that disagree
        length, fps = len(episode.state), self.embodiment.fps
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        steps = np.arange(length)
        known = {STATE: episode.state, ACTION: episode.action, CONFIDENCE: episode.confidence}
        columns: dict[str, np.ndarray] = {
            **{key: values.astype(np.float32) for key, values in known.items() if values is not None and values.size},
            "timestamp": (steps / fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self._frames + steps,
            "task_index": np.full(length, task),
        }
        chunk, file = self._data.append(columns)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [episode.instruction],
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        stats = {key: feature_stats(values.reshape(length, -1)) for key, values in columns.items()}
        for camera, videos in self._videos.items():
            clip = (clips or {})[camera] if camera in self._copied else None
            chunk, file, before = videos.append(episode.images[camera], clip)
            place: dict[str, float] = {"chunk_index": chunk, "file_index": file}
            place |= {"from_timestamp": before / fps, "to_timestamp": (before + length) / fps}
            row |= {f"videos/{videos.key}/{name}": value for name, value in place.items()}
            histogram, frames = count_colours(episode.images[camera])
            stats[videos.key] = image_stats(histogram, frames)
            total, seen = self._colours.get(videos.key, (0, 0))
            self._colours[videos.key] = (total + histogram, seen + frames)
        row |= {f"stats/{key}/{name}": value for key, part in stats.items() for name, value in part.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        for key, values in columns.items():
            self._columns.setdefault(key, []).append(values)
        self._rows.append(row)
        self._seeds.append(episode.seed)
        self._frames += length
        self._broken = False

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Add a file under meta/. Raises ValueError on a name the format uses, or on NaN in the data."""
        if name in _OWN_META or Path(name).name != name or not name.endswith(".json"):
            raise ValueError(f"{self.folder}: meta/{name} cannot be written; choose another plain name in .json")
        _write_json(self._root / "meta" / name, data)

    def _close_files(self) -> None:
        self._data.close()
        for videos in self._videos.values():
            videos.close()

    def _write_meta(self) -> None:
        meta = self._root / "meta"
        stats = {key: feature_stats(_rows_of(parts)) for key, parts in self._columns.items()}
        stats |= {key: image_stats(histogram, frames) for key, (histogram, frames) in self._colours.items()}
        _write_json(meta / "stats.json", stats)
        _write_json(meta / "info.json", self._info())
        if None not in self._seeds:
            _write_json(meta / "seeds.json", {"seeds": self._seeds})
        _write_tasks(meta / "tasks.parquet", list(self._tasks))
        path = self._root / EPISODES_PATH
        path.parent.mkdir(parents=True)
        pq.write_table(_episode_table(self._rows), path)

    def _info(self) -> dict[str, Any]:
        robot = self.embodiment
        features = {videos.key: self._video(self._copied.get(camera)) for camera, videos in self._videos.items()}
        for key, names in ((STATE, robot.state_names), (ACTION, robot.action_names)):
            if names:
                features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        for key in (CONFIDENCE, "timestamp"):
            if key in self._columns:
                features[key] = {"dtype": "float32", "shape": [1], "names": None}
        features |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in _INDEXES}
        return {
            "codebase_version": VERSION,
            "robot_type": robot.name,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": robot.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }

    def _video(self, copied: VideoFormat | None) -> dict[str, Any]:
        height, width = self.embodiment.image_size
        ours = {"video.g": GROUP, "video.crf": RATE_FACTOR} if copied is None else {}
        return {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.channels": 3,
                "video.codec": CODEC if copied is None else copied.codec,
                "video.pix_fmt": PIXEL_FORMAT if copied is None else copied.pixel_format,
                "video.fps": self.embodiment.fps,
                **ours,
                "is_depth_map": False,
                "has_audio": False,
            },
        }


def _check_embodiment(folder: Path, embodiment: Embodiment) -> None:
    check_size(f"{folder}: embodiment {embodiment.name}", *embodiment.image_size)
    for name in embodiment.cameras.values():
        if not CAMERA_NAME.fullmatch(name):
            raise ValueError(f"{folder}: camera {name!r} is no plain name; use letters, digits, '_', '-' and '.'")


def check_episode(episode: Episode, embodiment: Embodiment, where: str) -> None:
    """Raises ValueError, beginning with `where` and the key, unless the episode is one of this embodiment."""
    length, cameras = len(episode.state), set(embodiment.cameras.values())
    if length == 0:
        raise ValueError(f"{where}: empty; record at least one frame")
    if not episode.instruction.strip():
        raise ValueError(f"{where}: instruction is empty; say in a sentence what is done")
    if missing := sorted(cameras - set(episode.images)):
        raise ValueError(f"{where}: cameras {missing} of {embodiment.name} are missing; record them")
    if unknown := sorted(set(episode.images) - cameras):
        raise ValueError(f"{where}: {embodiment.name} has no cameras {unknown}; add them to it or leave them out")
    for camera, frames in episode.images.items():
        expected = (length, *embodiment.image_size, 3)
        if frames.dtype != np.uint8:
            raise ValueError(f"{where}: camera {camera}: pictures are {frames.dtype}, expected uint8 from 0 to 255")
        if frames.shape != expected:
            raise ValueError(f"{where}: camera {camera}: shape {frames.shape}, expected {expected} (T, H, W, 3)")
    for key, values, names in (
        ("state", episode.state, embodiment.state_names),
        ("action", episode.action, embodiment.action_names),
    ):
        if values.shape != (length, len(names)):
            raise ValueError(f"{where}: {key}: shape {values.shape}, expected {(length, len(names))} for {names}")
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"{where}: {key}: is {values.dtype}, expected float32")
        bad = np.argwhere(~np.isfinite(values.astype(np.float32)))
        if len(bad):
            frame, i = (int(n) for n in bad[0])
            raise ValueError(f"{where}: {key}: frame {frame}: {names[i]} is {values[frame, i]}; drop the episode")
    trust = episode.confidence
    if trust is not None and (trust.shape != (length,) or not ((trust > 0) & (trust <= 1)).all()):
        raise ValueError(f"{where}: confidence must be {length} numbers above 0 and up to 1")


@dataclass
class _Place:
    """Which file of a chain of files is written, and how it is numbered."""

    chunk: int = 0
    file: int = 0

    def advance(self) -> None:
        self.chunk, self.file = (self.chunk + 1, 0) if self.file == FILES_PER_CHUNK - 1 else (self.chunk, self.file + 1)


class _DataFiles:
    """The parquet files under data/, one row group per episode."""

    def __init__(self, root: Path, limit: int) -> None:
        self._root, self._limit = root, limit
        self._place = _Place()
        self._writer: pq.ParquetWriter | None = None
        self._path = root

    def append(self, columns: dict[str, np.ndarray]) -> tuple[int, int]:
        table = pa.table({key: _arrow(values) for key, values in columns.items()})
        if self._writer is not None and self._path.stat().st_size >= self._limit:
            self.close()
            self._place.advance()
        if self._writer is None:
            place = {"chunk_index": self._place.chunk, "file_index": self._place.file}
            self._path = self._root / DATA_PATH.format(**place)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="snappy", use_dictionary=True)
        self._writer.write_table(table, row_group_size=table.num_rows)
        return self._place.chunk, self._place.file

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class _VideoFiles:
    """The mp4 files of one camera."""

    def __init__(self, root: Path, key: str, size: tuple[int, int], fps: int, limit: int) -> None:
        self.key = key
        self._root, self._size, self._fps, self._limit = root, size, fps, limit
        self._place = _Place()
        self._writer: VideoWriter | VideoCopy | None = None
        self._source: Path | None = None

    def append(self, frames: np.ndarray, clip: Clip | None) -> tuple[int, int, int]:
        """Chunk, file, and how many frames are in that file before these. Those of a clip are copied out of its file,
        of which one of ours holds no more than one: how a picture is to be decoded is said once for a whole file.
        """
        source = None if clip is None else clip.path
        if self._writer is not None and (self._writer.bytes >= self._limit or self._source != source):
            self.close()
            self._place.advance()
        if self._writer is None:
            place = {"chunk_index": self._place.chunk, "file_index": self._place.file}
            path = self._root / VIDEO_PATH.format(video_key=self.key, **place)
            self._writer, self._source = self._open(path, source), source
        before = self._writer.frames
        if isinstance(self._writer, VideoWriter):
            self._writer.append(frames)
        else:
            assert clip is not None  # its file is what is being copied
            self._writer.append(clip.first_frame, len(frames))
        return self._place.chunk, self._place.file, before

    def _open(self, path: Path, source: Path | None) -> VideoWriter | VideoCopy:
        if source is not None:
            return VideoCopy(path, source, self._fps)
        height, width = self._size
        return VideoWriter(path, height=height, width=width, fps=self._fps)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _rows_of(parts: list[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(parts)
    return rows.reshape(len(rows), -1)


def _arrow(values: np.ndarray) -> pa.Array:
    """A vector per row as a list of fixed size; a scalar, or a vector of one number, as a scalar."""
    flat = pa.array(values.reshape(-1))
    if values.ndim == 1 or values.shape[1] == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _episode_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({key: [row[key] for row in rows] for key in rows[0]})


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """Column `task_index`, and the sentence as pandas index "task": LeRobot reads `tasks.iloc[i].name`."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})

    def column(name: str | None, kind: str, stored: str, metadata: dict[str, str] | None = None) -> dict[str, Any]:
        return {
            "name": name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": stored,
            "metadata": metadata,
        }

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [column(None, "unicode", "object", {"encoding": "UTF-8"})],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
