"""Parquet files as numpy arrays: what every version of the format stores in the same way.

The files are untrusted: a type, a width or a number of rows that `info.json` does not announce is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from actwam.data.info import ACTION, CONFIDENCE, COPY_AGAIN, STATE, Info
from actwam.data.problem import Problem
from actwam.data.tables import REWRITE, Rows

MANY_ROWS = 100_000
"""Above so many rows the columns of a file are read side by side; below, starting that takes longer than reading."""
_UNFINISHED = "the recording was not closed or the copy is incomplete: copy it again or record again"


def read_parquet(path: Path, columns: Sequence[str], max_rows: int, either: Sequence[str] = ()) -> pa.Table:
    """These columns of a parquet file, and behind them the first that it has of `either`, if it has one.

    Raises ValueError if it is missing, cut off or too long.
    """
    if not path.is_file():
        raise ValueError(Problem(file=path, what="file is missing", fix=COPY_AGAIN))
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names  # made anew whenever it is asked for
            missing = [column for column in columns if column not in names]
            if missing:
                raise ValueError(Problem(file=path, what=f"columns {missing} are missing", fix=REWRITE))
            if file.metadata.num_rows > max_rows:
                what = f"file has {file.metadata.num_rows} rows, info.json allows {max_rows}"
                raise ValueError(Problem(file=path, what=what, fix=REWRITE))
            more = [name for name in either if name in names][:1]
            several = file.metadata.num_rows > MANY_ROWS
            return file.read(columns=[*columns, *more], use_threads=several)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        if "footer" in reason or "magic bytes" in reason or "file size" in reason.lower():
            raise ValueError(Problem(file=path, what="parquet file without footer", fix=_UNFINISHED)) from error
        raise ValueError(Problem(file=path, what=f"damaged parquet file ({reason})", fix=COPY_AGAIN)) from error


def read_rows(path: Path, info: Info) -> Rows:
    """The rows of one data file. Raises ValueError if it does not hold what `info.json` says."""
    vectors = {STATE: len(info.state_names), ACTION: len(info.action_names), CONFIDENCE: int(info.has_confidence)}
    indexes = ("frame_index", "episode_index", "index", "task_index")
    columns = [*(key for key, width in vectors.items() if width), "timestamp", *indexes]
    table = read_parquet(path, columns, info.total_frames)
    return Rows(
        state=_vectors(path, table, STATE, vectors[STATE]),
        action=_vectors(path, table, ACTION, vectors[ACTION]),
        confidence=_confidence(path, table, vectors[CONFIDENCE]),
        timestamp=floats(path, table, "timestamp"),
        **{name: integers(path, table, name) for name in indexes},
    )


def integers(path: Path, table: pa.Table, name: str) -> Int64[np.ndarray, "n"]:
    """A column of whole numbers. Raises ValueError on another type or on missing values."""
    column = _complete(path, table, name)
    if not pa.types.is_integer(column.type):
        raise ValueError(Problem(file=path, key=name, what=f"is {column.type}, expected int64", fix=REWRITE))
    return column.to_numpy().astype(np.int64)


def floats(path: Path, table: pa.Table, name: str) -> Float64[np.ndarray, "n"]:
    """A column of scalars as float64. NaN in `timestamp` is data, for `check` to find; elsewhere ValueError."""
    column = _complete(path, table, name)
    if not pa.types.is_floating(column.type):
        raise ValueError(Problem(file=path, key=name, what=f"is {column.type}, expected a float", fix=REWRITE))
    values = column.to_numpy().astype(np.float64)
    if name != "timestamp" and not np.isfinite(values).all():
        raise ValueError(Problem(file=path, key=name, what="has NaN or Inf", fix=REWRITE))
    return values


def _confidence(path: Path, table: pa.Table, width: int) -> np.ndarray:
    values = _vectors(path, table, CONFIDENCE, width)
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        what, fix = f"is {values[wrong[0], 0]}, expected 0 to 1", "label the dataset again"
        raise ValueError(Problem(file=path, key=CONFIDENCE, frame=int(wrong[0]), what=what, fix=fix))
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
