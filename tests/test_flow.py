"""Flow matching: the ends, the fixed points, and Euler against a field whose solution is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actwam import flow
from actwam.draws import Draws

CLEAN = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))


def test_sigma_zero_is_clean_and_one_is_noise() -> None:
    assert torch.equal(flow.interpolate(CLEAN, NOISE, torch.zeros(3)), CLEAN)
    assert torch.equal(flow.interpolate(CLEAN, NOISE, torch.ones(3)), NOISE)


def test_every_sample_has_its_own_level() -> None:
    noisy = flow.interpolate(CLEAN, NOISE, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(noisy[0], CLEAN[0])
    assert torch.allclose(noisy[1], 0.75 * CLEAN[1] + 0.25 * NOISE[1])
    assert torch.equal(noisy[2], NOISE[2])


def test_velocity_is_the_derivative_of_the_noisy_value() -> None:
    low, high = (flow.interpolate(CLEAN, NOISE, torch.full((3,), s)) for s in (0.3, 0.7))
    assert torch.allclose((high - low) / 0.4, flow.velocity(CLEAN, NOISE), atol=1e-5)
    assert torch.equal(flow.velocity(CLEAN, NOISE), NOISE - CLEAN)


@given(st.floats(0.1, 20.0))
def test_shift_keeps_the_ends_and_the_order(k: float) -> None:
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = flow.shift(sigma, k)
    assert shifted[0] == 0
    assert shifted[-1] == pytest.approx(1)
    assert (shifted.diff() > 0).all()
    assert ((shifted - sigma) * (1 if k >= 1 else -1) >= -1e-12).all()


def test_shift_by_one_changes_nothing_and_by_five_is_the_formula() -> None:
    sigma = torch.linspace(0, 1, 11)
    assert torch.equal(flow.shift(sigma, 1.0), sigma)
    assert float(flow.shift(torch.tensor(0.5), 5.0)) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("k", [0.0, -1.0])
def test_a_shift_that_is_not_positive_is_refused(k: float) -> None:
    with pytest.raises(ValueError, match="flow_shift must be positive"):
        flow.shift(torch.tensor([0.5]), k)


def test_training_levels_are_uniform_then_shifted_and_follow_the_generator() -> None:
    first, again, other = (flow.shift(Draws((s,), range(20_000)).uniform(), 5.0) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() < 1
    unshifted = first / (5 - 4 * first)  # the inverse of the shift
    assert float(unshifted.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(unshifted.std()) == pytest.approx(12**-0.5, abs=0.01)
    # the docstring's number: with a shift of 5 the mean is not 0.5
    assert float(first.mean()) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("num_steps", [1, 5, 10])
def test_the_schedule_falls_from_one_to_zero(num_steps: int) -> None:
    levels = flow.schedule(num_steps, 5.0)
    assert len(levels) == num_steps + 1
    assert levels[0] == 1
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_the_schedule_is_evenly_spaced_before_the_shift() -> None:
    assert flow.schedule(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert float(flow.schedule(2, 5.0)[1]) == pytest.approx(2.5 / 3)


def test_a_schedule_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        flow.schedule(0, 5.0)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_euler_along_the_exact_velocity_recovers_the_clean_value(num_steps: int) -> None:
    value, levels = NOISE, flow.schedule(num_steps, 5.0).tolist()
    for now, then in pairwise(levels):
        value = flow.euler(value, flow.velocity(CLEAN, NOISE), now, then)
    assert torch.allclose(value, CLEAN, atol=1e-6)


def test_euler_converges_to_the_solution_of_a_curved_field() -> None:
    """d x / d sigma = x has x(0) = x(1) / e: the error falls with the number of steps."""
    errors = []
    for num_steps in (10, 100, 1000):
        value, levels = torch.ones(1, dtype=torch.float64), torch.linspace(1, 0, num_steps + 1).tolist()
        for now, then in pairwise(levels):
            value = flow.euler(value, value, now, then)
        errors.append(abs(float(value) - 0.36787944))
    assert errors[2] < errors[1] / 8 < errors[0] / 64


@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_preconditioning_leaves_the_network_a_target_of_unit_variance_that_noisy_does_not_tell(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 200_000, generator=generator)
    noisy = flow.interpolate(clean, noise, torch.full((200_000,), sigma))
    skip, scale = flow.precondition(torch.tensor(sigma))
    target = (flow.velocity(clean, noise) - skip * noisy) / scale
    assert target.var().item() == pytest.approx(1, abs=0.02)
    assert (target * noisy).mean().item() == pytest.approx(0, abs=0.02)


def test_preconditioning_at_the_ends() -> None:
    skip, scale = flow.precondition(torch.tensor([0.0, 1.0]))
    assert skip.tolist() == [-1, 1]
    assert scale.tolist() == [1, 1]


def test_the_schedule_of_diffusers() -> None:
    """Equal to the scheduler that the released GWP samples with, which shifts its end point twice."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    for shift, steps in ((5.0, 10), (2.0, 4), (1.0, 7), (5.0, 1)):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        assert torch.allclose(flow.diffusers_schedule(steps, shift), scheduler.sigmas, rtol=0, atol=1e-6)
    assert flow.diffusers_schedule(10, 5.0)[-2:].tolist() == pytest.approx([0.024414, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="num_steps"):
        flow.diffusers_schedule(0, 5.0)


def test_extrapolated_steps_are_exact_where_velocity_is_a_line_in_sigma() -> None:
    """The solution is a parabola then: Euler misses it, the two-step method does not."""
    slope = NOISE
    levels = flow.schedule(5, 3.0).tolist()
    value, before = CLEAN + slope / 2, None  # the solution CLEAN + slope * sigma ** 2 / 2, at sigma 1
    for step, (now, then) in enumerate(pairwise(levels)):
        # the first step, before which there is none, is given the mean velocity itself
        velocity = slope * (now + then) / 2 if before is None else slope * now
        if before is not None:
            velocity = flow.mean_velocity(velocity, before, levels[step - 1], now, then)
        value, before = flow.euler(value, velocity, now, then), slope * now
    assert torch.allclose(value, CLEAN, atol=1e-5)


def test_a_held_velocity_is_one_longer_step() -> None:
    """So that step caches which hold it, or the clean value or the noise that it points to, are fewer Euler steps."""
    held = flow.euler(flow.euler(CLEAN, NOISE, 0.8, 0.6), NOISE, 0.6, 0.2)
    assert torch.allclose(held, flow.euler(CLEAN, NOISE, 0.8, 0.2), atol=1e-6)
    clean = CLEAN - 0.8 * NOISE  # what the velocity points to
    first = flow.euler(CLEAN, (CLEAN - clean) / 0.8, 0.8, 0.6)
    assert torch.allclose(flow.euler(first, (first - clean) / 0.6, 0.6, 0.2), held, atol=1e-6)
    for flow_shift in (1.0, 5.0):
        assert torch.allclose(flow.schedule(10, flow_shift)[::2], flow.schedule(5, flow_shift))
