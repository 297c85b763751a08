"""Demonstrations: only successes, as applied, in an order that does not depend on the workers."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from actwam.data.episode import Episode
from actwam.sim.collect import PATIENCE, CollectionReport, Queue, collect, expert_actions, record
from actwam.sim.env import EVALUATION_SEEDS, TRAINING_SEEDS
from actwam.sim.metaworld import MetaWorldEnv
from actwam.sim.workers import WorkerError

SMALL: dict[str, Any] = {
    "tasks": ["coffee-button-v3", "button-press-topdown-v3"],
    "episodes_per_task": 2,
    "image_size": (32, 32),
    "action_noise": 0.1,
    "max_steps": 70,  # too few for some seeds of the second task
}


def episode(seed: int) -> Episode:
    return Episode({"head": np.zeros((1, 2, 2, 3), np.uint8)}, np.zeros((1, 4)), np.zeros((1, 4)), "wait", seed)


def test_the_dataset_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    reports, digests = [], []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        reports.append(collect(out, **SMALL, workers=workers, progress=lambda done, total: calls.append((done, total))))
        files = sorted(path for path in out.rglob("*") if path.is_file())
        digests.append({str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2
    assert reports[0] == reports[1]
    assert digests[0] == digests[1]
    assert reports[0].episodes == 4
    assert reports[0].expert_failures["button-press-topdown-v3"] > 0
    _check_content(tmp_path / "1", reports[0])


def _check_content(out: Path, report: CollectionReport) -> None:
    """The provenance names the seeds, and the recorded actions of a seed bring about a success."""
    about = json.loads((out / "meta" / "collection.json").read_text())
    assert [part["task"] for part in about["tasks"]] == SMALL["tasks"]
    assert about["action_noise"] == 0.1
    assert about["versions"].keys() == {"metaworld", "mujoco"}
    seeds, failed = about["tasks"][1]["seeds"], about["tasks"][1]["seeds_of_failed_experts"]
    assert sorted(seeds + failed) == list(range(len(seeds + failed)))
    assert len(failed) == report.expert_failures["button-press-topdown-v3"]
    table = pq.read_table(next((out / "data").rglob("*.parquet")))
    assert len(table) == report.frames
    rows = np.array(table["episode_index"]) == 1
    actions = np.stack(table["action"].to_numpy(zero_copy_only=False)[rows])
    with MetaWorldEnv("coffee-button-v3") as env:
        env.reset(about["tasks"][0]["seeds"][1])
        assert [env.step(action).success for action in actions].count(True) == 9  # and 8 steps after it


def test_a_recording_holds_what_was_seen_before_each_action() -> None:
    with MetaWorldEnv("coffee-button-v3", image_size=(16, 24)) as env:
        clean, noisy = (expert_actions(env, 4, action_noise=noise) for noise in (0.0, 0.3))
        assert clean is not None
        assert noisy is not None
        assert np.abs(noisy).max() <= 1
        assert not np.array_equal(clean[0], noisy[0])
        recorded = record(env, 4, clean)
        env.reset(4)
        first = env.observe()
        env.step(clean[0])
        second = env.observe()
    assert recorded.images["left"].shape == (len(clean), 16, 24, 3)
    np.testing.assert_array_equal(recorded.images["left"][0], first.images["left"])
    np.testing.assert_array_equal(recorded.state[:2], [first.state, second.state])
    np.testing.assert_array_equal(recorded.action, clean)
    assert recorded.action.dtype == np.float32
    assert recorded.seed == 4


def test_an_expert_that_fails_gives_nothing() -> None:
    with MetaWorldEnv("coffee-button-v3", max_steps=10) as env:
        assert expert_actions(env, 4) is None


@pytest.mark.parametrize("shuffle", range(5))
def test_the_queue_takes_the_first_successes_in_whatever_order_they_come(shuffle: int) -> None:
    failing = {("a", 0), ("a", 3), ("b", 6)}
    queue, rng, running, written = Queue(["b", "a"], 3, 0), random.Random(shuffle), [], []
    while not queue.finished():
        while len(running) < 3 and (job := queue.next_job()):
            running.append(job)
        task, seed = running.pop(rng.randrange(len(running)))
        queue.report(task, seed, None if (task, seed) in failing else episode(seed))
        written += [(task, ready.seed) for task, ready in queue.in_order()]
    assert written == [("b", 0), ("b", 1), ("b", 2), ("a", 1), ("a", 2), ("a", 4)]
    assert queue.failed == {"b": [], "a": [0, 3]}


def test_a_hopeless_expert_and_used_up_seeds_are_errors() -> None:
    queue = Queue(["a"], 1, 0)
    for seed in range(PATIENCE):
        queue.report("a", seed, None)
    with pytest.raises(ValueError, match="a: the expert failed 11 times for 1 episodes"):
        queue.report("a", PATIENCE, None)
    with pytest.raises(ValueError, match="not all training seeds"):
        Queue(["a"], 1, TRAINING_SEEDS[-1]).report("a", TRAINING_SEEDS[-1], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_seed": EVALUATION_SEEDS.start}, "kept for evaluation"),
        ({"first_seed": TRAINING_SEEDS[-1]}, "kept for evaluation"),
        ({"first_seed": -1}, "not all training seeds"),
        ({"tasks": ["coffee-buton-v3"]}, "did you mean coffee-button-v3"),
        ({"tasks": []}, "at least one"),
        ({"tasks": ["soccer-v3"] * 2}, "once"),
        ({"episodes_per_task": 0}, "at least 1"),
        ({"action_noise": float("nan")}, "standard deviation"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        collect(tmp_path / "out", **{**SMALL, **change})
    assert not list(tmp_path.iterdir())


def test_seeds_of_training_and_evaluation_are_disjoint() -> None:
    assert not set(TRAINING_SEEDS) & set(EVALUATION_SEEDS)


def test_a_worker_that_fails_leaves_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="unknown scene 'night'"):
        collect(tmp_path / "out", **SMALL, scene="night", workers=1)
    assert not list(tmp_path.iterdir())
