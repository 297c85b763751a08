"""Learning and computing: what is new, what gets gradients, bfloat16, compiled blocks, preconditioning."""

from __future__ import annotations

import copy
import multiprocessing
import shutil

import pytest
import tiny
import torch
from tiny import difference, run

from actwam import flow
from actwam.model.transformer import WorldActionTransformer
from actwam.tokens import ACTION_CENTERED, VIDEO_FIRST
from actwam.types import Group

OBS, ACT, FUT = Group.OBSERVATION, Group.ACTION, Group.FUTURE


@pytest.fixture(params=["one", "two"], scope="module")
def model(request: pytest.FixtureRequest) -> WorldActionTransformer:
    return tiny.model(request.param)


def test_every_parameter_learns_in_joint_training(model: WorldActionTransformer) -> None:
    trained = copy.deepcopy(model)
    out = run(trained, ACTION_CENTERED, tiny.inputs(B=4).values())
    (out[ACT].square().mean() + out[FUT].square().mean()).backward()
    silent = [n for n, p in trained.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []
    outermost = {n: p.grad for n, p in trained.named_parameters() if n.split(".")[-2] in ("first", "last")}
    robots = [grad for n, grad in outermost.items() if grad is not None and n.endswith("weight") and grad.ndim == 3]
    assert len(robots) == 3
    assert all(bool(grad[robot].any()) for grad in robots for robot in range(2))


def test_a_new_model_predicts_nothing_and_begins_as_the_identity() -> None:
    torch.manual_seed(0)
    model = WorldActionTransformer(tiny.config("two"))
    out = run(model, ACTION_CENTERED, tiny.inputs().values())
    assert torch.equal(out[ACT], torch.zeros_like(out[ACT]))
    assert torch.equal(out[FUT], torch.zeros_like(out[FUT]))
    assert not any(block.experts[0].table[[2, 5]].any() for block in model.blocks)


def test_bfloat16_weights_and_autocast_are_close_to_float32(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    exact = run(model, ACTION_CENTERED, inputs.values())
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(model, ACTION_CENTERED, inputs.values())
    small = run(copy.deepcopy(model).bfloat16(), ACTION_CENTERED, inputs.values())
    for group in (ACT, FUT):
        for other in (cast[group], small[group]):
            assert other.dtype == torch.float32
            assert difference(exact[group], other) < 0.1 * float(exact[group].detach().abs().max())


def test_a_model_first_used_while_acting_can_be_trained() -> None:
    model = tiny.model(patch=(1, 2))  # an arrangement of tokens that no other test has
    inputs = tiny.inputs()
    with torch.inference_mode():
        run(model, VIDEO_FIRST, inputs.values())
    out = run(model, VIDEO_FIRST, inputs.values())
    (out[ACT].sum() + out[FUT].sum()).backward()
    with torch.autocast("cpu", torch.bfloat16):
        run(model, VIDEO_FIRST, inputs.values())[ACT].sum().backward()


def compiled_against_eager() -> dict[str, float]:
    """The largest differences of outputs and gradients. Runs in a process of its own: see the test below."""
    torch.set_num_threads(1)
    model = tiny.model(layers=1)
    compiled = copy.deepcopy(model)
    for block in compiled.blocks:
        block.compile(dynamic=False)
    sides, inputs = [], tiny.inputs()
    for one in (model, compiled):
        out = run(one, ACTION_CENTERED, [inputs[OBS], inputs[ACT]])
        out[ACT].square().mean().backward()
        grads = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
        sides.append({**out, **grads})
    eager, fast = sides
    assert set(eager) == set(fast)
    return {str(name): difference(eager[name], fast[name]) for name in eager}


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="compiling needs a C++ compiler")
def test_compiled_blocks_equal_eager_ones() -> None:
    """In a spawned process, where the shape checks of the tests are not in the way of the compiler."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        differences = pool.apply(compiled_against_eager)
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("patch", [(1, 1), (2, 2)])
def test_preconditioning_adds_the_linear_guess_to_what_the_network_says(patch: tuple[int, int]) -> None:
    items = list(tiny.inputs(sigma={Group.ACTION: 0.3, Group.FUTURE: 0.8}).values())
    plain, skipping = (tiny.model(patch=patch, precondition=on) for on in (False, True))
    text, robots = tiny.text(plain), tiny.embodiments()
    said, velocities = (model(items, text, robots, ACTION_CENTERED) for model in (plain, skipping))
    for item in items[2:]:
        skip, scale = flow.precondition(item.sigma[0, 0])
        expected = skip * item.value + scale * said[item.group]
        torch.testing.assert_close(velocities[item.group], expected)
