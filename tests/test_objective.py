"""What each mode teaches, and that nothing else is taught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from actwam.objective import NoisyBatch, ObjectiveConfig, add_noise, losses, masked_mse
from actwam.types import Batch, Group, Mode

HIST, OBS, STATE, ACT, FUT = Group.HISTORY, Group.OBSERVATION, Group.STATE, Group.ACTION, Group.FUTURE
CONFIG = ObjectiveConfig()


def batch(*modes: Mode, **changes: Tensor) -> Batch:
    """Robot 1 (the second sample, the fourth, ...) has two of the three action dimensions."""
    B = len(modes)
    valid = torch.ones(B, tiny.HORIZON, 3, dtype=torch.bool)
    valid[1::2, :, 2] = False
    made = Batch(
        modes=modes,
        history=torch.zeros(B, tiny.CHANNELS, 0, 2, 4),
        history_valid=torch.ones(B, 0, dtype=torch.bool),
        state_valid=torch.ones(B, dtype=torch.bool),
        future_valid=torch.ones(B, 2, dtype=torch.bool),
        latents=tiny.noise_of(0, B, tiny.CHANNELS, 3, 2, 4),
        state=tiny.noise_of(1, B, 3),
        action=tiny.noise_of(2, B, tiny.HORIZON, 3) * valid,
        action_valid=valid,
        instructions=("lift it",) * B,
        embodiment=tiny.embodiments(B),
    )
    return replace(made, **changes)


def noisy(made: Batch, seed: int = 0, config: ObjectiveConfig = CONFIG, noisy_padding: bool = False) -> NoisyBatch:
    return add_noise(made, config, tiny.draws(seed, made), noisy_padding).without_absent()


def test_observation_and_state_are_given_clean() -> None:
    made = batch(Mode.POLICY, Mode.WORLD)
    out = noisy(made)
    assert torch.equal(out.values[OBS], made.latents[:, :, :1])
    assert torch.equal(out.values[STATE], made.state[:, None])
    assert not out.sigmas[OBS].any()
    assert not out.sigmas[STATE].any()
    assert OBS not in out.targets
    assert STATE not in out.targets


def test_video_has_no_state_and_no_action() -> None:
    out = noisy(batch(Mode.VIDEO, Mode.VIDEO))
    assert set(out.values) == set(out.sigmas) == {OBS, FUT}
    assert set(out.targets) == set(out.weighs) == {FUT}
    assert out.present == {}
    assert (out.sigmas[FUT] > 0).all()


def test_video_among_others_has_its_state_and_action_masked_out() -> None:
    out = noisy(batch(Mode.VIDEO, Mode.POLICY, Mode.WORLD, Mode.VIDEO))
    expected = torch.tensor([False, True, True, False])
    assert set(out.values) == {OBS, STATE, ACT, FUT}
    assert set(out.present) == {STATE, ACT}
    assert torch.equal(out.present[STATE], expected)
    assert torch.equal(out.present[ACT], expected)
    assert not out.weighs[ACT][[0, 2, 3]].any()
    assert out.weighs[ACT][1].any()


def test_world_gives_the_action_and_inverse_the_future() -> None:
    made = batch(Mode.WORLD, Mode.INVERSE, Mode.POLICY)
    out = noisy(made)
    assert out.sigmas[ACT].tolist()[0] == 0
    assert torch.equal(out.values[ACT][0], made.action[0])
    assert out.sigmas[FUT].tolist()[1] == 0
    assert torch.equal(out.values[FUT][1], made.latents[1, :, 1:])
    assert (out.sigmas[ACT][1:] > 0).all()
    assert (out.sigmas[FUT][[0, 2]] > 0).all()
    assert not out.weighs[ACT][0].any()
    assert not out.weighs[FUT].expand(3, tiny.CHANNELS, 2, 2, 4)[1].any()


def test_noise_levels_of_action_and_future_are_independent_and_shifted() -> None:
    B = 4000
    wide = replace(
        batch(Mode.POLICY),
        modes=(Mode.POLICY,) * B,
        history=torch.zeros(B, 1, 0, 1, 1),
        history_valid=torch.ones(B, 0, dtype=torch.bool),
        state_valid=torch.ones(B, dtype=torch.bool),
        latents=torch.zeros(B, 1, 2, 1, 1),
        future_valid=torch.ones(B, 1, dtype=torch.bool),
        state=torch.zeros(B, 1),
        action=torch.zeros(B, 1, 1),
        action_valid=torch.ones(B, 1, 1, dtype=torch.bool),
        instructions=("lift it",) * B,
        embodiment=torch.zeros(B, dtype=torch.long),
    )
    out = noisy(wide, config=ObjectiveConfig(action_shift=5.0, future_shift=1.0))
    levels = torch.stack([out.sigmas[ACT], out.sigmas[FUT]])
    assert abs(float(torch.corrcoef(levels)[0, 1])) < 0.05
    assert float(out.sigmas[ACT].mean()) == pytest.approx(0.75, abs=0.02)
    assert float(out.sigmas[FUT].mean()) == pytest.approx(0.5, abs=0.02)


def test_noisy_value_and_target_belong_together() -> None:
    """noisy = clean + sigma * velocity, whatever the noise was."""
    made = batch(Mode.POLICY, Mode.POLICY)
    out = noisy(made)
    for group, clean in ((ACT, made.action), (FUT, made.latents[:, :, 1:])):
        sigma = out.sigmas[group].reshape(-1, *[1] * (clean.ndim - 1))
        assert torch.allclose(out.values[group], clean + sigma * out.targets[group], atol=1e-6)
        assert float((out.values[group] - clean).abs().max()) > 0.1


def test_the_generator_alone_decides() -> None:
    made = batch(Mode.POLICY, Mode.WORLD, Mode.VIDEO)
    first, again, other = noisy(made, 5), noisy(made, 5), noisy(made, 6)
    assert all(torch.equal(first.values[group], again.values[group]) for group in first.values)
    assert not torch.equal(first.values[ACT], other.values[ACT])
    as_policy = noisy(batch(Mode.POLICY, Mode.POLICY, Mode.POLICY), 5)
    assert torch.equal(first.targets[FUT], as_policy.targets[FUT])


def test_padded_dimensions_stay_zero() -> None:
    out = noisy(batch(Mode.POLICY, Mode.POLICY))
    assert not out.values[ACT][1, :, 2].any()
    assert out.values[ACT][0, :, 2].all()


def test_padded_dimensions_carry_noise_where_the_weights_want_it() -> None:
    made = batch(Mode.POLICY, Mode.POLICY, Mode.WORLD, Mode.WORLD)
    quiet, loud = noisy(made), noisy(made, noisy_padding=True)
    assert loud.values[ACT][1, :, 2].all()
    assert loud.targets[ACT][1, :, 2].all()
    assert not loud.values[ACT][3].ne(made.action[3]).any()  # given clean, padding and all
    assert torch.equal(loud.values[ACT][..., :2], quiet.values[ACT][..., :2])
    assert torch.equal(loud.values[FUT], quiet.values[FUT])
    assert all(torch.equal(loud.weighs[group], quiet.weighs[group]) for group in quiet.weighs)


def test_one_noise_level_may_be_shared_by_action_and_future() -> None:
    made = batch(*(Mode.POLICY,) * 6, Mode.WORLD, Mode.INVERSE)
    shared, apart = noisy(made, config=ObjectiveConfig(shared_sigma=True)), noisy(made)
    assert torch.equal(shared.sigmas[FUT][:6], shared.sigmas[ACT][:6])
    assert torch.equal(shared.sigmas[ACT], apart.sigmas[ACT])  # with the action's shift, whatever the future's
    assert not torch.equal(apart.sigmas[FUT][:6], apart.sigmas[ACT][:6])
    assert (shared.sigmas[ACT] > 0).tolist() == [True] * 6 + [False, True]
    assert (shared.sigmas[FUT] > 0).tolist() == [True] * 7 + [False]
    assert torch.equal(shared.targets[FUT], apart.targets[FUT])


def test_a_window_without_any_future_has_no_future_group() -> None:
    made = batch(Mode.POLICY, Mode.POLICY, future_valid=torch.tensor([[True, False], [False, False]]))
    out = noisy(made)
    assert torch.equal(out.present[FUT], torch.tensor([True, False]))
    counted = out.weighs[FUT].expand_as(out.targets[FUT])
    assert counted[0, :, 0].all()
    assert not counted[0, :, 1].any()
    assert not counted[1].any()
    nothing = noisy(replace(made, future_valid=torch.zeros(2, 2, dtype=torch.bool)))
    assert FUT not in nothing.values


def test_history_is_given_clean_and_says_which_moments_there_are() -> None:
    valid = torch.tensor([[False, True], [True, True]])
    made = batch(Mode.POLICY, Mode.VIDEO, history=tiny.noise_of(7, 2, tiny.CHANNELS, 2, 2, 4), history_valid=valid)
    out = noisy(made)
    assert torch.equal(out.values[HIST], made.history)
    assert torch.equal(out.present[HIST], valid)
    assert not out.sigmas[HIST].any()
    assert HIST not in out.targets
    assert HIST not in out.weighs
    whole = noisy(replace(made, history_valid=torch.ones(2, 2, dtype=torch.bool)))
    assert HIST in whole.values
    assert HIST not in whole.present
    assert HIST not in noisy(replace(made, history_valid=torch.zeros(2, 2, dtype=torch.bool))).values
    assert all(
        torch.equal(out.values[group], noisy(batch(Mode.POLICY, Mode.VIDEO)).values[group]) for group in (ACT, FUT)
    )


def test_a_state_that_is_not_known_or_dropped_is_not_there() -> None:
    made = batch(Mode.POLICY, Mode.POLICY, Mode.WORLD, state_valid=torch.tensor([True, False, True]))
    assert noisy(made).present[STATE].tolist() == [True, False, True]
    assert STATE not in noisy(replace(made, state_valid=torch.zeros(3, dtype=torch.bool))).values
    half = ObjectiveConfig(state_dropout=0.5)
    many = batch(*(Mode.POLICY,) * 400)
    felt = noisy(many, config=half).present[STATE]
    assert 160 < int(felt.sum()) < 240
    assert torch.equal(felt, noisy(many, config=half).present[STATE])
    assert STATE not in noisy(many, config=ObjectiveConfig(state_dropout=1.0)).values
    assert torch.equal(noisy(many, config=half).values[FUT], noisy(many).values[FUT])


def predictions(out: NoisyBatch) -> dict[Group, Tensor]:
    return {group: tiny.noise_of(9, *target.shape).requires_grad_() for group, target in out.targets.items()}


@pytest.mark.parametrize("noisy_padding", [False, True])
def test_padding_and_steps_past_the_end_carry_exactly_no_loss_and_no_gradient(noisy_padding: bool) -> None:
    valid = torch.ones(2, tiny.HORIZON, 3, dtype=torch.bool)
    valid[0, 2:] = False
    valid[1, :, 2] = False
    made = batch(Mode.POLICY, Mode.POLICY, action_valid=valid, future_valid=torch.tensor([[True, False], [True, True]]))
    out = noisy(made, noisy_padding=noisy_padding)
    predicted = predictions(out)
    before = losses(predicted, out, CONFIG)
    before["loss"].backward()
    grads = {group: predicted[group].grad for group in predicted}
    assert grads[ACT] is not None
    assert grads[FUT] is not None
    assert not grads[ACT][~valid].any()
    assert grads[ACT][valid].all()
    assert not grads[FUT][0, :, 1].any()
    assert grads[FUT][0, :, 0].all()
    with torch.no_grad():
        predicted[ACT][~valid] = 1e6
        predicted[FUT][0, :, 1] = torch.nan
    after = losses(predicted, out, CONFIG)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_masked_mse_is_mse_over_what_weighs() -> None:
    a, b = tiny.noise_of(0, 3, 4, 2), tiny.noise_of(1, 3, 4, 2)
    everything = torch.ones(3, 4, 2, dtype=torch.bool)
    assert torch.allclose(masked_mse(a, b, everything), torch.nn.functional.mse_loss(a, b))
    some = tiny.noise_of(2, 3, 4, 2) > 0
    assert torch.allclose(masked_mse(a, b, some), (a - b)[some].square().mean())
    assert float(masked_mse(a, b, ~everything)) == 0
    per_sample = torch.tensor([True, False, True])[:, None, None]
    assert torch.allclose(masked_mse(a, b, per_sample), (a - b)[[0, 2]].square().mean())


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    out = noisy(batch(Mode.POLICY, Mode.WORLD))
    predicted = {group: value.detach() for group, value in predictions(out).items()}
    parts = losses(predicted, out, ObjectiveConfig(action_weight=3.0, future_weight=0.5))
    assert set(parts) == {"loss", "loss_action", "loss_future"}
    assert float(parts["loss"]) == pytest.approx(3 * float(parts["loss_action"]) + float(parts["loss_future"]) / 2)
    video = noisy(batch(Mode.VIDEO))
    assert set(losses(predictions(video), video, CONFIG)) == {"loss", "loss_future"}


def test_an_exact_prediction_has_no_loss() -> None:
    out = noisy(batch(Mode.POLICY, Mode.INVERSE, Mode.VIDEO))
    assert float(losses(out.targets, out, CONFIG)["loss"]) == 0


def test_some_policy_batches_teach_the_action_alone() -> None:
    half = ObjectiveConfig(future_share=0.5)
    made = batch(Mode.POLICY, Mode.POLICY)
    with_future = [FUT in noisy(made, seed, half).values for seed in range(200)]
    assert 70 < sum(with_future) < 130
    alone = noisy(made, with_future.index(False), half)
    assert set(alone.values) == {OBS, STATE, ACT}
    assert set(losses(predictions(alone), alone, half)) == {"loss", "loss_action"}
    assert all(FUT in noisy(made, seed).values for seed in range(20))


@pytest.mark.parametrize("mode", [Mode.VIDEO, Mode.WORLD, Mode.INVERSE])
def test_a_batch_that_needs_its_future_keeps_it(mode: Mode) -> None:
    never = ObjectiveConfig(future_share=0.0)
    assert all(FUT in noisy(batch(Mode.POLICY, mode), seed, never).values for seed in range(20))


PREFIX = ObjectiveConfig(action_prefix=3, prefix_share=1.0)


def test_a_prefix_is_given_clean_at_level_zero_and_not_taught() -> None:
    made = batch(*(Mode.POLICY, Mode.POLICY, Mode.WORLD, Mode.INVERSE) * 50)
    out, without = noisy(made, config=PREFIX), noisy(made)
    given = out.sigmas[ACT] == 0
    assert out.level(ACT).shape == (200, tiny.HORIZON)
    assert out.level(FUT).shape == (200, 1)
    counts = given.sum(1)
    policy = torch.arange(200) % 4 < 2
    assert counts[policy].unique().tolist() == [0, 1, 2, 3]
    assert all(20 - 12 < int((counts[policy] == n).sum()) < 40 for n in range(4))
    assert torch.equal(given, torch.arange(tiny.HORIZON) < counts[:, None])  # the first ones, and no others
    assert torch.equal(out.values[ACT][given], made.action[given])
    assert not out.weighs[ACT][given].any()
    # everything else is as without a prefix, whose number is drawn last
    assert torch.equal(out.values[ACT][~given], without.values[ACT][~given])
    assert torch.equal(out.weighs[ACT][~given], without.weighs[ACT][~given])
    assert torch.equal(out.sigmas[ACT][~given], without.sigmas[ACT][:, None].expand_as(given)[~given])
    assert torch.equal(out.values[FUT], without.values[FUT])
    assert not given[3::4].any()  # inverse dynamics is told no action


def test_a_share_of_the_samples_is_given_no_prefix() -> None:
    made = batch(*(Mode.POLICY,) * 400)
    half = noisy(made, config=ObjectiveConfig(action_prefix=3))
    counts = (half.sigmas[ACT] == 0).sum(1)
    assert 200 < int((counts == 0).sum()) < 300  # 250 expected: half, and a quarter of the others
    always = (noisy(made, config=PREFIX).sigmas[ACT] == 0).sum(1)
    assert torch.equal(counts[counts > 0], always[counts > 0])
    with pytest.raises(ValueError, match="prefix_share must be above 0 and at most 1, not 0"):
        ObjectiveConfig(prefix_share=0.0)


def test_a_prefix_ends_with_the_episode() -> None:
    made = batch(*(Mode.POLICY,) * 40)
    valid = made.action_valid.clone()
    valid[:, 1:] = False
    out = noisy(replace(made, action_valid=valid), config=PREFIX)
    assert (out.sigmas[ACT][:, 1:] > 0).all()
    assert not out.weighs[ACT][:, 1:].any()
    assert (out.sigmas[ACT][:, 0] == 0).any()
