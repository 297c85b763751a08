"""What is wrong with a file, where, and what to do about it: one line, the same for an error and for a
report.

The strict reader raises `ValueError(problem)`: the message is the line, and the fields stay readable in
`error.args[0]`. `check` collects the same problems in a list. Code that finds problems takes a `Reporter`
and calls it; whether the first problem is fatal is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`key` is a camera or a feature such as `action`; `frame` counts from the start of `episode` if that is
    given, else from the start of `file`. An "error" makes the data unusable, a "warning" wants a human
    eye."""

    what: str
    fix: str
    file: Path
    episode: int | None = None
    frame: int | None = None
    key: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = [
            *([self.key] if self.key is not None else []),
            *([f"episode {self.episode}"] if self.episode is not None else []),
            *([f"frame {self.frame}"] if self.frame is not None else []),
        ]
        where = f"{self.file}: {', '.join(place)}: " if place else f"{self.file}: "
        return f"{where}{self.what}; {self.fix}"

    def to_json(self) -> dict[str, Any]:
        fields = ("severity", "what", "episode", "frame", "key", "fix")
        return {"file": str(self.file), **{name: getattr(self, name) for name in fields}}


Reporter = Callable[[Problem], None]


def refuse(problem: Problem) -> None:
    """The strict reporter: raises ValueError at the first error, lets warnings pass."""
    if problem.severity == "error":
        raise ValueError(problem)


@contextmanager
def reported(report: Reporter, **place: Any) -> Iterator[None]:
    """Hand a problem raised inside the block to `report`, with the fields of `place` filled in."""
    try:
        yield
    except ValueError as error:
        if not error.args or not isinstance(error.args[0], Problem):
            raise
        problem = replace(error.args[0], **place)
    else:
        return
    report(problem)
