"""Every family of models, with one and with two experts: trained, saved, loaded, acting and imagining."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from actwam.bench.latency import group_lengths, measure_latency
from actwam.checkpoint import save
from actwam.data.dataset import LeRobotDataset
from actwam.data.loader import Window
from actwam.memory import Tokens, acting_need
from actwam.policy import Policy
from actwam.policy_memory import policy_need
from actwam.recipes import families as recipes
from actwam.tokens import (
    ACTION_CENTERED,
    ACTION_ONLY,
    BIDIRECTIONAL,
    JOINT,
    UNCOUPLED,
    VIDEO_FIRST,
    Table,
    plan,
    tokens_denoised,
)
from actwam.train.config import Recipe, SourceConfig
from actwam.train.loop import Run, train
from actwam.train.memory import recipe_need
from actwam.train.metrics import read_metrics
from actwam.types import Group, Memory, Mode, Observation
from actwam.world.imagine import imagine_dataset

HIST, OBS, STATE, ACT, FUT = Group.HISTORY, Group.OBSERVATION, Group.STATE, Group.ACTION, Group.FUTURE
STEPS, SPACING, CPU = 24, 2, torch.device("cpu")


@dataclass(frozen=True)
class Family:
    """What is spelled out here and derived from the table there.

    `calls` are the groups that the model denoises in acting, step by step in passes of `tiny.SAMPLING.num_steps`;
    `tokens` those of all passes together. `condition` is what an imagined future depends on; "" where there is none.
    """

    table: Table
    tokens: int
    calls: list[set[Group]]
    condition: str
    modes: tuple[Mode, ...] = (Mode.POLICY,)
    moments: int = 0

    @property
    def window(self) -> Window:
        offsets = tiny.OFFSETS if self.condition else ()
        past = tuple(-SPACING * n for n in range(self.moments, 0, -1))
        return Window(action_horizon=tiny.HORIZON, future_offsets=offsets, history_offsets=past)


# a picture is 8 tokens, a state 1, a chunk of actions 4, a future 2 pictures
FAMILIES = {
    "ACTION_CENTERED": Family(ACTION_CENTERED, 4, [{ACT}], "actions"),
    "ACTION_ONLY": Family(ACTION_ONLY, 4, [{ACT}], ""),
    "JOINT": Family(JOINT, 4 + 16, [{ACT, FUT}], "actions"),
    "JOINT_HISTORY": Family(JOINT, 4 + 16, [{ACT, FUT}], "actions", moments=2),
    "VIDEO_FIRST": Family(VIDEO_FIRST, 16 + 4, [{FUT}, {ACT}], "nothing", modes=(Mode.WORLD, Mode.INVERSE)),
    "UNCOUPLED": Family(UNCOUPLED, 4, [{ACT}], "nothing"),
    "BIDIRECTIONAL": Family(BIDIRECTIONAL, 8 + 1 + 4 + 16, [{OBS, STATE, ACT, FUT}], "actions"),
}


def test_what_is_spelled_out_here_is_what_recipes_take() -> None:
    assert recipes.FAMILIES.keys() == FAMILIES.keys()
    for name, family in FAMILIES.items():
        taken = recipes.FAMILIES[name]
        assert (taken.table, taken.modes) == (family.table, family.modes), name
        assert taken.has_future == bool(family.condition), name
        assert bool(taken.history) == bool(family.moments), name
        # one noise level in training for what is denoised together in acting
        assert taken.shared_sigma == ({ACT, FUT} <= family.calls[0]), name


@dataclass(frozen=True)
class Trained:
    family: Family
    recipe: Recipe
    folder: Path
    policy: Policy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("families") / "squares", tiny.robot())


@pytest.fixture(
    scope="module", params=[(name, experts) for name in FAMILIES for experts in ("one", "two")], ids="-".join
)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name, experts = request.param
    family = FAMILIES[name]
    stage = tiny.stage(
        sources=tuple(SourceConfig(dataset="squares", mode=mode) for mode in family.modes),
        steps=STEPS, batch_size=48, checkpoint_every=STEPS, learning_rate=1e-2, final_learning_rate=3e-3,
    )  # fmt: skip
    model = tiny.config(experts, embodiments=1, precondition=True)
    recipe = tiny.recipe(stage, table=family.table, window=family.window, model=model)
    run = Run(out=tmp_path_factory.mktemp(f"{name}-{experts}"), cache=data.parent / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actwam.train.loop.require_memory", lambda *_: None)  # counting takes longer than training
        folder = train(recipe, {"squares": data}, run)
    return Trained(family, recipe, folder, Policy.load(folder))


def episode(length: int = 4) -> list[Observation]:
    """What is seen from call to call."""
    whole = tiny.episode(1, tiny.robot(), SPACING * length)
    return [
        Observation({name: frames[t] for name, frames in whole.images.items()}, whole.state[t], whole.instruction)
        for t in range(0, SPACING * length, SPACING)
    ]


def test_the_loss_falls(trained: Trained, data: Path, tmp_path: Path) -> None:
    """Against a model that sees the same samples and the same noise, and learns nothing."""
    stage = replace(trained.recipe.stages[0], learning_rate=1e-12, final_learning_rate=1e-12)
    run = Run(out=tmp_path, cache=data.parent / "cache")
    idle = train(replace(trained.recipe, stages=(stage,)), {"squares": data}, run)
    losses, others = (
        [line["loss"] for line in read_metrics(each / "metrics.jsonl")] for each in (trained.folder, idle)
    )
    assert len(losses) == len(others) == STEPS
    assert losses[0] == others[0]
    assert np.mean(losses[-6:]) < 0.97 * np.mean(others[-6:])
    parts = {name for line in read_metrics(trained.folder / "metrics.jsonl") for name in line if "loss_" in name}
    assert parts == {"loss_action", *(["loss_future"] if trained.family.condition else [])}


def test_it_comes_back_as_what_it_was(trained: Trained) -> None:
    checkpoint = trained.policy.checkpoint
    assert checkpoint.table is trained.family.table
    assert checkpoint.window == trained.family.window
    assert trained.policy.history_spacing == (SPACING if trained.family.moments else 0)


def test_it_acts_and_what_it_gives_depends_on_what_it_is_given_alone(trained: Trained) -> None:
    policy, seen = trained.policy, episode()
    memories: list[Memory | None] = [None]
    for call, now in enumerate(seen):
        (chunk,), after = policy.act_batch([now], [call], memories)
        (again,), _ = policy.act_batch([now], [call], memories)
        assert chunk.actions.shape == (tiny.HORIZON, 3)
        assert np.isfinite(chunk.actions).all()
        assert np.array_equal(chunk.actions, again.actions)
        (other,), _ = policy.act_batch([now], [call + 1], memories)
        assert not np.array_equal(chunk.actions, other.actions)
        memories = after
    assert (memories[0] is not None) == (trained.family.moments > 0)


def test_a_batch_is_one_by_one(trained: Trained) -> None:
    policy, seen = trained.policy, episode()
    memories = [*policy.remember(seen[:2], [None, None]), None]
    together, _ = policy.act_batch(seen[1:], [7, 8, 9], memories)
    for now, seed, memory, chunk in zip(seen[1:], [7, 8, 9], memories, together, strict=True):
        (alone,), _ = policy.act_batch([now], [seed], [memory])
        assert np.abs(alone.actions - chunk.actions).max() < 1e-4


def test_acting_takes_the_passes_and_the_tokens_of_its_table(trained: Trained) -> None:
    policy, family, (before, now, *_) = trained.policy, trained.family, episode()
    memories = policy.remember([before])
    with tiny.watched(policy.checkpoint.model) as passes:
        policy.act_batch([now], [0], memories)
    steps, calls = tiny.SAMPLING.num_steps, [each.along for each in passes if each.along]
    assert [set(call) for call in calls] == [groups for groups in family.calls for _ in range(steps)]
    assert sum(sum(call.values()) for call in calls) == steps * family.tokens
    lengths = group_lengths(policy, now)
    expected = {HIST: 8 * family.moments, OBS: 8, STATE: 1, ACT: 4, FUT: 16 if family.condition else 0}
    assert lengths == {group: length for group, length in expected.items() if length}
    assert tokens_denoised(plan(family.table, [ACT], lengths.keys() & {HIST, OBS, STATE}), lengths) == family.tokens
    timed = measure_latency(policy, now, repeats=1, warmup=1)
    assert next(iter(timed.values())).tokens_denoised == family.tokens
    assert ("joint" in timed) == bool(family.condition)


def test_it_imagines_where_it_has_a_future(trained: Trained) -> None:
    policy, (before, now, *_) = trained.policy, episode()
    memories = policy.remember([before])
    if not trained.family.condition:
        with pytest.raises(ValueError, match="has no group future"):
            policy.imagine(now)
        return
    (own,) = policy.imagine_batch([now], None, [3], memories)
    assert own.video.shape == (len(tiny.OFFSETS), tiny.LAYOUT.height, tiny.LAYOUT.width, 3)
    assert own.video.std() > 5
    (acted,), _ = policy.act_batch([now], [3], memories)
    assert np.abs(acted.actions - own.actions).max() < 1e-4
    given = own.actions[None] + 2
    if trained.family.condition == "actions":
        (led,) = policy.imagine_batch([now], given, [3], memories)
        assert np.array_equal(led.actions, given[0])
        assert (led.video != own.video).any()
    else:
        with pytest.raises(ValueError, match="the future does not see actions"):
            policy.imagine_batch([now], given, [3], memories)


def test_its_imagination_is_measured(trained: Trained, data: Path, tmp_path: Path) -> None:
    recorded, out = LeRobotDataset.open(data), tmp_path / "imagined"
    if not trained.family.condition:
        with pytest.raises(ValueError, match="predicts no future frames"):
            imagine_dataset(trained.policy, recorded, windows=2, seed=0, out=out)
        return
    result = imagine_dataset(trained.policy, recorded, windows=2, seed=0, out=out)
    assert result.condition == trained.family.condition == result.to_json()["condition"]
    assert 0 < result.psnr < 60
    assert 0 < result.ssim <= 1


@pytest.mark.parametrize("name", ["ACTION_ONLY", "JOINT_HISTORY"])
def test_its_memory_is_counted(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    recipe = tiny.recipe(table=family.table, window=family.window)
    save(tiny.checkpoint(table=family.table, window=family.window), tmp_path / "saved")
    training, acting = recipe_need(recipe, recipe.stages[0], CPU, "fp32"), policy_need(tmp_path / "saved")
    assert training.activations > acting.activations > 0


def test_more_is_denoised_for_more_memory() -> None:
    """Of one model: least where no future is denoised, and a past comes on top."""

    def activations(name: str, moments: int = 0) -> int:
        tokens = Tokens(grid=(8, 8), future_frames=2 * bool(FAMILIES[name].condition), actions=4, history=moments)
        model = tiny.config(layers=1)
        return acting_need(
            model, FAMILIES[name].table, tokens, dtype=torch.float32, device=CPU, sampling=tiny.SAMPLING
        ).activations

    for name in ("JOINT", "BIDIRECTIONAL"):
        acting = [activations("UNCOUPLED"), *(activations(name, moments) for moments in (0, 1, 2))]
        assert acting == sorted(set(acting))
    # about: a mask is kept between calls, and counted where it is made first
    assert activations("ACTION_CENTERED") == pytest.approx(acting[0], rel=0.1)


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (ACTION_ONLY, {}, r"recipe tiny: table ACTION_ONLY has no future: set future_offsets to \(\)"),
        (JOINT, {"window": FAMILIES["ACTION_ONLY"].window}, "actions of table JOINT see a future: give future_offsets"),
        (VIDEO_FIRST, {"window": FAMILIES["ACTION_ONLY"].window}, "or take ACTION_ONLY"),
        (
            ACTION_CENTERED,
            {"window": FAMILIES["ACTION_ONLY"].window, "future_as_change": True},
            "future_as_change needs future_offsets",
        ),
    ],
)
def test_a_window_that_does_not_fit_the_table_is_refused(
    table: Table, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.recipe(table=table, **changes)


def test_a_future_that_no_window_has_is_not_denoised() -> None:
    """Neither by imagining nor by acting with a table whose actions see it."""
    checkpoint = tiny.checkpoint(window=FAMILIES["ACTION_ONLY"].window)
    for table in (JOINT, VIDEO_FIRST, BIDIRECTIONAL):
        with pytest.raises(ValueError, match="predicts no future frames"):
            Policy(checkpoint, checkpoint.robots[0], table, CPU).act(tiny.observation())
    robot = Policy(checkpoint, checkpoint.robots[0], ACTION_CENTERED, CPU)
    assert robot.act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)
    with pytest.raises(ValueError, match="predicts no future frames, so there is nothing to imagine"):
        robot.imagine(tiny.observation())
