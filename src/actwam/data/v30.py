"""Reads the tables of LeRobotDataset v3.0: many episodes per parquet file, tasks in a pandas index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actwam.data.info import ACTION, STATE, Info
from actwam.data.problem import Problem, Reporter, reported
from actwam.data.tables import REWRITE, EpisodeRow, Rows, Span, Tables

_COPY_AGAIN = "copy the file again from its source"
_UNFINISHED = "the recording was not closed or the copy is incomplete: copy it again or record again"


def read_tables(info: Info, report: Reporter) -> Tables | None:
    """All tables of the dataset, or None when the episode table cannot be read, which was then reported."""
    tasks = None
    with reported(report):
        tasks = _read_tasks(info.folder / "meta" / "tasks.parquet", info.total_episodes)
    files = sorted((info.folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    episodes: list[EpisodeRow] = []
    whole = bool(files)
    if not files:
        what = "no episode table"
        report(Problem(file=info.folder / "meta" / "episodes", what=what, fix=_COPY_AGAIN))
    for file in files:
        before = len(episodes)
        with reported(report):
            episodes.extend(_read_episodes(file, info))
        whole = whole and len(episodes) > before
    if not whole:
        return None
    rows: dict[Path, Rows] = {}
    for file in dict.fromkeys(episode.data_file for episode in episodes):
        with reported(report):
            rows[file] = _read_rows(file, info)
    return Tables(episode_file=files[0], tasks=tasks, episodes=tuple(episodes), rows=rows)


def read_parquet(path: Path, columns: Sequence[str], max_rows: int) -> pa.Table:
    """These columns of a parquet file. Raises ValueError if it is missing, cut off or too long."""
    if not path.is_file():
        raise ValueError(Problem(file=path, what="file is missing", fix=_COPY_AGAIN))
    try:
        with pq.ParquetFile(path) as file:
            missing = [column for column in columns if column not in file.schema_arrow.names]
            if missing:
                raise ValueError(Problem(file=path, what=f"columns {missing} are missing", fix=REWRITE))
            if file.metadata.num_rows > max_rows:
                what = f"file has {file.metadata.num_rows} rows, info.json allows {max_rows}"
                raise ValueError(Problem(file=path, what=what, fix=REWRITE))
            return file.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        if "footer" in reason or "magic bytes" in reason or "file size" in reason.lower():
            raise ValueError(Problem(file=path, what="parquet file without footer", fix=_UNFINISHED)) from error
        raise ValueError(Problem(file=path, what=f"damaged parquet file ({reason})", fix=_COPY_AGAIN)) from error


def _read_tasks(path: Path, max_rows: int) -> dict[int, str]:
    table = read_parquet(path, ("task_index",), max(max_rows, 1_000_000))
    names = pq.read_schema(path).names
    # pandas writes the index as a column of its name, or as __index_level_0__ when it has none.
    column = next((name for name in ("task", "__index_level_0__") if name in names), None)
    if column is None:
        raise ValueError(Problem(file=path, what="no column of task sentences", fix=REWRITE))
    sentences = read_parquet(path, (column,), max(max_rows, 1_000_000)).column(column)
    if not (pa.types.is_string(sentences.type) or pa.types.is_large_string(sentences.type)):
        what = f"task sentences are {sentences.type}, expected text"
        raise ValueError(Problem(file=path, what=what, fix=REWRITE))
    numbers = _integers(path, table, "task_index").tolist()
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
    index, length, start, chunk, number = (_integers(path, table, name).tolist() for name in base)
    spans: list[dict[str, Span]] = [{} for _ in index]
    for camera, (chunk_key, file_key, stamp_key) in places.items():
        chunks, files = _integers(path, table, chunk_key).tolist(), _integers(path, table, file_key).tolist()
        stamps = _floats(path, table, stamp_key).tolist()
        for row, (c, f, stamp) in enumerate(zip(chunks, files, stamps, strict=True)):
            file = info.path_of(info.video_path, video_key=camera.key, chunk_index=c, file_index=f)
            spans[row][camera.name] = Span(file, stamp)
    return [
        EpisodeRow(
            index=index[row],
            length=length[row],
            start=start[row],
            data_file=info.path_of(info.data_path, chunk_index=chunk[row], file_index=number[row]),
            spans=spans[row],
        )
        for row in range(len(index))
    ]


def _read_rows(path: Path, info: Info) -> Rows:
    vectors = {STATE: len(info.state_names), ACTION: len(info.action_names)}
    indexes = ("frame_index", "episode_index", "index", "task_index")
    columns = [*(key for key, width in vectors.items() if width), "timestamp", *indexes]
    table = read_parquet(path, columns, info.total_frames)
    return Rows(
        state=_vectors(path, table, STATE, vectors[STATE]),
        action=_vectors(path, table, ACTION, vectors[ACTION]),
        timestamp=_floats(path, table, "timestamp"),
        **{name: _integers(path, table, name) for name in indexes},
    )


def _integers(path: Path, table: pa.Table, name: str) -> np.ndarray:
    column = _complete(path, table, name)
    if not pa.types.is_integer(column.type):
        raise ValueError(Problem(file=path, key=name, what=f"is {column.type}, expected int64", fix=REWRITE))
    return column.to_numpy().astype(np.int64)


def _floats(path: Path, table: pa.Table, name: str) -> np.ndarray:
    """Scalars as float64, unchanged: NaN is data here, for `check` to find."""
    column = _complete(path, table, name)
    if not pa.types.is_floating(column.type):
        raise ValueError(Problem(file=path, key=name, what=f"is {column.type}, expected a float", fix=REWRITE))
    values = column.to_numpy().astype(np.float64)
    if name != "timestamp" and not np.isfinite(values).all():
        raise ValueError(Problem(file=path, key=name, what="has NaN or Inf", fix=REWRITE))
    return values


def _vectors(path: Path, table: pa.Table, name: str, width: int) -> np.ndarray:
    """A column of lists as (n, width) float32. Width 1 is a column of scalars, width 0 is absent."""
    if width == 0:
        return np.empty((table.num_rows, 0), np.float32)
    column = _complete(path, table, name)
    kind = column.type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    values = column.combine_chunks()
    if lists:
        widths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        uneven = np.flatnonzero(widths != width)
        if len(uneven):
            what = f"row has {widths[uneven[0]]} numbers, info.json says {width}"
            raise ValueError(Problem(file=path, key=name, frame=int(uneven[0]), what=what, fix=REWRITE))
        values = values.flatten()
    if values.null_count or not pa.types.is_floating(values.type) or len(values) != table.num_rows * width:
        what = f"is {kind}, expected {width} float32 numbers in every row"
        raise ValueError(Problem(file=path, key=name, what=what, fix=REWRITE))
    return values.to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32)


def _complete(path: Path, table: pa.Table, name: str) -> pa.ChunkedArray:
    column = table.column(name)
    if column.null_count:
        raise ValueError(Problem(file=path, key=name, what=f"{column.null_count} values are missing", fix=REWRITE))
    return column
