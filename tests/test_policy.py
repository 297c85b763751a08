"""A policy as its user meets it: deterministic, without hidden state, and plain about what it cannot use."""

from __future__ import annotations

import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_official
import torch

from actwam.checkpoint import Checkpoint, load, save
from actwam.convert import import_model
from actwam.data.loader import Window
from actwam.data.transforms import FutureTransform
from actwam.instructions import TEXTS
from actwam.memory import Ledger, Tokens, acting_need
from actwam.model.text import HashedWords
from actwam.policy import Policy
from actwam.policy_memory import policy_need
from actwam.sampler import Approximate
from actwam.tokens import ACTION_CENTERED, ACTION_ONLY, BIDIRECTIONAL, JOINT, UNCOUPLED, VIDEO_FIRST
from actwam.types import ActionChunk, Group, Observation, Previous


def policy(index: int = 0, checkpoint: Checkpoint | None = None) -> Policy:
    checkpoint = checkpoint or tiny.checkpoint()
    return Policy(checkpoint, checkpoint.robots[index], checkpoint.table, torch.device("cpu"))


def trained() -> Checkpoint:
    """As training leaves it: no loss has ever reached the third action of robot 1, which has two."""
    checkpoint = tiny.checkpoint()
    with torch.no_grad():
        checkpoint.model.action_decoder.last.weight[1, :, 2] = 0
        checkpoint.model.action_decoder.last.bias[1, 2] = 0
    return checkpoint


def observations(n: int = 3, index: int = 0) -> list[Observation]:
    return [tiny.observation(seed, tiny.robot(index)) for seed in range(n)]


@pytest.mark.parametrize("index", [0, 1])
def test_actions_are_a_chunk_in_the_units_of_the_robot(index: int) -> None:
    robot = policy(index)
    chunk = robot.act(observations(1, index)[0])
    assert chunk.actions.shape == (tiny.HORIZON, 3 - index)
    assert chunk.actions.dtype == np.float32
    inside = tiny.transform(tiny.robot(index)).model_action(chunk.actions, observations(1, index)[0].state)
    assert np.abs(inside).max() < 20  # about the range of the model, after the inverse of what was applied


def test_the_seed_decides() -> None:
    robot, seen = policy(), observations(1)[0]
    assert np.array_equal(robot.act(seen, seed=4).actions, robot.act(seen, seed=4).actions)
    assert np.array_equal(robot.act(seen).actions, robot.act(seen, seed=0).actions)
    assert np.abs(robot.act(seen, seed=4).actions - robot.act(seen, seed=5).actions).max() > 1e-3


def test_there_is_no_memory_between_calls() -> None:
    seen = observations(4)
    forward = [policy().act(x, seed=i).actions for i, x in enumerate(seen)]
    robot = policy()
    torch.manual_seed(99)
    robot.imagine(seen[2], seed=7)
    backward = [robot.act(x, seed=i).actions for i, x in reversed(list(enumerate(seen)))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))


@pytest.mark.parametrize("table", [ACTION_CENTERED, JOINT, VIDEO_FIRST, BIDIRECTIONAL], ids=lambda t: t.name)
def test_a_batch_equals_one_by_one(table: str) -> None:
    robot, seen, seeds = replace(policy(), table=table), observations(4), [5, 5, 6, 7]
    together, memories = robot.act_batch(seen, seeds)
    assert memories == [None] * 4
    for observation, seed, chunk in zip(seen, seeds, together, strict=True):
        assert np.abs(robot.act(observation, seed=seed).actions - chunk.actions).max() < 1e-5
    imagined = robot.imagine_batch(seen, None, seeds)
    for observation, seed, one in zip(seen, seeds, imagined, strict=True):
        alone = robot.imagine(observation, seed=seed)
        assert np.abs(alone.actions - one.actions).max() < 1e-5
        assert np.abs(alone.video.astype(int) - one.video).max() <= 1


def test_every_part_of_an_observation_matters() -> None:
    robot, seen = policy(), observations(1)[0]
    before = robot.act(seen).actions
    darker = {name: image // 2 for name, image in seen.images.items()}
    for name in darker:
        other = replace(seen, images={**seen.images, name: darker[name]})
        assert np.abs(robot.act(other).actions - before).max() > 1e-4
    for other in (replace(seen, state=seen.state + 1), replace(seen, instruction="lift it")):
        assert np.abs(robot.act(other).actions - before).max() > 1e-4


def test_acting_denoises_the_tokens_of_the_table_alone() -> None:
    """Action-centered decoding of a checkpoint gives the actions that imagining gives, without its future."""
    robot, seen = policy(), observations(1)[0]
    assert np.abs(robot.act(seen, seed=3).actions - robot.imagine(seen, seed=3).actions).max() < 1e-5
    joint = replace(robot, table=JOINT)
    assert np.abs(robot.act(seen, seed=3).actions - joint.act(seen, seed=3).actions).max() > 1e-4


def test_imagining_without_actions_gives_both() -> None:
    imagined = policy().imagine(observations(1)[0], seed=1)
    assert imagined.video.shape == (len(tiny.OFFSETS), tiny.LAYOUT.height, tiny.LAYOUT.width, 3)
    assert imagined.video.dtype == np.uint8
    assert imagined.video.std() > 1
    assert imagined.actions.shape == (tiny.HORIZON, 3)


def pair_policy(offsets: tuple[int, ...] = (1, 2, 3, 4)) -> Policy:
    """Behind a codec that makes one latent of two frames, told as change from the present frame."""
    window = Window(action_horizon=tiny.HORIZON, future_offsets=offsets)
    return policy(0, tiny.checkpoint(codec=tiny.PairCodec(tiny.codec()), window=window))


def test_a_codec_that_compresses_time_decodes_the_future_behind_the_present() -> None:
    robot, seen = pair_policy(), observations(1)[0]
    encoded = robot.encode([seen])
    values = robot._sample(encoded, [Group.ACTION, Group.FUTURE], [1])
    assert values[Group.FUTURE].shape == (1, tiny.CHANNELS, 2, 2, 4)
    imagined = robot.imagine(seen, seed=1)
    assert imagined.video.shape == (4, tiny.LAYOUT.height, tiny.LAYOUT.width, 3)
    present = encoded.given[Group.OBSERVATION]
    expected = robot.checkpoint.codec.pictures.decode(present + values[Group.FUTURE])[0].numpy()
    assert np.array_equal(imagined.video, expected.repeat(2, axis=0))
    batch = robot.imagine_batch([seen, seen], None, [1, 2])
    assert np.abs(batch[0].video.astype(int) - imagined.video).max() <= 1


def test_future_pictures_that_do_not_fill_their_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"future_offsets are 3 pictures.* choose a multiple of 2"):
        pair_policy((1, 2, 3)).act(observations(1)[0])


def test_a_future_shown_as_change_is_added_to_the_present() -> None:
    still = tiny.checkpoint(future=FutureTransform((1e-6,) * tiny.CHANNELS))
    seen = observations(1)[0]
    imagined = policy(0, still).imagine(seen)
    picture, _ = still.robots[0].observe(seen)
    present = still.codec.decode(still.codec.encode(torch.from_numpy(picture)[None]))[0, 0].numpy()
    assert all(np.abs(frame.astype(int) - present).max() <= 1 for frame in imagined.video)
    assert (policy().imagine(seen).video[0] != present).mean() > 0.5


@pytest.mark.parametrize("index", [0, 1])
def test_given_actions_are_followed_and_returned_untouched(index: int) -> None:
    robot, seen = policy(index, trained()), observations(1, index)[0]
    own = robot.imagine(seen, seed=1)
    given = own.actions.copy()
    again = robot.imagine(seen, actions=given, seed=1)
    assert again.actions is not own.actions
    assert np.array_equal(again.actions, own.actions)
    assert np.array_equal(given, own.actions)
    assert (again.video != own.video).mean() < 0.01  # the same actions, the same future
    other = robot.imagine(seen, actions=given + 3, seed=1)
    assert np.array_equal(other.actions, given + 3)
    assert (other.video != own.video).mean() > 0.05


def test_an_imagined_batch_keeps_its_actions_apart() -> None:
    robot, seen = policy(), observations(2)
    actions = np.stack([robot.act(x).actions for x in seen])
    both = robot.imagine_batch(seen, actions, [0, 1])
    for i in range(2):
        alone = robot.imagine(seen[i], actions=actions[i], seed=i)
        assert np.abs(alone.video.astype(int) - both[i].video).max() <= 1


@pytest.mark.parametrize("table", [VIDEO_FIRST, UNCOUPLED], ids=lambda table: table.name)
def test_actions_that_could_not_matter_are_refused(table: str) -> None:
    robot, seen = replace(policy(), table=table), observations(1)[0]
    assert robot.imagine(seen).video.std() > 1
    with pytest.raises(ValueError, match="the future does not see actions"):
        robot.imagine(seen, actions=np.zeros((tiny.HORIZON, 3), np.float32))


def test_a_table_without_future_imagines_nothing() -> None:
    robot = replace(policy(), table=ACTION_ONLY)
    assert robot.act(observations(1)[0]).actions.shape == (tiny.HORIZON, 3)
    with pytest.raises(ValueError, match="ACTION_ONLY has no group future"):
        robot.imagine(observations(1)[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (
            np.zeros((tiny.HORIZON + 1, 3), np.float32),
            r"imagine needs 4 actions for each observation, not shape \(1, 5, 3\)",
        ),
        (np.zeros((tiny.HORIZON, 2), np.float32), r"must end in the 3 of .* not shape \(1, 4, 2\)"),
        (np.full((tiny.HORIZON, 3), np.nan, np.float32), "x is nan"),
    ],
)
def test_actions_that_do_not_fit_are_refused(actions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        policy().imagine(observations(1)[0], actions=actions)
    assert "\n" not in str(caught.value)


SEEN = tiny.observation()
IMAGES = dict(SEEN.images)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {name: IMAGES[name] for name in ("front", "wrist_left")}}, "wrist_right"),
        ({"images": {**IMAGES, "top": IMAGES["front"]}}, "top"),
        (
            {"images": {**IMAGES, "front": IMAGES["front"][::2]}},
            "camera front must give 32x48x3 .*not 16x48x3",
        ),
        (
            {"images": {**IMAGES, "front": IMAGES["front"] / 255}},
            "camera front must give .* not 32x48x3 float64",
        ),
        ({"state": np.zeros(4, np.float32)}, r"state must be the 3 of .*not shape \(4,\)"),
        ({"state": np.array([0, np.inf, 0], np.float32)}, "y is inf"),
        ({"state": np.array([np.nan, 0, 0], np.float32)}, "x is nan"),
        ({"instruction": ""}, "instruction has 0 words"),
        (
            {"instruction": "one two three four five six seven"},
            "instruction has 7 words, this model reads 1 to 6",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        policy().act(replace(SEEN, **change))
    assert "\n" not in str(caught.value)


def test_every_observation_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="3 observations need as many seeds, not 2"):
        policy().act_batch(observations(3), [0, 1])


def test_the_noise_of_a_robot_belongs_to_seed_and_group() -> None:
    robot = policy(1)
    encoded = robot.encode(observations(2, 1))
    both = robot.noise({Group.ACTION, Group.FUTURE}, encoded, [4, 5])
    alone = robot.noise({Group.ACTION}, encoded, [9, 5])
    assert torch.equal(both[Group.ACTION][1], alone[Group.ACTION][1])
    assert not torch.equal(both[Group.ACTION][0], alone[Group.ACTION][0])
    assert not both[Group.ACTION][..., 2].any()  # the padded dimension of the smaller robot
    assert both[Group.ACTION][..., :2].all()


def test_noise_stays_in_padded_dimensions_where_the_weights_were_trained_so() -> None:
    noisy = policy(1, tiny.checkpoint(model=tiny.model(noisy_padding=True)))
    quiet = policy(1, tiny.checkpoint(model=tiny.model()))
    encoded = quiet.encode(observations(2, 1))
    with_noise, without = (each.noise({Group.ACTION}, encoded, [4, 5])[Group.ACTION] for each in (noisy, quiet))
    assert with_noise[..., 2].all()
    assert not without[..., 2].any()
    assert torch.equal(with_noise[..., :2], without[..., :2])


def test_action_and_future_start_from_different_noise() -> None:
    """A horizon of 32 makes both of 96 numbers: drawn from one generator, they would be the same."""
    long = tiny.checkpoint(window=Window(action_horizon=32, future_offsets=tiny.OFFSETS))
    robot = policy(0, long)
    noise = robot.noise({Group.ACTION, Group.FUTURE}, robot.encode(observations(2)), [4, 5])
    action, future = (noise[group].flatten(1) for group in (Group.ACTION, Group.FUTURE))
    assert action.shape == future.shape == (2, 96)
    assert (torch.corrcoef(torch.cat([action, future])) - torch.eye(4)).abs().max() < 0.4


def test_padded_dimensions_are_as_in_training_to_the_last_step() -> None:
    """A new model's velocity is zero where no loss ever reaches it, so that the zeros there stay zeros."""
    robot = policy(1, trained())
    values = robot._sample(robot.encode(observations(2, 1)), [Group.ACTION], [0, 1])
    assert not values[Group.ACTION][..., 2].any()


def test_a_run_is_opened_at_its_newest_checkpoint(tmp_path: Path) -> None:
    old, new = tiny.checkpoint(seed=0), tiny.checkpoint(seed=1)
    save(old, tmp_path / "step_00000009")
    save(new, tmp_path / "step_00000010")
    seen = observations(1)[0]
    loaded = Policy.load(tmp_path, robot="robot_0")
    earlier = Policy.load(str(tmp_path / "step_00000009"), robot="robot_0")
    for found, expected, other in ((loaded, new, old), (earlier, old, new)):
        # about: how the weights lie in memory may change the last bits of a product
        assert np.abs(found.act(seen).actions - policy(0, expected).act(seen).actions).max() < 1e-4
        assert np.abs(found.act(seen).actions - policy(0, other).act(seen).actions).max() > 1e-2
    with pytest.raises(ValueError, match="trained on robot_0, robot_1; name one of them"):
        Policy.load(tmp_path)
    with pytest.raises(ValueError, match="not 'robot_9'"):
        Policy.load(tmp_path, robot="robot_9")


def test_a_checkpoint_that_no_robot_uses_yet_does_not_act(tmp_path: Path) -> None:
    save(tiny.checkpoint(robots=()), tmp_path / "imported")
    for name in (None, "robot_0"):
        with pytest.raises(ValueError, match=r"has no robot: name one when importing it, or fine-tune it") as caught:
            Policy.load(tmp_path / "imported", robot=name)
        assert "\n" not in str(caught.value)


def test_the_last_instructions_are_kept_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actwam.instructions.TEXTS", 2)
    embedded: list[str] = []

    def encode(self: HashedWords, instructions: list[str]) -> torch.Tensor:
        embedded.extend(instructions)
        return real(self, instructions)

    real = HashedWords.encode
    monkeypatch.setattr(HashedWords, "encode", encode)
    robot, seen = policy(), observations(1)[0]
    for word in "abacaab":
        robot.act(replace(seen, instruction=word))
        assert len(robot._instructions.kept) <= 2
    assert "".join(embedded) == "abcb"
    three = [replace(seen, instruction=word) for word in "xyzx"]
    together, _ = robot.act_batch(three, [0, 1, 2, 3])
    assert list(robot._instructions.kept) == ["y", "z"]
    for observation, seed, chunk in zip(three, range(4), together, strict=True):
        assert np.abs(robot.act(observation, seed=seed).actions - chunk.actions).max() < 1e-5


def test_the_instructions_kept_are_counted_and_nothing_is_kept_beside_them(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint("two")
    robot = policy(0, checkpoint)
    with Ledger([]) as ledger:
        before = ledger.alive
        for i in range(TEXTS + 3):
            robot._text([f"word {i}"])
        kept = ledger.alive - before
    save(checkpoint, tmp_path / "saved")
    assert len(robot._instructions.kept) == TEXTS
    assert policy_need(tmp_path / "saved").instructions == kept


def test_one_instruction_is_handed_over_without_a_copy() -> None:
    robot = policy()
    first = robot._text(["lift it"])
    assert robot._text(["lift it"]) is first
    twice = robot._text(["lift it", "lift it"])
    assert [len(k) for layer in twice.layers for k, _ in layer] == [2] * len(first.layers)


@pytest.mark.parametrize(
    ("device", "message"),
    [("mps", "'mps' is unknown"), ("gpu", "'gpu' is unknown"), ("cuda:98", "cuda:98 is not here")],
)
def test_an_unknown_device_is_refused_in_one_line(device: str, message: str, tmp_path: Path) -> None:
    save(tiny.checkpoint(), tmp_path / "saved")
    with pytest.raises(ValueError, match=message) as caught:
        Policy.load(tmp_path / "saved", robot="robot_0", device=device)
    assert "\n" not in str(caught.value)
    if "unknown" in message:
        with pytest.raises(ValueError, match=message):
            policy_need(tmp_path / "saved", device=device)


def test_a_policy_without_future_frames_acts() -> None:
    blind = tiny.checkpoint(window=Window(action_horizon=tiny.HORIZON, future_offsets=()), table=ACTION_ONLY)
    assert policy(0, blind).act(observations(1)[0]).actions.shape == (tiny.HORIZON, 3)


def test_the_need_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    """Weights to the byte, in the precision asked for, and one line on a folder that holds none."""
    checkpoint = tiny.checkpoint("two")
    save(checkpoint, tmp_path / "saved")
    bytes_ = sum(p.numel() * p.element_size() for p in checkpoint.model.parameters())
    need = policy_need(tmp_path / "saved")
    assert need.weights == bytes_
    assert need.codec == sum(tensor.nbytes for tensor in checkpoint.codec.tensors().values())
    assert need.activations > 0
    assert policy_need(tmp_path / "saved", device="cuda").weights == bytes_  # which need not be here
    assert policy_need(tmp_path / "saved", precision="bf16").weights == bytes_ // 2
    loaded = Policy.load(tmp_path / "saved", robot="robot_1", precision="bf16")
    assert {p.dtype for p in loaded.checkpoint.model.parameters()} == {torch.bfloat16}
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no policy can be loaded"):
        policy_need(tmp_path / "saved")


def test_the_need_counts_the_latent_frames_of_the_codec(tmp_path: Path) -> None:
    """Of 8 pictures a codec that joins 4 makes 2 latents; joint decoding denoises them beside the actions."""
    source = tiny_official.pipeline(tmp_path / "official", "gwp05")
    import_model(str(source), tmp_path / "imported", tiny_official.import_config(tmp_path))
    checkpoint = load(tmp_path / "imported")
    window = Window(action_horizon=8, future_offsets=tuple(range(1, 9)))
    save(replace(checkpoint, table=JOINT, window=window), tmp_path / "joint")
    height, width = tiny_official.PICTURE
    tokens = Tokens(grid=(height // 16, width // 16), future_frames=2, actions=8)
    counted = acting_need(
        checkpoint.model.config,
        JOINT,
        tokens,
        dtype=torch.float32,
        device=torch.device("cpu"),
        sampling=checkpoint.sampling,
    )
    # about: masks, which the model keeps between calls, are counted where they are made
    assert policy_need(tmp_path / "joint").activations == pytest.approx(counted.activations, rel=0.05)


def test_fewer_steps_are_those_of_a_checkpoint_that_has_as_few() -> None:
    seen = observations(2)
    few = tiny.checkpoint(sampling=replace(tiny.SAMPLING, num_steps=2))
    found = replace(policy(), approximate=Approximate(num_steps=2)).act_batch(seen, [0, 1])[0]
    for ours, theirs in zip(found, policy(0, few).act_batch(seen, [0, 1])[0], strict=True):
        assert np.array_equal(ours.actions, theirs.actions)
    assert policy().sampling == tiny.SAMPLING


def test_what_is_switched_off_changes_no_bit() -> None:
    seen, previous = observations(2), [Previous(ActionChunk(np.ones((tiny.HORIZON, 3), np.float32)), 2), None]
    before = policy().act_batch(seen, [0, 1])[0]
    as_many = Approximate(num_steps=tiny.SAMPLING.num_steps)
    full = Approximate(warm_steps=tiny.SAMPLING.num_steps)  # from pure noise
    for approximate, handed in (
        (Approximate(), previous),
        (as_many, previous),
        (full, [previous[0]] * 2),
        (full, None),
    ):
        found = replace(policy(), approximate=approximate).act_batch(seen, [0, 1], previous=handed)[0]
        assert all(np.array_equal(a.actions, b.actions) for a, b in zip(before, found, strict=True))


@pytest.mark.parametrize("index", [0, 1])
def test_a_warm_start_goes_on_from_what_remains_relative_to_the_new_state(index: int) -> None:
    """Robot 1 has dimensions that are relative to the state. Without noise, what remains would be the guess itself."""
    robot = replace(policy(index, trained()), approximate=Approximate(warm_steps=1))
    first, second = observations(2, index)
    chunk = robot.act(first)
    start = robot._start([Previous(chunk, 1)], second.state[None])
    assert start is not None
    remaining = chunk.actions[[1, 2, 3, 3]]
    guess = start.guesses[Group.ACTION].numpy()
    assert np.array_equal(guess, robot.robot.model_action(remaining[None], second.state[None]))
    assert np.abs(robot.robot.robot_action(guess, second.state[None]) - remaining).max() < 1e-5
    warm = robot.act_batch([second], [0], previous=[Previous(chunk, 1)])[0][0].actions
    assert np.abs(warm - robot.act(second).actions).max() > 1e-3  # which starts from pure noise


def test_warm_and_cold_rows_of_a_batch_equal_one_by_one() -> None:
    robot, seen = replace(policy(), approximate=Approximate(warm_steps=2)), observations(3)
    previous = [None, Previous(robot.act(seen[0]), 1), Previous(robot.act(seen[1]), 3)]
    together = robot.act_batch(seen, [4, 5, 6], previous=previous)[0]
    for row, chunk in enumerate(together):
        alone = robot.act_batch([seen[row]], [4 + row], previous=[previous[row]])[0][0]
        assert np.abs(chunk.actions - alone.actions).max() < 1e-5


def test_approximations_come_with_the_checkpoint_and_must_fit_it(tmp_path: Path) -> None:
    save(tiny.checkpoint(), tmp_path / "saved")
    loaded = Policy.load(tmp_path / "saved", robot="robot_0", approximate=Approximate(num_steps=1))
    expected = replace(policy(), approximate=Approximate(num_steps=1)).act(observations(1)[0]).actions
    assert np.abs(loaded.act(observations(1)[0]).actions - expected).max() < 1e-4  # weights lie elsewhere in memory
    with pytest.raises(ValueError, match="warm_steps is 4, and the schedule has only 3 steps"):
        Policy.load(tmp_path / "saved", robot="robot_0", approximate=Approximate(warm_steps=4))
    with pytest.raises(ValueError, match="table JOINT denoises actions together with a future"):
        replace(policy(), approximate=Approximate(warm_steps=1), table=JOINT)


def test_previous_chunks_that_do_not_fit_are_refused() -> None:
    robot, seen = replace(policy(), approximate=Approximate(warm_steps=1)), observations(2)
    chunk = robot.act(seen[0])
    for executed in (-1, tiny.HORIZON):
        with pytest.raises(ValueError, match=f"{executed} of 4 actions were executed"):
            Previous(chunk, executed)
    with pytest.raises(ValueError, match="2 observations need as many previous chunks, not 1"):
        robot.act_batch(seen, [0, 1], previous=[Previous(chunk, 1)])
    with pytest.raises(ValueError, match="a previous chunk has 3 actions, and those of this policy have 4"):
        robot.act_batch(seen[:1], [0], previous=[Previous(ActionChunk(chunk.actions[:3]), 1)])
    with pytest.raises(ValueError, match="actions must end in the 3 of"):
        robot.act_batch(seen[:1], [0], previous=[Previous(ActionChunk(chunk.actions[:, :2]), 1)])


def compiled_against_eager() -> list[float]:
    """How far actions are apart, also after weights were changed. In a process of its own."""
    torch.set_num_threads(1)
    robot = policy(checkpoint=tiny.checkpoint(model=tiny.model("two", layers=1)))
    compiled, apart = robot.compiled(), []
    for scale in (1, 2):
        with torch.no_grad():
            robot.checkpoint.model.blocks[0].experts[1].table.mul_(scale)
        pairs = zip(*(each.act_batch(observations(2), range(2))[0] for each in (robot, compiled)), strict=True)
        apart += [float(np.abs(a.actions - b.actions).max()) for a, b in pairs]
    return apart


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="compiling needs a C++ compiler")
def test_a_compiled_policy_acts_the_same_with_the_same_weights() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        apart = pool.apply(compiled_against_eager)
    assert len(apart) == 4
    assert max(apart) < 1e-5, apart
