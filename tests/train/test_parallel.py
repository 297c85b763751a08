"""Two processes compute what one does: the same losses, the same weights, and each other's checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from together import Job, train_together

from actwam.checkpoint import checkpoints, load, verify
from actwam.draws import Draws
from actwam.recipes.distill import few_steps
from actwam.train.config import Lora, Recipe, SourceConfig
from actwam.train.loop import Run
from actwam.train.metrics import read_metrics
from actwam.train.parallel import ALONE, World
from actwam.types import Mode

MIXED = tuple(SourceConfig(dataset="squares", mode=mode) for mode in (Mode.VIDEO, Mode.POLICY, Mode.WORLD))
STEPS = 20
WAYS = {
    **dict.fromkeys(("one in parts", "one recomputed", "two", "two in parts", "two copies", "two recomputed"), "one"),
    "changing": "one",
    "two with adapters": "one with adapters",
    "two taught": "one taught",
}
"""Runs, and those of one process that they must agree with."""


def recipe(**changes: Any) -> Recipe:
    """With two samples a process, parts of batches lack groups that others have."""
    given = {"sources": MIXED, "steps": STEPS, "batch_size": 4, "checkpoint_every": 5, **changes}
    return tiny.recipe(tiny.stage(**given), model=tiny.config("two", embodiments=1))


def taught(start: Path) -> Recipe:
    """By what another run has learned."""
    made = few_steps(start=start, steps=STEPS, batch_size=4, tune="full", datasets=("squares",))
    return replace(made, stages=(replace(made.stages[0], log_every=1, precision="fp32"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by name: of one process, of two in several ways, and one by two, then one, then two again."""
    root = tmp_path_factory.mktemp("together")
    data = {"squares": tiny.write_dataset(root / "squares", tiny.robot())}

    def job(name: str, made: Callable[[], Recipe] = recipe, *, run: dict[str, Any] | None = None, **rest: Any) -> Job:
        return Job(made, data, Run(out=root / name, cache=root / "cache", **(run or {})), **rest)

    recomputed = partial(recipe, recompute_activations=True)
    adapted = partial(recipe, lora=Lora(rank=2, alpha=4.0))
    job("one").do()
    job("one with adapters", adapted).do()
    learner = partial(taught, root / "one")
    job("one taught", learner).do()
    job("one in parts", run={"micro_batch": 1}).do()
    job("one recomputed", recomputed).do()
    train_together(
        job("two"),
        job("two in parts", run={"micro_batch": 1}),
        job("two copies", run={"shard": 1}),
        job("two recomputed", recomputed),
        job("two with adapters", adapted),
        job("two taught", learner),
        job("changing", stop=7),
        job("odd", partial(recipe, batch_size=5), fails="a batch of 5 does not divide among 2 processes"),
        job("thirds", run={"shard": 3}, fails="2 processes do not divide into groups of 3"),
        job("8 bits", partial(recipe, optimizer="adamw8bit", ema_decay=None), fails="moments in 8 bits are not cut"),
        job("poisoned", poison=3, row=1, fails="at step 3 (seed 0); the weights are unchanged"),
    )
    job("changing", run={"resume": True}, stop=13).do()
    train_together(job("changing", run={"resume": True}))
    return root


@pytest.mark.parametrize("name", WAYS)
def test_many_compute_what_one_does(folder: Path, name: str) -> None:
    alone, found = (read_metrics(next((folder / each).glob("1-*/metrics.jsonl"))) for each in (WAYS[name], name))
    assert [row["step"] for row in found] == list(range(STEPS))
    for a, b in zip(alone, found, strict=True):
        for what in ("loss", "loss_action", "loss_future", "grad_norm", "learning_rate"):
            assert (what in a) == (what in b)
            assert b.get(what, 0) == pytest.approx(a.get(what, 0), rel=1e-5), (what, a["step"])
    weights, others = (load(folder / each).model.state_dict() for each in (WAYS[name], name))
    for parameter, value in weights.items():
        assert torch.allclose(others[parameter], value, atol=1e-5), parameter


def test_the_batches_are_not_all_alike(folder: Path) -> None:
    """Otherwise the test above would not show that parts may lack what others have."""
    rows = read_metrics(folder / "one" / "1-align" / "metrics.jsonl")
    assert 0 < sum("loss_action" in row for row in rows) < STEPS


def test_every_process_writes_what_it_holds_and_the_manifest_has_it_all(folder: Path) -> None:
    newest = checkpoints(folder / "two" / "1-align")[-1]
    verify(newest)
    assert len(list((newest / "train_state").glob("*.safetensors"))) == 2
    assert (folder / "two" / "1-align" / "latest").resolve() == newest


def test_what_is_not_finite_is_named_whoever_computes_it(folder: Path, tmp_path: Path) -> None:
    data = {"squares": folder / "squares"}
    run = Run(out=tmp_path, cache=folder / "cache")
    Job(recipe, data, run, poison=3, row=1, fails=f"of these samples: {folder / 'squares'}").do()
    assert not list((folder / "poisoned").rglob("step_*"))


def test_rows_of_all_processes_and_parts_are_the_batch() -> None:
    for size, most, parts in ((1, None, 1), (2, None, 1), (2, 3, 2), (3, 2, 2), (4, 1, 3)):
        worlds = [World(rank, size) for rank in range(size)]
        rows = [world.rows(12, most) for world in worlds]
        assert all(len(own) == parts for own in rows)
        assert sorted(row for own in rows for part in own for row in part) == list(range(12))
        assert len({len(part) for own in rows for part in own}) == 1
    with pytest.raises(ValueError, match="a batch of 10 does not divide among 2 processes in 3 parts"):
        World(0, 2).rows(10, 2)


def test_a_sample_has_its_own_numbers_in_any_part() -> None:
    whole, part = Draws((3, 4), range(6)), Draws((3, 4), [4, 1])
    for draw in (lambda d: d.normal((2, 3)), lambda d: d.uniform(), lambda d: d.integers(100)):
        assert torch.equal(draw(whole)[[4, 1]], draw(part))
    assert whole.once() == part.once()
    numbers = Draws((3, 4), range(500)).normal((2,)).flatten().tolist()
    assert len(set(numbers)) == len(numbers)
    assert abs(float(np.mean(numbers))) < 0.1
    assert not torch.equal(Draws((3, 5), range(6)).uniform(), Draws((3, 4), range(6)).uniform())


def test_one_process_shares_nothing() -> None:
    assert ALONE.added([[1, 2], [3, 4]]) == [[1, 2], [3, 4]]
    assert ALONE.everyones([5, 2]) == [2, 5]
    model = tiny.model()
    before = dict(model.named_parameters())
    ALONE.share(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
