"""`meta/info.json` of a LeRobot dataset: read as untrusted input, refused where it is not understood.

Unknown keys are ignored, an unknown `storage_format` is not: it says that the files are something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

from actwam.data.problem import Problem
from actwam.data.video import MAX_SIDE

VERSIONS = ("v2.0", "v2.1", "v3.0")
"""Values of `codebase_version` that can be read."""
CHUNKS_SIZE = 1000
"""Files per folder where `info.json` does not say."""
CAMERA_PREFIX = "observation.images."
CAMERA_NAME = re.compile(r"[\w\-][\w.\-]*")
"""A name that is safe as a folder: no separator, no leading dot."""
STATE, ACTION = "observation.state", "action"
CONFIDENCE = "action_confidence"
"""How far an action that was inferred from video can be trusted, from 0 to 1."""

MAX_JSON_BYTES = 64 * 2**20
MAX_LINES_BYTES = 2**30
MAX_LINE_BYTES = 16 * 2**20
MAX_FRAMES = 200_000_000
MAX_WIDTH = 1024
"""Bounds on what a file may make the reader allocate: no robot dataset comes near them."""

COPY_AGAIN = "copy the file again from its source"
_FILE_FIELDS, _EPISODE_FIELDS = {"chunk_index", "file_index"}, {"episode_chunk", "episode_index"}


@dataclass(frozen=True)
class Camera:
    """`name` is what the embodiment calls it, `key` what the dataset does: `observation.images.<name>`."""

    name: str
    key: str
    height: int
    width: int


@dataclass(frozen=True)
class Info:
    """What `info.json` promises about the other files. A feature that is absent has no names: width 0.

    The path templates of v2.x name the episode, those of v3.0 a file; `chunks_size`, the number of files in a
    folder, is needed for v2.x only.
    """

    folder: Path
    version: str
    fps: int
    robot_type: str
    total_episodes: int
    total_frames: int
    cameras: tuple[Camera, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    has_confidence: bool
    chunks_size: int
    data_path: str
    video_path: str

    @property
    def file(self) -> Path:
        return self.folder / "meta" / "info.json"

    def path_of(self, template: str, **fields: str | int) -> Path:
        """Fill a path template. Raises ValueError if the path would leave the folder."""
        relative = PurePosixPath(template.format(**fields))
        if relative.is_absolute() or ".." in relative.parts or "\\" in str(relative):
            raise _problem(self.file, f"path {str(relative)!r} leaves the dataset", "do not trust this dataset")
        return self.folder / relative


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file. Raises ValueError if it is missing, too large, or something else."""
    _require_file(path, MAX_JSON_BYTES)
    return _object(path, "", path.read_bytes())


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with one on each line, and the numbers of the lines, from 1. Blank lines are
    passed over.

    Raises ValueError if the file is missing or too large, or with the number of the line that is something
    else.
    """
    _require_file(path, MAX_LINES_BYTES)
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise _problem(path, f"line {number}: longer than {MAX_LINE_BYTES} bytes", COPY_AGAIN)
            if line.strip():
                yield number, _object(path, f"line {number}: ", line)


def _require_file(path: Path, max_bytes: int) -> None:
    if not path.is_file():
        raise _problem(path, "file is missing", "copy the dataset again, or give the folder that holds meta/")
    if path.stat().st_size > max_bytes:
        raise _problem(path, f"larger than {max_bytes} bytes", "this is no LeRobot dataset")


def _object(path: Path, where: str, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise _problem(path, f"{where}not JSON ({error.msg} at character {error.pos})", COPY_AGAIN) from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or a number of thousands of digits
        raise _problem(path, f"{where}not JSON ({error})", COPY_AGAIN) from error
    if not isinstance(data, dict):
        raise _problem(path, f"{where}not a JSON object", COPY_AGAIN)
    return data


def read_info(folder: Path) -> Info:
    """Read and check `info.json`. Raises ValueError with one line that says what to do."""
    path = folder / "meta" / "info.json"
    data = read_json(path)
    _require_version(path, data)
    features = data.get("features")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise _problem(path, "features is not a table of features", "write the dataset again")
    version = data["codebase_version"]
    fields = _FILE_FIELDS if version == "v3.0" else _EPISODE_FIELDS
    info = Info(
        folder=folder,
        version=version,
        fps=_rate(path, data),
        robot_type=str(data.get("robot_type") or ""),
        total_episodes=_number(path, data, "total_episodes", 1, MAX_FRAMES),
        total_frames=_number(path, data, "total_frames", 1, MAX_FRAMES),
        cameras=tuple(camera for key in features if (camera := _camera(path, key, features[key])) is not None),
        state_names=_names(path, STATE, features.get(STATE)),
        action_names=_names(path, ACTION, features.get(ACTION)),
        has_confidence=_has_confidence(path, features.get(CONFIDENCE)),
        chunks_size=_number(path, {"chunks_size": CHUNKS_SIZE} | data, "chunks_size", 1, MAX_FRAMES),
        data_path=_template(path, data, "data_path", fields),
        video_path=_template(path, data, "video_path", fields | {"video_key"}) if data.get("video_path") else "",
    )
    if len({camera.name for camera in info.cameras}) < len(info.cameras):
        keys = [camera.key for camera in info.cameras]
        raise _problem(path, f"two cameras have one name: {keys}", "rename one of them")
    if info.cameras and not info.video_path:
        raise _problem(path, "there are cameras but no video_path", "write the dataset again with videos")
    return info


def _require_version(path: Path, data: dict[str, Any]) -> None:
    if data.get("storage_format") is not None:
        what = f"storage_format {data['storage_format']!r} is not known"
        raise _problem(path, what, "export the dataset as parquet and mp4 with LeRobot")
    version = data.get("codebase_version")
    if version not in VERSIONS:
        what = f"LeRobot dataset {version!r} cannot be read, only {', '.join(VERSIONS)}"
        raise _problem(path, what, "update actwam, or convert the dataset with LeRobot")


def _camera(path: Path, key: str, feature: dict[str, Any]) -> Camera | None:
    if feature.get("dtype") == "image":
        fix = "convert it to video with LeRobot"
        raise _problem(path, f"{key} keeps pictures inside parquet, which is not read", fix)
    if feature.get("dtype") != "video":
        return None
    details = feature.get("info") or feature.get("video_info") or {}
    if not isinstance(details, dict):
        raise _problem(path, f"{key} has info {details!r}, expected a table", "write the dataset again")
    if details.get("is_depth_map") or details.get("video.is_depth_map"):
        return None  # depth is no picture: it is not among the cameras
    if not CAMERA_NAME.fullmatch(key):
        raise _problem(path, f"camera key {key!r} is no plain name", "use letters, digits, '_', '-' and '.'")
    shape, names = feature.get("shape"), feature.get("names")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(side, int) for side in shape):
        raise _problem(path, f"{key} has shape {shape}, expected [height, width, 3]", "write the dataset again")
    channels_first = isinstance(names, list) and names and names[0] in ("channels", "channel")
    height, width = (shape[1], shape[2]) if channels_first else (shape[0], shape[1])
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise _problem(path, f"{key} has shape {shape}, a side beyond {MAX_SIDE}", "write the dataset again")
    return Camera(name=key.removeprefix(CAMERA_PREFIX), key=key, height=height, width=width)


def _names(path: Path, key: str, feature: dict[str, Any] | None) -> tuple[str, ...]:
    """One name per dimension: as given, be it a list or {"motors": [...]}, else `<key>_<i>`."""
    if feature is None:
        return ()
    shape = feature.get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int):
        raise _problem(path, f"{key} has shape {shape}, expected one width", "write the dataset again")
    width = shape[0]
    if not 1 <= width <= MAX_WIDTH:
        raise _problem(path, f"{key} is {width} wide, expected 1 to {MAX_WIDTH}", "write the dataset again")
    if feature.get("dtype") not in ("float32", "float64"):
        raise _problem(path, f"{key} is {feature.get('dtype')}, expected float32", "write the dataset again")
    names = feature.get("names")
    while isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if not isinstance(names, list) or len(names) != width or not all(isinstance(name, str) for name in names):
        return tuple(f"{key}_{i}" for i in range(width))
    return tuple(names)


def _has_confidence(path: Path, feature: dict[str, Any] | None) -> bool:
    if feature is None:
        return False
    if feature.get("dtype") != "float32" or feature.get("shape") != [1]:
        found = f"{feature.get('dtype')} of shape {feature.get('shape')}"
        raise _problem(path, f"{CONFIDENCE} is {found}, expected float32 of shape [1]", "rename it, or label again")
    return True


def _template(path: Path, data: dict[str, Any], key: str, fields: set[str]) -> str:
    """A path in which these fields are replaced, such as {file_index:03d} or {video_key}, and nothing else."""
    template = data.get(key)
    fix = "write the dataset again, or do not trust it"
    if not isinstance(template, str):
        raise _problem(path, f"{key} is {template!r}, expected a path", fix)
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise _problem(path, f"{key} {template!r} is no path template ({error})", fix) from error
    for _, name, spec, conversion in parts:
        if name is not None and (name not in fields or conversion or not re.fullmatch(r"(0\dd)?", spec or "")):
            what = f"{key} {template!r} replaces something unknown: only {sorted(fields)} are in this version"
            raise _problem(path, what, fix)
    return template


def _rate(path: Path, data: dict[str, Any]) -> int:
    """`fps`, which v2.x may write as a float. Time is counted in frames here, so 29.97 is refused, not rounded."""
    fps = data.get("fps")
    if isinstance(fps, float) and not fps.is_integer():
        fix = "resample rows and videos to a whole number of frames per second"
        raise _problem(path, f"fps is {fps}, expected a whole number", fix)
    return _number(path, {"fps": int(fps) if isinstance(fps, float) else fps}, "fps", 1, 10_000)


def _number(path: Path, data: dict[str, Any], key: str, low: int, high: int) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        fix = "write the dataset again" if value != 0 else "record at least one episode"
        raise _problem(path, f"{key} is {value!r}, expected a whole number from {low} to {high}", fix)
    return value


def _problem(path: Path, what: str, fix: str) -> ValueError:
    return ValueError(Problem(file=path, what=what, fix=fix))
