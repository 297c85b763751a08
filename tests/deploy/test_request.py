"""A request as one function of tensors is the policy, but for how a picture is rounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from actwam.data.loader import Window
from actwam.data.transforms import Resample, Slot, fit
from actwam.deploy.request import Request, Resize, stacked, unstacked
from actwam.policy import Policy
from actwam.sampler import Approximate, Exact
from actwam.tokens import ACTION_CENTERED, JOINT, VIDEO_FIRST, Table
from actwam.types import Group, Observation


def policy(table: Table = ACTION_CENTERED, robot: int = 0, experts: str = "two") -> Policy:
    checkpoint = tiny.checkpoint(experts, table=table)
    return Policy(checkpoint, checkpoint.robot(f"robot_{robot}"), table, torch.device("cpu"))


def ask(policy: Policy, request: Request, seen: list[Observation], seeds: list[int]) -> np.ndarray:
    encoded, cameras = policy.encode(seen), policy.robot.embodiment.cameras
    noise = policy.noise(request.denoised, encoded, seeds)
    with torch.no_grad():
        actions = request(
            [torch.from_numpy(np.stack([s.images[cameras[slot.name]] for s in seen])) for slot in request.layout.slots],
            torch.from_numpy(np.stack([s.state for s in seen])),
            stacked(encoded.text),
            [noise[group] for group in request.denoised],
        )
    return actions.numpy()


@pytest.mark.parametrize("resample", ["area", "bilinear"])
@pytest.mark.parametrize(
    ("size", "slot"),
    [((48, 64), (24, 32)), ((48, 64), (13, 17)), ((30, 50), (40, 20)), ((21, 9), (21, 9)), ((10, 12), (25, 30))],
)
def test_a_resize_is_that_of_training_but_for_rounding(
    resample: Resample, size: tuple[int, int], slot: tuple[int, int]
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    expected = fit(frames, *slot, resample).astype(int)
    found = Resize(size, Slot("head", 0, 0, *slot), resample)(torch.from_numpy(frames).float()).transpose(2, 3).numpy()
    assert np.abs(found - expected).max() <= (2 if slot > size else 1)
    assert np.abs(found - expected).mean() < (0.1 if slot > size else 0.02)


@pytest.mark.parametrize("table", [ACTION_CENTERED, JOINT, VIDEO_FIRST], ids=lambda table: table.name)
@pytest.mark.parametrize("robot", [0, 1])
def test_a_request_acts_as_the_policy(table: Table, robot: int) -> None:
    made = policy(table, robot)
    seen = [tiny.observation(seed, made.robot.embodiment) for seed in range(3)]
    expected = np.stack([chunk.actions for chunk in made.act_batch(seen, [4, 5, 6])[0]])
    scale = np.abs(expected).max()
    assert np.abs(ask(made, Request(made), seen, [4, 5, 6]) - expected).max() < 1e-2 * scale


def test_where_no_picture_is_resized_the_actions_are_equal() -> None:
    made = policy()
    layout = tiny.LAYOUT
    slots = {slot.name: slot for slot in layout.slots}
    assert (
        len({(slot.height, slot.width) for slot in slots.values()}) > 1
    )  # so only one camera can be of its slot's size
    seen = tiny.observation()
    grey = replace(seen, images={name: np.full_like(image, 90) for name, image in seen.images.items()})
    expected = made.act(grey, seed=3).actions
    assert np.abs(ask(made, Request(made), [grey], [3])[0] - expected).max() < 1e-5


def test_it_is_the_same_when_asked_again_and_with_every_speed_up_off() -> None:
    made, seen = policy(), [tiny.observation()]
    request = Request(made)
    first = ask(made, request, seen, [0])
    assert np.array_equal(ask(made, request, seen, [0]), first)
    off = replace(made, exact=Exact(context=False, first_step=False, levels=False, room=False))
    assert np.abs(ask(off, Request(off), seen, [0]) - first).max() < 1e-5


def test_instructions_survive_being_one_tensor() -> None:
    text = policy().encode([tiny.observation(), tiny.observation(1)]).text
    again = unstacked(stacked(text))
    for layer, other in zip(text.layers, again.layers, strict=True):
        for (k, v), (same_k, same_v) in zip(layer, other, strict=True):
            assert torch.equal(k, same_k)
            assert torch.equal(v, same_v)


def test_a_policy_that_looks_back_has_no_request() -> None:
    window = Window(action_horizon=tiny.HORIZON, future_offsets=tiny.OFFSETS, history_offsets=(-4, -2))
    checkpoint = tiny.checkpoint(window=window, table=JOINT)
    with pytest.raises(ValueError, match="looks back has no request of fixed shapes"):
        Request(Policy(checkpoint, checkpoint.robot("robot_0"), JOINT, torch.device("cpu")))


def test_a_policy_that_approximates_has_no_request() -> None:
    hurried = replace(policy(), approximate=Approximate(num_steps=1))
    with pytest.raises(ValueError, match="a package holds no approximations"):
        Request(hurried)


def test_what_is_denoised_follows_from_the_table() -> None:
    assert Request(policy()).denoised == [Group.ACTION]
    assert Request(policy(JOINT)).denoised == [Group.ACTION, Group.FUTURE]
