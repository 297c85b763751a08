"""What is said while something takes long and nobody looks at a terminal."""

from __future__ import annotations

import pytest

from actwam.console import progress_bars


def test_without_a_terminal_every_tenth_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as report:
        for done in range(101):
            report("train", done, 100)
        report("nothing", 0, 0)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [*(f"train {done}/100" for done in range(0, 101, 10)), "nothing 0/0"]
