"""Training that is killed and files that are damaged, a few times each."""

from __future__ import annotations

from test_themes import failing

from benchmarks.stress import damage, kills


def test_kills() -> None:
    result = kills.run(n=15, seed=1)
    assert failing(result) == {}, result["counts"]
    assert result["counts"]["runs that ended"] > 0


def test_damaged_files() -> None:
    result = damage.run(n=120, seed=0)
    assert failing(result) == {}, result["counts"]
    assert "of several lines" not in {name for name, count in result["counts"].items() if count}
