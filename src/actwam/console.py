"""What a person sees in the terminal: progress bars, one table of numbers, and errors of one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield `report(what, done, total)`; every `what` gets a bar of its own on stderr, or, where that is no terminal, a
    line at every tenth.
    """
    if not stderr.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=stderr) as progress:

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        yield report


def _lines() -> Callable[[str, int, int], None]:
    tenths: dict[str, int] = {}

    def report(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenths.get(what) != tenth:
            tenths[what] = tenth
            stderr.print(f"{datetime.now():%H:%M:%S} {what} {done}/{total}", markup=False, soft_wrap=True)

    return report


def print_numbers(numbers: Mapping[str, Any], *, as_json: bool) -> None:
    """Print results on stdout: as JSON, or as a table with nested names joined by dots."""
    if as_json:
        print(json.dumps(numbers, indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in _flat(numbers):
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    stdout.print(table)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same keys on stdout, under these keys."""
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    stdout.print(table)


def _flat(numbers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
