"""Reads the tables of LeRobotDataset v3.0: many episodes per parquet file, tasks in a pandas index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow as pa

from actwam.data.info import COPY_AGAIN, Info
from actwam.data.parquet import floats, integers, read_parquet, read_rows
from actwam.data.problem import Problem, Reporter, reported
from actwam.data.tables import REWRITE, EpisodeRow, Rows, Span, Tables, data_files


def plan(info: Info, report: Reporter) -> Tables | None:
    """All tables but the rows of the data files, or None when the episode table cannot be read, which was reported."""
    tasks = None
    with reported(report):
        tasks = _read_tasks(info.folder / "meta" / "tasks.parquet", info.total_episodes)
    files = sorted((info.folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    episodes: list[EpisodeRow] = []
    whole = bool(files)
    if not files:
        what = "no episode table"
        report(Problem(file=info.folder / "meta" / "episodes", what=what, fix=COPY_AGAIN))
    for file in files:
        before = len(episodes)
        with reported(report):
            episodes.extend(_read_episodes(file, info))
        whole = whole and len(episodes) > before
    return Tables(episode_file=files[0], tasks=tasks, episodes=tuple(episodes), rows={}) if whole else None


def read_file(tables: Tables, info: Info, members: Sequence[EpisodeRow], report: Reporter) -> Rows | None:
    """The rows of the data file that holds these episodes, or None if it cannot be read, which was reported."""
    rows = None
    with reported(report):
        rows = read_rows(members[0].data_file, info)
    return rows


def read_tables(info: Info, report: Reporter) -> Tables | None:
    """All tables of the dataset, or None when the episode table cannot be read, which was then reported."""
    planned = plan(info, report)
    if planned is None:
        return None
    found = {file: read_file(planned, info, members, report) for file, members in data_files(planned)}
    return replace(planned, rows={file: rows for file, rows in found.items() if rows is not None})


def _read_tasks(path: Path, max_rows: int) -> dict[int, str]:
    # pandas writes the index as a column of its name, or as __index_level_0__ when it has none.
    table = read_parquet(path, ("task_index",), max(max_rows, 1_000_000), either=("task", "__index_level_0__"))
    if table.num_columns < 2:
        raise ValueError(Problem(file=path, what="no column of task sentences", fix=REWRITE))
    sentences = table.column(1)
    if not (pa.types.is_string(sentences.type) or pa.types.is_large_string(sentences.type)):
        what = f"task sentences are {sentences.type}, expected text"
        raise ValueError(Problem(file=path, what=what, fix=REWRITE))
    numbers = integers(path, table, "task_index").tolist()
    return dict(zip(numbers, sentences.to_pylist(), strict=True))


def _read_episodes(path: Path, info: Info) -> list[EpisodeRow]:
    base = ("episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index")
    places = {
        camera: [f"videos/{camera.key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        for camera in info.cameras
    }
    columns = [*base, *(name for names in places.values() for name in names)]
    table = read_parquet(path, columns, info.total_episodes)
    if table.num_rows == 0:
        raise ValueError(Problem(file=path, what="episode table is empty", fix=REWRITE))
    index, length, start, chunk, number = (integers(path, table, name).tolist() for name in base)
    place = cache(info.path_of)  # many episodes are in one file
    spans: list[dict[str, Span]] = [{} for _ in index]
    for camera, (chunk_key, file_key, stamp_key) in places.items():
        chunks, files = integers(path, table, chunk_key).tolist(), integers(path, table, file_key).tolist()
        stamps = floats(path, table, stamp_key).tolist()
        for row, (c, f, stamp) in enumerate(zip(chunks, files, stamps, strict=True)):
            file = place(info.video_path, video_key=camera.key, chunk_index=c, file_index=f)
            spans[row][camera.name] = Span(file, stamp)
    return [
        EpisodeRow(
            index=index[row],
            length=length[row],
            start=start[row],
            data_file=place(info.data_path, chunk_index=chunk[row], file_index=number[row]),
            spans=spans[row],
        )
        for row in range(len(index))
    ]
