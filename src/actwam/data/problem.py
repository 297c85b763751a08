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

Kind = Literal[
    "format",
    "video",
    "finite",
    "range",
    "time",
    "length",
    "statistics",
    "outlier",
    "idle",
    "duplicate",
    "gripper",
    "units",
    "swapped",
    "black",
    "frozen",
]
"""What is wrong, for programs: "format" are files that cannot be read or contradict each other."""


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
    kind: Kind = "format"

    @property
    def of_files(self) -> bool:
        """Whether files are broken, and not what they say of state, action and time."""
        return self.kind in ("format", "video")

    def __str__(self) -> str:
        place = [
            *([self.key] if self.key is not None else []),
            *([f"episode {self.episode}"] if self.episode is not None else []),
            *([f"frame {self.frame}"] if self.frame is not None else []),
        ]
        where = f"{self.file}: {', '.join(place)}: " if place else f"{self.file}: "
        return f"{where}{self.what}; {self.fix}"

    def to_json(self) -> dict[str, Any]:
        fields = ("kind", "severity", "what", "episode", "frame", "key", "fix")
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
