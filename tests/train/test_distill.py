"""Few-step distillation on a tiny system: what is taught, that it is learned, and that it resumes bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from actwam import cli
from actwam.checkpoint import Checkpoint, checkpoints, load, save
from actwam.data.loader import Window
from actwam.policy import Policy
from actwam.recipes.distill import few_steps
from actwam.sampler import Approximate, Sampling
from actwam.tokens import JOINT
from actwam.train.config import Recipe
from actwam.train.distill import Teacher
from actwam.train.loop import Run, train
from actwam.train.memory import recipe_need
from actwam.train.step import embedded
from actwam.types import Batch, Group, Mode

HIST, STATE, ACT, FUT = Group.HISTORY, Group.STATE, Group.ACTION, Group.FUTURE
ONE = replace(tiny.SAMPLING, num_steps=1)
CPU = torch.device("cpu")


def teacher(student: Sampling = ONE, **changes: Any) -> Teacher:
    return Teacher(checkpoint=tiny.checkpoint(**changes), sampling=tiny.SAMPLING, student=student)


def batch(B: int = 4, moments: int = 0) -> Batch:
    """Robot 1 (every second sample) has two of the three action dimensions. The last sample ends after one action."""
    valid = torch.ones(B, tiny.HORIZON, 3, dtype=torch.bool)
    valid[1::2, :, 2] = False
    valid[-1, 1:] = False
    return Batch(
        modes=(Mode.POLICY,) * B,
        history=tiny.noise_of(7, B, tiny.CHANNELS, moments, 2, 4),
        history_valid=torch.ones(B, moments, dtype=torch.bool),
        future_valid=torch.ones(B, 2, dtype=torch.bool),
        latents=tiny.noise_of(0, B, tiny.CHANNELS, 3, 2, 4),
        state_valid=torch.ones(B, dtype=torch.bool),
        state=tiny.noise_of(1, B, 3),
        action=tiny.noise_of(2, B, tiny.HORIZON, 3) * valid,
        action_valid=valid,
        instructions=("lift it",) * B,
        embodiment=tiny.embodiments(B),
    )


def lesson(made: Teacher, given: Batch, seed: int = 0) -> Any:
    return made.lesson(given, embedded(tiny.TEXT, given.instructions), tiny.draws(seed, given)).without_absent()


def test_a_lesson_is_the_straight_way_to_what_the_teacher_does() -> None:
    """Seen through the policy: its own actions from the same noise, in the model's units."""
    made = teacher()
    robot = Policy(made.checkpoint, made.checkpoint.robots[0], made.checkpoint.table, CPU)
    seen = [tiny.observation(seed) for seed in range(2)]
    encoded = robot.encode(seen)
    given = replace(
        batch(2),
        latents=encoded.given[Group.OBSERVATION].repeat(1, 1, 3, 1, 1),
        state=encoded.given[STATE][:, 0],
        embodiment=torch.zeros(2, dtype=torch.long),
        action_valid=torch.ones(2, tiny.HORIZON, 3, dtype=torch.bool),
    )
    text = embedded(tiny.TEXT, [each.instruction for each in seen])
    found = made.lesson(given, text, tiny.draws(5, given)).without_absent()
    noise = tiny.draws(5, given).normal(given.action.shape[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Policy, "action_noise", lambda *_: noise)
        actions = robot._sample(encoded, [ACT], [0, 0])[ACT]
    assert torch.allclose(found.targets[ACT], noise - actions, atol=1e-5)
    assert torch.equal(found.values[ACT], noise)  # one step: at pure noise alone
    assert set(found.values) == {Group.OBSERVATION, STATE, ACT}
    assert not found.targets[ACT].requires_grad


def test_lessons_are_at_the_levels_that_the_student_visits() -> None:
    student = replace(tiny.SAMPLING, num_steps=2)
    made, given = teacher(student), batch(32)
    found = lesson(made, given)
    assert set(found.sigmas[ACT].tolist()) == set(student.levels(ACT)[:-1])
    sigma = found.sigmas[ACT][:, None, None]
    actions = found.values[ACT] - sigma * found.targets[ACT]
    again = lesson(replace(made, student=ONE), given)  # the same noise
    assert torch.allclose(actions, again.values[ACT] - again.targets[ACT], atol=1e-5)
    assert not found.sigmas[STATE].any()


def test_whole_chunks_are_taught_and_padded_dimensions_are_not() -> None:
    found = lesson(teacher(), batch())
    weighs = found.weighs[ACT].expand_as(found.targets[ACT])
    assert weighs[0].all()
    assert weighs[3, :, :2].all()  # past the end of the episode too
    assert not weighs[1::2, :, 2].any()
    assert not found.values[ACT][1::2, :, 2].any()  # no noise there, as in acting


def test_a_lesson_depends_on_the_seed_alone() -> None:
    made = teacher()
    first, again, other = lesson(made, batch(), 3), lesson(made, batch(), 3), lesson(made, batch(), 4)
    assert torch.equal(first.targets[ACT], again.targets[ACT])
    assert not torch.equal(first.targets[ACT], other.targets[ACT])


def test_samples_with_other_pasts_and_without_a_state_are_taught_as_if_alone() -> None:
    window = Window(action_horizon=tiny.HORIZON, future_offsets=tiny.OFFSETS, history_offsets=(-4, -2))
    made, given = teacher(window=window), batch(4, moments=2)
    given.history_valid[0] = False
    given.history_valid[1, 0] = False
    given.state_valid[3] = False
    together = lesson(made, given)
    assert torch.equal(together.present[HIST], given.history_valid)
    assert torch.equal(together.present[STATE], given.state_valid)
    noise = together.values[ACT]
    text = made.checkpoint.model.text_context(tiny.TEXT.encode(["lift it"]))
    for row in range(4):
        tensors = {name: value[row : row + 1] for name, value in vars(given).items() if isinstance(value, Tensor)}
        mine = replace(given, modes=(Mode.POLICY,), instructions=("lift it",), **tensors)
        actions = made._actions(mine, noise[row : row + 1], text)
        assert torch.allclose(noise[row] - actions[0], together.targets[ACT][row], atol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "squares", tiny.robot())


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a moment, as a checkpoint that knows how it was trained."""
    folder = tmp_path_factory.mktemp("start")
    stage = tiny.stage(steps=60, batch_size=16, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=60)
    recipe = tiny.recipe(stage, model=tiny.config("two", embodiments=1, layers=1))
    return train(recipe, {"squares": data}, Run(out=folder, cache=folder / "cache"))


def distill(start: Path, data: Path, out: Path, *, resume: bool = False, **options: Any) -> Path:
    settings = {"steps": 4, "checkpoint_every": 2, "num_steps": 1, **options}
    recipe = few_steps(start=start, **settings)
    return train(recipe, {"demos": data}, Run(out=out, cache=out.parent / "cache", resume=resume))


def kept(folder: Path) -> dict[str, Tensor]:
    newest = checkpoints(folder)[-1]
    files = ("model.safetensors", tiny.STATE_FILE)
    return {f"{name}/{key}": tensor for name in files for key, tensor in load_file(newest / name).items()}


def test_a_student_comes_nearer_to_its_teacher_than_the_teacher_in_one_step(
    start: Path, data: Path, tmp_path: Path
) -> None:
    trained = distill(start, data, tmp_path / "run", steps=60, checkpoint_every=60, learning_rate=1e-2)
    student, master = Policy.load(trained), Policy.load(start)
    assert student.sampling.num_steps == 1
    seen, seeds = [tiny.observation(seed) for seed in range(8)], range(8)
    hurried = replace(master, approximate=Approximate(num_steps=1))
    chunks = [torch.stack([torch.from_numpy(c.actions) for c in p.act_batch(seen, seeds)[0]])
              for p in (master, hurried, student)]  # fmt: skip
    before, after = ((chunks[i] - chunks[0]).square().mean() for i in (1, 2))
    assert after < 0.5 * before


def test_the_visual_expert_stays_as_it_was(start: Path, data: Path, tmp_path: Path) -> None:
    before, after = load(start).model.state_dict(), load(distill(start, data, tmp_path / "run")).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    visual = {name for name in before if ".experts.1." in name or name.startswith(("experts.1.", "patch_"))}
    assert visual
    assert sorted(changed & visual) == []


def test_a_stopped_distillation_continues_bit_for_bit(start: Path, data: Path, tmp_path: Path) -> None:
    whole = distill(start, data, tmp_path / "whole", num_steps=2)
    part = distill(start, data, tmp_path / "part", num_steps=2)
    for newest in checkpoints(part)[1:]:
        newest.rename(tmp_path / "gone")
    again = distill(start, data, tmp_path / "part", resume=True, num_steps=2)
    one, other = kept(whole), kept(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_distillation_is_not_continued_with_another_teacher(start: Path, data: Path, tmp_path: Path) -> None:
    folder = distill(start, data, tmp_path / "run")
    checkpoints(folder)[-1].rename(tmp_path / "gone")
    for other in ({"num_steps": 2}, {"teacher_steps": 5}):
        with pytest.raises(ValueError, match="the teacher or a schedule changed since"):
            distill(start, data, tmp_path / "run", resume=True, **other)


def test_the_command_distils(
    start: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [
        "actwam",
        "train",
        "distill.few_steps",
        "--start",
        start,
        "--data",
        "demos",
        data,
        "--out",
        tmp_path / "out",
    ]
    line += ["--options", "steps", 2, "num_steps", 2]
    monkeypatch.setattr(sys, "argv", [str(word) for word in line])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    assert Policy.load(capsys.readouterr().out.strip()).sampling.num_steps == 2


def test_memory_counts_the_teacher(start: Path) -> None:
    recipe = few_steps(start=start)
    without = replace(recipe, teacher=None)
    need, alone = (recipe_need(each, each.stages[0], CPU, "fp32") for each in (recipe, without))
    model = 4 * sum(parameter.numel() for parameter in load(start).model.parameters())
    assert need.weights == alone.weights + model
    assert need.at_once < alone.at_once  # no future


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_steps": 3}, "num_steps is 3, and the teacher has 3: take at least 1 and fewer"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": 4, "teacher_steps": 2}, "the teacher has 2"),
    ],
)
def test_schedules_that_cannot_be_are_refused(start: Path, options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        few_steps(start=start, **options)


def test_a_start_of_unknown_training_is_refused(tmp_path: Path) -> None:
    save(tiny.checkpoint(trained={"imported": "elsewhere"}), tmp_path / "saved")
    with pytest.raises(ValueError, match="was imported, not trained here"):
        few_steps(start=tmp_path / "saved")
    save(tiny.checkpoint(robots=(), trained={"imported": "elsewhere"}), tmp_path / "nobody")
    with pytest.raises(ValueError, match="this checkpoint has no robot"):
        few_steps(start=tmp_path / "nobody")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda recipe: replace(recipe, table=JOINT), "actions of table JOINT see a future"),
        (lambda recipe: tiny.recipe(teacher=tiny.SAMPLING), "a teacher is the checkpoint to start from: give one"),
        (
            lambda recipe: replace(
                recipe,
                stages=(
                    replace(
                        recipe.stages[0], sources=(replace(recipe.stages[0].sources[0], mode=Mode.WORLD),)
                    ),
                ),
            ),
            "all sources are of mode policy",
        ),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_taught_are_refused(start: Path, change: Callable[[Recipe], Recipe], said: str) -> None:
    made = few_steps(start=start)
    with pytest.raises(ValueError, match=said):
        change(made)


def test_the_teacher_is_the_frozen_start(start: Path) -> None:
    made = Teacher.of(few_steps(start=start), CPU)
    assert made is not None
    assert not any(parameter.requires_grad for parameter in made.checkpoint.model.parameters())
    assert made.to_json()["checkpoint"] == load(start).digest
    assert isinstance(made.checkpoint, Checkpoint)
    assert Teacher.of(tiny.recipe(), CPU) is None
