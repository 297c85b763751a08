"""Folders that appear whole, and work that is shared by making them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from actwam.data.partial import Busy, made_once, share


def write(made: Counter[str], name: str, folder: Path) -> None:
    assert list(folder.iterdir()) == []
    made[name] += 1
    (folder / "half").write_text(name)
    threading.Event().wait(0.002)
    (folder / "whole").write_text(name)


def test_workers_make_every_folder_once_and_return_when_all_are_there(tmp_path: Path) -> None:
    made: Counter[str] = Counter()
    names = [f"{number}" for number in range(40)]
    jobs = [(tmp_path / name, partial(write, made, name)) for name in names]

    def worker(_: int) -> bool:
        share(jobs)
        return all((folder / "whole").is_file() for folder, _ in jobs)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(worker, range(4))) == [True] * 4
    assert made == Counter(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_what_was_killed_or_fails_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a.x.partial").mkdir()
    (tmp_path / "a.x.partial" / "half").write_text("of a process that was killed")
    (tmp_path / "a.lock").write_text("a.x.partial")
    writing, fails, made = threading.Event(), threading.Event(), Counter[str]()

    def failing(folder: Path) -> None:
        (folder / "half").write_text("of a process that fails")
        writing.set()
        fails.wait()
        raise ValueError("no space")

    def first() -> None:
        with pytest.raises(ValueError, match="no space"):
            share([(tmp_path / "b", failing)])

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        writing.wait()
        names = ("a", "b", "c")
        other = pool.submit(share, [(tmp_path / name, partial(write, made, name)) for name in names])
        while not (tmp_path / "c").exists():  # b is passed over at first
            assert not other.done()
        assert made == {"a": 1, "c": 1}
        fails.set()
        one.result()
        other.result()
    assert made == {"a": 1, "b": 1, "c": 1}
    assert (tmp_path / "b" / "half").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_appears_is_whole_also_where_locks_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two machines that do not see the locks of each other."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with ExitStack() as stack:
        one = stack.enter_context(made_once(tmp_path / "a"))
        with made_once(tmp_path / "a") as other:
            assert None not in (one, other)
            assert not one.exists()  # taken for what a killed process left
            (other / "whole").write_text("of one")
    assert (tmp_path / "a" / "whole").read_text() == "of one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_of_two_folders_the_first_one_stays(tmp_path: Path) -> None:
    with made_once(tmp_path / "a") as folder:
        (folder / "whole").write_text("late")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "whole").write_text("first")
    assert (tmp_path / "a" / "whole").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_job_that_meets_a_busy_folder_fails(tmp_path: Path) -> None:
    def busy(_: Path) -> None:
        raise Busy("something else is written now")

    with pytest.raises(Busy, match="something else"):
        share([(tmp_path / "a", busy)])


def test_one_that_does_not_wait_says_who_is_busy(tmp_path: Path) -> None:
    with made_once(tmp_path / "a"), ExitStack() as stack:
        with pytest.raises(Busy, match=r"a\.lock: another process is writing it"):
            stack.enter_context(made_once(tmp_path / "a", wait=False))
        assert not (tmp_path / "a").exists()
    with made_once(tmp_path / "a", wait=False) as folder:
        assert folder is None
