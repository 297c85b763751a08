"""State and action of all rows of a dataset: read from its tables once, then mapped from plain arrays.

Only one data file is in memory at a time while the arrays are written, and of the arrays what is looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from actwam.data.digest import fingerprint
from actwam.data.info import Info, read_json
from actwam.data.partial import made_once
from actwam.data.problem import Problem, Reporter, refuse
from actwam.data.tables import EpisodeRow, Rows, Tables, data_files, examine_episodes, examine_file

ReadFile = Callable[[Tables, Info, Sequence[EpisodeRow], Reporter], Rows | None]
FORMAT = 1
"""Of the cache: another one is never read."""
PARTS = ("state", "action", "confidence")
SHEET = "rows.json"


@dataclass(frozen=True, eq=False)
class Numbers:
    """What N rows of E episodes hold beside pictures. `tasks` is the task of every episode."""

    state: Float32[np.ndarray, "N S"]
    action: Float32[np.ndarray, "N A"]
    confidence: Float32[np.ndarray, "N"] | None
    tasks: Sequence[int]


def read_numbers(tables: Tables, info: Info, read_file: ReadFile, cache: Path | None) -> Numbers:
    """The numbers of a dataset whose tables were planned, which are examined too: in memory, or from the folder
    `cache`, where they are written when its files are seen for the first time. A file is another one when its size or
    its time has changed.

    Raises ValueError on the first broken rule.
    """
    if cache is None:
        parts, tasks = {name: list[np.ndarray]() for name in PARTS}, list[int]()
        for rows in _each(tables, info, read_file, tasks):
            for name in PARTS:
                parts[name].append(getattr(rows, name))
        return _numbers({name: np.concatenate(found) for name, found in parts.items()}, info, tasks)
    folder = cache / "rows" / fingerprint(info.folder, _files(info.folder), f"rows {FORMAT}")
    with made_once(folder) as partial:
        if partial is not None:
            _write(partial, tables, info, read_file)
    return _mapped(folder, tables, info)


def _each(tables: Tables, info: Info, read_file: ReadFile, tasks: list[int]) -> Iterator[Rows]:
    """The rows of every data file, examined; `tasks` grows by the task of each episode.

    A file that cannot be read is what is said first, then a list of episodes that is broken, whose rows mean nothing.
    """
    broken: list[Problem] = []
    examine_episodes(tables, info, broken.append)
    for file, members in data_files(tables):
        rows = read_file(tables, info, members, refuse)
        assert rows is not None  # `refuse` has raised otherwise
        if broken:
            continue
        examine_file(file, members, rows, tables.tasks, refuse)
        first = np.cumsum([0, *(episode.length for episode in members[:-1])])
        tasks.extend(rows.task_index[first].tolist())
        yield rows
    for problem in broken:
        refuse(problem)


def _write(folder: Path, tables: Tables, info: Info, read_file: ReadFile) -> None:
    tasks: list[int] = []
    opened = {name: (folder / name).open("wb") for name, width in _widths(info).items() if width}
    try:
        for rows in _each(tables, info, read_file, tasks):
            for name, file in opened.items():
                file.write(getattr(rows, name).tobytes())
    finally:
        for file in opened.values():
            file.close()
    (folder / SHEET).write_text(json.dumps({"tasks": tasks}), encoding="utf-8")


def _mapped(folder: Path, tables: Tables, info: Info) -> Numbers:
    sheet = read_json(folder / SHEET)
    arrays: dict[str, np.ndarray] = {}
    for name, width in _widths(info).items():
        shape, path = (info.total_frames, width), folder / name
        if width and (not path.is_file() or path.stat().st_size != 4 * shape[0] * width):
            raise ValueError(f"{path}: missing or cut off; delete {folder} and run again")
        arrays[name] = np.memmap(path, np.float32, "r", shape=shape) if width else np.empty(shape, np.float32)
    if len(sheet.get("tasks", ())) != len(tables.episodes):
        raise ValueError(f"{folder / SHEET}: is of another dataset; delete {folder} and run again")
    return _numbers(arrays, info, sheet["tasks"])


def _widths(info: Info) -> dict[str, int]:
    return dict(zip(PARTS, (len(info.state_names), len(info.action_names), int(info.has_confidence)), strict=True))


def _numbers(arrays: Mapping[str, Any], info: Info, tasks: Sequence[int]) -> Numbers:
    confidence = arrays["confidence"][:, 0] if info.has_confidence else None
    return Numbers(arrays["state"], arrays["action"], confidence, tasks)


def _files(folder: Path) -> list[Path]:
    """All files that tables are read from."""
    walked = (step for part in ("meta", "data") for step in os.walk(folder / part))
    return [Path(place, name) for place, _, names in sorted(walked) for name in sorted(names)]
