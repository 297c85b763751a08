"""Every fault run, small. What is a time is not asserted here: `make stress` measures it."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest

from benchmarks.stress import (
    access,
    clients,
    faults,
    fuzz,
    gadgets,
    mixture,
    overhead,
    rude,
    soak,
    stopping,
    throughput,
)
from benchmarks.stress.table import table


def failing(result: dict[str, Any], *times: str) -> dict[str, Any]:
    """The figures that do not hold, but for those whose names contain one of `times`."""
    return {
        what: figure
        for what, figure in result["figures"].items()
        if not figure["holds"] and not any(word in what for word in times)
    }


def test_malformed_messages() -> None:
    result = fuzz.run(n=5000, seed=1)
    assert failing(result) == {}, result["faults"]
    assert len(result["outcomes"]) > 4, "messages that are answered, refused, and not understood"


def test_oversize_slow_and_half_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rude, "TURN", 1.2)
    monkeypatch.setattr(rude, "OVERSIZE", (1,))
    monkeypatch.setattr(rude, "FLOOD", 0.5)
    result = rude.run(seconds=2.4, seed=0)
    assert failing(result, "times that alone") == {}
    assert "too many" in result["bombs"]["answer"] or "cannot be read" in result["bombs"]["answer"]


def test_clients_that_are_killed() -> None:
    assert failing(clients.run(n=8, seed=0, shape="fast")) == {}


def test_stop_under_traffic() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert failing(stopping.run(n=4, seed=0), "longest stop") == {}
        gc.collect()
    assert [str(each.message) for each in caught if "never awaited" in str(each.message)] == []


def test_tokens() -> None:
    assert failing(access.run(n=60, seed=0)) == {}


def test_gadgets() -> None:
    assert failing(gadgets.run(n=1, seed=0, every=20)) == {}


def test_overhead_and_throughput() -> None:
    result = overhead.run(n=3, seed=0, shape="fast")
    assert set(result["parts_p50_ms"]) > {"pack (client)", "unpack (server)"}
    (row,) = throughput.run(seconds=0.3, seed=0, cases=(("fast", "float32"),), clients=2)["cases"].values()
    assert set(row["batches"]["one by one"]) == {1}
    assert set(row["batches"]["together"]) <= {1, 2}


def test_soak() -> None:
    result = soak.run(seconds=4, seed=0, shape="fast", clients=2)
    assert failing(result, "p99") == {}
    assert result["requests"] > 2


def test_a_server_that_is_killed_stopped_and_cut_off_while_a_robot_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "SETTLED", 0.2)
    result = faults.run(n=3, seed=0)
    assert failing(result, "later than 200 ms", "no command came late") == {}
    assert [each["kind"] for each in result["outcomes"]] == list(faults.KINDS)


def test_a_mixture_of_many_datasets() -> None:
    result = mixture.run(n=20, seed=0)
    assert failing(result, "seconds", "memory") == {}
    assert result["many rows"]["first"]["sum"] == result["many rows"]["again"]["sum"]


def test_the_table() -> None:
    result = access.run(n=15, seed=0)
    made = {"commit": "0123456789", "machine": {"cores": 2}}
    page = table(
        {"access": {**result, "given": {"n": 15}, "took_s": 1, "load_before_and_after": [0, 1], "provenance": made}}
    )
    assert "| access | accepted | 0 | at most 0 | yes |" in page
    assert "| access | n 15 | 1 | 0 to 1 on 2 | 0123456 |" in page
