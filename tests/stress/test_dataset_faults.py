"""The fault runs of datasets, one of each kind, on a dataset that needs no simulator."""

from __future__ import annotations

from pathlib import Path

import reaching

from benchmarks.stress import dataset_faults
from benchmarks.stress.dataset_kinds import KINDS


def test_one_of_each_kind(tmp_path: Path) -> None:
    good = reaching.write(tmp_path / "good", reaching.episodes())
    result = dataset_faults.run(n=1, seed=0, good=good, trains=False)
    assert {what: each for what, each in result["figures"].items() if not each["holds"]} == {}, result["failed"]
    assert len(KINDS) >= 15


def test_training_refuses_and_takes_the_copy(tmp_path: Path) -> None:
    good = reaching.write(tmp_path / "good", reaching.episodes())
    result = dataset_faults.run(n=1, seed=1, kinds=("time jumps",), good=good)
    assert {what: each for what, each in result["figures"].items() if not each["holds"]} == {}, result["failed"]
