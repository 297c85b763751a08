"""A policy that looks back: what it is handed, what it hands on, and that nothing but speed depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from actwam.checkpoint import save
from actwam.data.loader import Window
from actwam.memory import Ledger
from actwam.model.transformer import GroupInput
from actwam.policy import Policy
from actwam.policy_memory import policy_need
from actwam.sampler import Levels, sample
from actwam.tokens import ACTION_CENTERED, BIDIRECTIONAL, JOINT, Table
from actwam.types import Context, Group, Memory, Observation

HIST, OBS, STATE, ACT = Group.HISTORY, Group.OBSERVATION, Group.STATE, Group.ACTION

# How many moments are looked back on, from call to call: all, and of more than R the newer half, rounded up.
LENGTHS = {
    1: [0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    2: [0, 1, 2, 1, 2, 1, 2, 1, 2, 1],
    3: [0, 1, 2, 3, 2, 3, 2, 3, 2, 3],
    4: [0, 1, 2, 3, 4, 2, 3, 4, 2, 3],
}


def policy(moments: int = 3, table: Table = JOINT, experts: str = "one") -> Policy:
    window = Window(
        action_horizon=tiny.HORIZON,
        future_offsets=tiny.OFFSETS,
        history_offsets=tuple(-2 * n for n in range(moments, 0, -1)),
    )
    checkpoint = tiny.checkpoint(experts, window=window, table=table)
    return Policy(checkpoint, checkpoint.robots[0], table, torch.device("cpu"))


def episode(number: int = 0, length: int = 10) -> list[Observation]:
    """What is seen from call to call."""
    whole = tiny.episode(number, tiny.robot(0), length)
    return [
        Observation({name: frames[t] for name, frames in whole.images.items()}, whole.state[t], whole.instruction)
        for t in range(length)
    ]


def at_once(robot: Policy, past: Sequence[Observation], seen: Observation, seed: int) -> np.ndarray:
    """Slow twin: the past moments are encoded here and now, with no memory and no context."""
    encoded = robot.encode([seen])
    given = dict(encoded.given)
    if past:
        given[HIST] = torch.cat([robot.encode([each]).given[OBS] for each in past], dim=2)
    values, _ = sample(
        robot.checkpoint.model,
        robot.table,
        given=given,
        noise=robot.noise({ACT, Group.FUTURE}, encoded, [seed]),
        wanted=[ACT],
        text=encoded.text,
        embodiment=torch.zeros(1, dtype=torch.long),
        sampling=tiny.SAMPLING,
    )
    return robot._chunks(values[ACT], np.stack([seen.state]))[0].actions


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("table", [JOINT, ACTION_CENTERED, BIDIRECTIONAL], ids=lambda table: table.name)
@pytest.mark.parametrize("experts", ["one", "two"])
@pytest.mark.parametrize("moments", LENGTHS)
def test_acting_with_a_memory_equals_encoding_the_past_at_once(moments: int, experts: str, table: Table) -> None:
    robot, seen = policy(moments, table, experts), episode()
    memories: list[Memory | None] = [None]
    for call, length in enumerate(LENGTHS[moments]):
        (chunk,), memories = robot.act_batch([seen[call]], [call], memories)
        past = seen[call - length : call]
        assert difference(chunk.actions, at_once(robot, past, seen[call], call)) < 1e-4
        if length:  # and it matters
            assert difference(chunk.actions, at_once(robot, past[1:], seen[call], call)) > 1e-3


@pytest.mark.parametrize("moments", LENGTHS)
def test_a_moment_is_encoded_at_most_twice_on_the_average(moments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    robot, seen, encoded = policy(moments), episode(length=10), []
    encode = robot.checkpoint.model.encode

    def counted(inputs: list[GroupInput], *rest: object) -> Context:
        encoded.extend(item.value.shape[2] for item in inputs if item.group is HIST)
        return encode(inputs, *rest)

    monkeypatch.setattr(robot.checkpoint.model, "encode", counted)
    memories: list[Memory | None] = [None]
    for call in range(10):
        _, memories = robot.act_batch([seen[call]], [0], memories)
    assert len(encoded) == 9  # once a call, but for the first
    assert sum(encoded) <= 2 * 9
    appended = [now > before for before, now in zip(LENGTHS[moments], LENGTHS[moments][1:], strict=False)]
    assert [count == 1 for count, longer in zip(encoded, appended, strict=True) if longer] == [True] * sum(appended)


def test_what_was_seen_is_remembered_and_not_what_was_imagined() -> None:
    robot, seen = policy(3), episode()
    memories: list[Memory | None] = [None]
    for call in range(3):
        _, memories = robot.act_batch([seen[call]], [0], memories)
        robot.imagine_batch([seen[call]], None, [0], memories)
    memory = memories[0]
    assert memory is not None
    latents = [robot.encode([each]).given[OBS] for each in seen[:3]]
    assert torch.equal(memory.seen, torch.cat(latents, dim=2))
    assert memory.context is not None
    assert memory.context.groups == (HIST, HIST)


def test_a_memory_is_a_value() -> None:
    """It may be handed over twice, and acting leaves it as it was; acting and remembering hand on the same."""
    robot, seen = policy(3), episode()
    memories: list[Memory | None] = [None]
    for call in range(3):
        _, memories = robot.act_batch([seen[call]], [0], memories)
    (memory,) = memories
    assert memory is not None
    assert memory.context is not None
    keys = [key.clone() for key in memory.context.keys]
    first, after = robot.act_batch([seen[3]], [5], [memory])
    again, _ = robot.act_batch([seen[3]], [5], [memory])
    assert np.array_equal(first[0].actions, again[0].actions)
    assert all(torch.equal(a, b) for a, b in zip(keys, memory.context.keys, strict=True))
    (remembered,) = robot.remember([seen[3]], [memory])
    assert remembered is not None
    assert after[0] is not None
    assert torch.equal(remembered.seen, after[0].seen)
    with pytest.raises(AttributeError):
        memory.seen = memory.seen  # type: ignore[misc]


def test_memories_of_all_lengths_act_together() -> None:
    robot, lengths = policy(3), [0, 4, 1, 3, 5, 2, 0]  # 4: full, so that a part of it is encoded anew; 5: after that
    episodes, memories = [episode(i) for i in range(len(lengths))], []
    for seen, length in zip(episodes, lengths, strict=True):
        mine: list[Memory | None] = [None]
        for call in range(length):
            mine = robot.remember([seen[call]], mine)
        memories.extend(mine)
    now = [seen[length] for seen, length in zip(episodes, lengths, strict=True)]
    together, after = robot.act_batch(now, range(len(now)), memories)
    imagined = robot.imagine_batch(now, None, range(len(now)), memories)
    for row, (seen, memory) in enumerate(zip(now, memories, strict=True)):
        (alone,), (mine,) = robot.act_batch([seen], [row], [memory])
        assert difference(alone.actions, together[row].actions) < 1e-5
        assert difference(alone.actions, imagined[row].actions) < 1e-4
        assert mine is not None
        assert after[row] is not None
        assert torch.equal(mine.seen, after[row].seen)
        assert (mine.context is None) == (after[row].context is None) == (lengths[row] == 0)
        assert mine.seen.untyped_storage().nbytes() == after[row].seen.untyped_storage().nbytes()


def test_under_a_new_instruction_the_past_is_encoded_anew() -> None:
    """The keys of the past read the instruction too; training shows no history of another one."""
    robot, seen = policy(4), episode()
    memories: list[Memory | None] = [None]
    for call in range(3):
        _, memories = robot.act_batch([seen[call]], [0], memories)
    other = replace(seen[3], instruction="lift it")
    (chunk,), after = robot.act_batch([other], [3], memories)
    assert difference(chunk.actions, at_once(robot, seen[:3], other, 3)) < 1e-4
    assert after[0] is not None
    assert after[0].instruction == "lift it"
    memory = memories[0]
    assert memory is not None
    (wrong,), _ = robot.act_batch([other], [3], [replace(memory, instruction="lift it")])
    assert difference(chunk.actions, wrong.actions) > 1e-4


def test_a_policy_that_does_not_look_back_remembers_nothing() -> None:
    robot, seen = policy(0), episode()
    assert robot.history_spacing == 0
    chunks, memories = robot.act_batch(seen[:2], [0, 1], [None, None])
    assert memories == robot.remember(seen[:2]) == [None, None]
    without, _ = robot.act_batch(seen[:2], [0, 1])
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(chunks, without, strict=True))
    with pytest.raises(ValueError, match="this policy does not look back: it takes no memories but None"):
        robot.act_batch(seen[:1], [0], policy(1).remember(seen[:1]))


def test_memories_that_do_not_fit_are_refused() -> None:
    robot, seen = policy(2), episode()
    assert robot.history_spacing == 2
    memories = robot.remember(seen[:2])
    with pytest.raises(ValueError, match="2 observations need as many memories, not 1"):
        robot.act_batch(seen[:2], [0, 1], memories[:1])
    assert memories[0] is not None
    foreign = replace(memories[0], seen=torch.zeros(1, tiny.CHANNELS + 1, 1, 2, 4))
    with pytest.raises(ValueError, match="hand a policy only what it returned itself") as caught:
        robot.act_batch(seen[:1], [0], [foreign])
    assert "\n" not in str(caught.value)


def act_with_longest_memory(robot: Policy) -> int:
    """Bytes that are alive at most while a policy acts, the memory that it is handed among them."""
    seen, moments = episode(), len(robot.checkpoint.window.history_offsets)
    robot.act(seen[0])  # the instruction is kept from here on
    embedded = [side for layer in robot._text([seen[0].instruction]).layers for pair in layer for side in pair]
    there = [*robot.checkpoint.model.parameters(), *robot.checkpoint.codec.tensors().values(), *embedded]
    memories: list[Memory | None] = [None]
    with Ledger(there) as ledger:
        for call in range(moments):
            memories = robot.remember([seen[call]], memories)
        ledger.most = ledger.alive
        robot = replace(robot, _levels=Levels())  # which are kept, and counted where they are made
        robot.act_batch([seen[moments]], [0], memories)
    return ledger.most


def test_what_the_longest_memory_takes_is_counted(tmp_path: Path) -> None:
    took, counted = [], []
    for robot in (policy(0), policy(6)):
        save(robot.checkpoint, tmp_path / f"{robot.history_spacing}")
        act_with_longest_memory(robot)  # masks are kept, and counted where they are made first
        took.append(act_with_longest_memory(robot))
        policy_need(tmp_path / f"{robot.history_spacing}")
        counted.append(policy_need(tmp_path / f"{robot.history_spacing}").activations)
    assert 1 <= (counted[1] - counted[0]) / (took[1] - took[0]) < 1.1
    assert all(1 <= mine / theirs < 1.1 for mine, theirs in zip(counted, took, strict=True))


def test_a_robot_that_feels_nothing_acts_without_a_state() -> None:
    numb = tiny.transform(tiny.robot(0, state_names=()))
    robot = replace(policy(2), robot=numb)
    seen = [replace(each, state=np.zeros(0, np.float32)) for each in episode()[:2]]
    assert set(robot.encode(seen).given) == {OBS}
    chunks, memories = robot.act_batch(seen, [0, 1])
    chunks, _ = robot.act_batch(seen, [0, 1], memories)
    assert all(np.isfinite(chunk.actions).all() for chunk in chunks)


def test_memory_and_need_come_through_a_checkpoint(tmp_path: Path) -> None:
    robot, seen = policy(3), episode()
    save(robot.checkpoint, tmp_path / "saved")
    loaded = Policy.load(tmp_path / "saved", robot="robot_0")
    assert loaded.checkpoint.window == robot.checkpoint.window
    memories: list[Memory | None] = [None]
    for call in range(4):
        memories = robot.remember([seen[call]], memories)
    (a,), _ = robot.act_batch([seen[4]], [0], memories)
    (b,), _ = loaded.act_batch([seen[4]], [0], memories)
    assert difference(a.actions, b.actions) < 1e-4
    save(policy(0).checkpoint, tmp_path / "without")
    with_history, without = (policy_need(tmp_path / name).activations for name in ("saved", "without"))
    model = robot.checkpoint.model.config
    side = 8 * model.heads * model.head_width * 4  # the keys of a moment's tokens in one layer
    assert with_history - without > 3 * 2 * model.layers * side  # keys and values of three moments, at least
