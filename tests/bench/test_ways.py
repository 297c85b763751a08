"""What `actwam bench` finds: every way in every precision, and how far each is from the plain one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actwam.bench.shapes import random_policy, shape_named
from actwam.bench.ways import COMPILED, NOTHING, Settings, time_ways
from actwam.cli import COMMANDS
from actwam.policy import Policy
from actwam.provenance import provenance
from actwam.report.bench import markdown, write_figure
from actwam.tokens import ACTION_ONLY


def found() -> dict[str, Any]:
    shape = shape_named("tiny", layers=1)
    policies = {"fp32": random_policy(shape), "bf16": random_policy(shape, dtype=torch.bfloat16)}
    return time_ways(policies, Settings(batches=(1, 3), repeats=2, warmup=1), lambda *_: None)


def test_every_way_is_timed_and_written_down(tmp_path: Path) -> None:
    one = found()
    cases = [(case["way"], case["precision"], case["latency"]["batch"]) for case in one["cases"]]
    ways = ("own", "own, as released", "joint", "video first")
    assert cases == [
        *((way, precision, 1) for precision in ("fp32", "bf16") for way in ways),
        *(("own", precision, 3) for precision in ("fp32", "bf16")),
    ]
    for case in one["cases"]:
        decoded_alike = case["way"].startswith("own")
        limit = {"fp32": 1e-5, "bf16": 2e-2}[case["precision"]]
        assert (case["deviation"] is not None) == decoded_alike
        assert not decoded_alike or case["deviation"] < limit
        assert case["times_floor"] == pytest.approx(case["latency"]["p50"] / case["floor_ms"])
    assert set(one["parts"]) == set(one["rates"]) == {"fp32", "bf16"}
    everything = {"policies": {"tiny": one}, "device": "cpu", "threads": 1, "provenance": provenance()}
    text = markdown(json.loads(json.dumps(everything)))
    assert text.count("| own |") == 4
    assert "context and first step" in text
    write_figure(everything, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_rounded_weights_are_a_version_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    code = COMMANDS["bench"](
        ("tiny",), layers=1, precision=("fp32",), weights="int8", repeats=1, warmup=1, as_json=True
    )
    (one,) = json.loads(capsys.readouterr().out)["policies"].values()
    plain, rounded = (case for case in one["cases"] if case["way"] == "own")
    assert (code, rounded["precision"]) == (0, "fp32, int8 weights")
    assert plain["deviation"] < 1e-5 < rounded["deviation"] < 1e-1


def test_without_a_future_there_is_no_joint_decoding() -> None:
    shape = shape_named("tiny", layers=1)
    policy = random_policy(shape)
    checkpoint = replace(policy.checkpoint, window=replace(shape.window, future_offsets=()))
    alone = replace(policy, table=ACTION_ONLY, checkpoint=checkpoint)
    one = time_ways({"fp32": alone}, Settings(repeats=1, warmup=1), lambda *_: None)
    assert [case["way"] for case in one["cases"]] == ["own", "own, as released"]


def test_compiled_blocks_are_a_way_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "compiled", lambda policy: replace(policy, exact=NOTHING))  # which takes no minutes
    policy = random_policy(shape_named("tiny", layers=1))
    one = time_ways({"fp32": policy}, Settings(repeats=1, warmup=1, compiled=True), lambda *_: None)
    own, compiled, *_ = one["cases"]
    assert compiled["way"] == COMPILED
    assert compiled["deviation"] == 0  # of what was compiled, which decodes as the reference does
    assert own["deviation"] > 0
    assert compiled["floor_ms"] == own["floor_ms"]


@pytest.mark.parametrize("batches", [(), (0,), (1, -2)])
def test_a_call_takes_at_least_one_observation(batches: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one observation"):
        Settings(batches=batches)
