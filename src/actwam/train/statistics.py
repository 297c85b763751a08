"""Statistics of what a robot's datasets hold, exact however long they are, shared among the processes that prepare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float32

from actwam.data.dataset import Footage, pieces_of
from actwam.data.digest import write_whole
from actwam.data.embodiment import Embodiment
from actwam.data.info import read_json
from actwam.data.loader import Window, action_chunks
from actwam.data.normalize import NormStats
from actwam.data.partial import share
from actwam.data.quantiles import CloserLook, Look, Sought, look, look_closer, sought, stats_of
from actwam.data.transforms import relative

FORMAT, TABLE = 1, "table.npz"
PIECE_ROWS = 500_000
"""Rows that a process looks at before it writes down what it saw."""

Piece = Sequence[tuple[Footage, range]]
"""Some episodes of some datasets."""
Table = TypeVar("Table", Look, CloserLook)


def robot_stats(
    datasets: Sequence[Footage], robot: Embodiment, window: Window, cache: Path
) -> tuple[NormStats, NormStats]:
    """Statistics of the state, and of the action as the model sees it, after `relative`, pooled over the horizon: of
    every row that a whole chunk of actions begins at. What was counted is kept in `cache`.

    Raises ValueError on NaN or Inf, and when no episode is as long as a chunk.
    """
    pieces = _pieces(datasets)

    def states(piece: Piece) -> Iterator[Float32[np.ndarray, "n s"]]:
        return (state for state, _ in _chunks(piece, window))

    def actions(piece: Piece) -> Iterator[Float32[np.ndarray, "n a"]]:
        for state, chunks in _chunks(piece, window):
            yield relative(chunks, state, robot).reshape(-1, len(robot.action_names))

    return (
        _stats(pieces, states, robot.state_names, f"state {window.action_horizon}", cache),
        _stats(pieces, actions, robot.action_names, f"action {window.action_horizon} {robot.delta_mask}", cache),
    )


def _chunks(piece: Piece, window: Window) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for dataset, episodes in piece:
        yield from action_chunks(dataset, window, episodes)


def _pieces(datasets: Sequence[Footage]) -> list[Piece]:
    """All episodes, in pieces of about `PIECE_ROWS` rows: small datasets together, large ones cut."""
    pieces, rows = list[list[tuple[Footage, range]]]([[]]), 0
    for dataset in datasets:
        for part in pieces_of(dataset.episodes, PIECE_ROWS):
            if rows >= PIECE_ROWS:
                pieces.append([])
                rows = 0
            pieces[-1].append((dataset, part))
            rows += sum(episode.length for episode in dataset.episodes[part.start : part.stop])
    return [*pieces]


def _stats(
    pieces: Sequence[Piece],
    blocks: Callable[[Piece], Iterator[np.ndarray]],
    names: tuple[str, ...],
    what: str,
    cache: Path,
) -> NormStats:
    keys = [[(dataset.digest, part.start, part.stop) for dataset, part in piece] for piece in pieces]
    result = cache / "statistics" / _key("all", what, "", keys)
    sheet = result / "stats.json"
    if sheet.exists():
        try:
            return NormStats.from_json(read_json(sheet))
        except ValueError as error:
            raise ValueError(f"{sheet}: damaged; delete {result} and run again") from error

    def made(kind: type[Table], more: str, count: Callable[[Piece], Table]) -> Table:
        """The tables of all pieces, counted here or by others, as one."""
        folders = [cache / "statistics" / _key(kind.__name__, what, more, key) for key in keys]
        share([(folder, partial(_write, count, piece)) for folder, piece in zip(folders, pieces, strict=True)])
        return reduce(add, (_read(kind, folder) for folder in folders))

    first = made(Look, "", lambda piece: look(blocks(piece), names))
    aim = sought(first, names)
    stats = stats_of(names, first, made(CloserLook, _digest(aim), lambda piece: look_closer(blocks(piece), aim)))
    share([(result, lambda folder: write_whole(folder / sheet.name, json.dumps(stats.to_json())))])
    return stats


def _write(count: Callable[[Piece], Look | CloserLook], piece: Piece, folder: Path) -> None:
    np.savez_compressed(folder / TABLE, **vars(count(piece)))


def _read(kind: type[Table], folder: Path) -> Table:
    try:
        return kind(**np.load(folder / TABLE, allow_pickle=False))
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise ValueError(f"{folder / TABLE}: damaged ({error}); delete {folder} and run again") from error


def _key(*what: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *what]).encode()).hexdigest()


def _digest(aim: Sought) -> str:
    return hashlib.sha256(b"".join(value.tobytes() for value in vars(aim).values())).hexdigest()
