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


def test_what_was_killed_or_fails_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "half").write_text("of a process that was killed")
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


def test_one_that_does_not_wait_says_who_is_busy(tmp_path: Path) -> None:
    with made_once(tmp_path / "a"), ExitStack() as stack:
        with pytest.raises(Busy, match=r"a\.partial: another process is writing it"):
            stack.enter_context(made_once(tmp_path / "a", wait=False))
        assert not (tmp_path / "a").exists()
    with made_once(tmp_path / "a", wait=False) as folder:
        assert folder is None
