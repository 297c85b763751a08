"""What a batch teaches: noise levels by mode, noisy inputs, and masked velocity losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from actwam import flow
from actwam.draws import Draws
from actwam.types import Batch, Group, Mode

STATE_MODES = frozenset({Mode.WORLD, Mode.POLICY, Mode.INVERSE})
NOISY_ACTION = frozenset({Mode.POLICY, Mode.INVERSE})
NOISY_FUTURE = frozenset({Mode.VIDEO, Mode.WORLD, Mode.POLICY})


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Loss weights and noise. The GigaWorld-Policy paper weighs action to video 5:1; its 0.5 code shifts the
    action's noise by 5 and the video's by 2, each drawn independently.
    """

    action_weight: float = 5.0
    future_weight: float = 1.0
    action_shift: float = 5.0
    future_shift: float = 2.0
    future_share: float = 1.0
    """Share of the batches whose samples of mode POLICY carry the future. The others teach them the action alone, at
    less cost."""
    shared_sigma: bool = False
    """One noise level for action and future, with the action's shift, as the released trainer of GWP-0 draws it."""
    state_dropout: float = 0.0
    """Share of the samples that are taught without their state: what learns from videos that have none needs it."""
    action_prefix: int = 0
    """At most so many of the first actions are given clean to a sample of mode POLICY, and not taught: those that a
    robot executes while it waits for the others (arXiv 2512.05964). How many is drawn evenly from 0 on."""
    prefix_share: float = 0.5
    """Share of the samples of which this is drawn; the others are given none, as the first chunk of an episode is. The
    paper has 1."""

    def __post_init__(self) -> None:
        if self.action_prefix < 0:
            raise ValueError(f"action_prefix must be at least 0, not {self.action_prefix}")
        if not 0 < self.prefix_share <= 1:
            raise ValueError(f"prefix_share must be above 0 and at most 1, not {self.prefix_share:g}")


@dataclass(frozen=True)
class Tally:
    """What there is in a batch, whichever processes hold its parts: how many samples have a group, how many teach it,
    and how many of its elements count in the loss. By the order of `Group`.
    """

    present: tuple[int, ...]
    taught: tuple[int, ...]
    elements: tuple[int, ...]

    def numbers(self) -> list[int]:
        """All of them: those of parts are added to those of the whole."""
        return [*self.present, *self.taught, *self.elements]

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> Tally:
        """The inverse of `numbers`."""
        n = len(Group)
        return cls(tuple(numbers[:n]), tuple(numbers[n : 2 * n]), tuple(numbers[2 * n :]))


@dataclass(frozen=True)
class NoisyBatch:
    """A batch with noise drawn: per group its noisy value, its noise level, (B,) or (B, m) where each of m tokens has
    its own, its target velocity, and who has it.

    `present[group]` is False for samples in which the group does not exist (history: for moments, (B, R)); `taught` is
    how many samples teach a group; `weighs[group]` marks the elements that count in the loss, broadcastable to the
    group's value.
    """

    values: dict[Group, Float[Tensor, "B ..."]]
    sigmas: dict[Group, Float[Tensor, "B ..."]]
    targets: dict[Group, Float[Tensor, "B ..."]]
    present: dict[Group, Bool[Tensor, "B ..."]]
    weighs: dict[Group, Bool[Tensor, "B ..."]]
    taught: dict[Group, int]

    def level(self, group: Group) -> Float[Tensor, "B m"]:
        """The noise level of a group as the model takes it: one for all its tokens (m = 1), or one for each."""
        sigma = self.sigmas[group]
        return sigma.reshape(len(sigma), -1)

    def tensors(self) -> list[tuple[str, dict[Group, Tensor]]]:
        """All tensors, by what they are."""
        return [(name, part) for name, part in vars(self).items() if name != "taught"]

    def tally(self) -> Tally:
        """What there is in this batch."""
        samples = len(self.values[Group.OBSERVATION])
        return Tally(
            tuple(int(self.present[g].sum()) if g in self.present else samples * (g in self.values) for g in Group),
            tuple(self.taught.get(g, 0) for g in Group),
            tuple(int(self.weighs[g].expand_as(self.targets[g]).sum()) if g in self.weighs else 0 for g in Group),
        )

    def without_absent(self, tally: Tally | None = None) -> NoisyBatch:
        """As the model takes it: without the groups that no sample of the whole batch has, or that none of them
        teaches. `tally` is that of the whole batch where this is a part of it.
        """
        tally = tally or self.tally()
        keep = [group for group, count in zip(Group, tally.present, strict=True) if count]
        teach = [group for group, count in zip(Group, tally.taught, strict=True) if count and group in keep]
        return replace(
            self,
            values={group: self.values[group] for group in keep},
            sigmas={group: self.sigmas[group] for group in keep},
            targets={group: target for group, target in self.targets.items() if group in keep},
            present={group: who for group, who in self.present.items() if group in keep and not who.all()},
            weighs={group: who for group, who in self.weighs.items() if group in teach},
        )


def add_noise(batch: Batch, config: ObjectiveConfig, draws: Draws, noisy_padding: bool = False) -> NoisyBatch:
    """Draw noise and noise levels as the modes of the samples ask, for all groups (see `NoisyBatch.without_absent`).

    Padded action dimensions get no noise: they are zero in training, and stay zero in sampling. With `noisy_padding`
    (`TransformerConfig.noisy_padding`) they get it as the others do. They carry no loss in either case.
    All random numbers come from `draws` in a fixed order, whatever the modes are.
    """
    dropped = draws.once() >= config.future_share
    observation, future = batch.latents[:, :, :1], batch.latents[:, :, 1:]
    noising = {
        Group.ACTION: (batch.action, config.action_shift, NOISY_ACTION),
        Group.FUTURE: (future, config.future_shift, NOISY_FUTURE),
    }
    values, sigmas, targets = {}, {}, {}
    level: Float[Tensor, "B"] | None = None
    for group, (clean, flow_shift, noisy_modes) in noising.items():
        noise = draws.normal(clean.shape[1:]).to(clean.device)
        if group is Group.ACTION and not noisy_padding:
            # the first step lies in the episode, so it tells which dimensions exist
            noise = noise * batch.action_valid[:, :1]
        drawn = flow.shift(draws.uniform(), flow_shift).to(clean.device)
        level = drawn if level is None or not config.shared_sigma else level  # the action is drawn first
        sigmas[group] = torch.where(_modes(batch, noisy_modes), level, 0.0)
        values[group] = flow.interpolate(clean, noise, sigmas[group])
        targets[group] = flow.velocity(clean, noise)
    values |= {Group.HISTORY: batch.history, Group.OBSERVATION: observation, Group.STATE: batch.state[:, None]}
    clean = torch.zeros(len(batch.modes), device=observation.device)
    sigmas |= {Group.HISTORY: clean, Group.OBSERVATION: clean, Group.STATE: clean}
    embodied = _modes(batch, STATE_MODES)
    felt = embodied & batch.state_valid
    if config.state_dropout:
        felt &= (draws.uniform() >= config.state_dropout).to(felt.device)
    alone = _modes(batch, frozenset({Mode.POLICY} if dropped else ()))
    weighs = {
        Group.ACTION: batch.action_valid & _modes(batch, NOISY_ACTION)[:, None, None],
        Group.FUTURE: (batch.future_valid & (_modes(batch, NOISY_FUTURE) & ~alone)[:, None])[:, None, :, None, None],
    }
    if config.action_prefix:
        known = _prefix(batch, config, draws)
        values[Group.ACTION] = torch.where(known[:, :, None], batch.action, values[Group.ACTION])
        sigmas[Group.ACTION] = torch.where(known, 0.0, sigmas[Group.ACTION][:, None])
        weighs[Group.ACTION] = weighs[Group.ACTION] & ~known[:, :, None]
    return NoisyBatch(
        values=values,
        sigmas=sigmas,
        targets=targets,
        present={
            Group.HISTORY: batch.history_valid,
            Group.STATE: felt,
            Group.ACTION: embodied,
            Group.FUTURE: batch.future_valid.any(1) & ~alone,
        },
        weighs=weighs,
        taught={group: sum(mode in modes for mode in batch.modes) for group, (_, _, modes) in noising.items()},
    )


def _prefix(batch: Batch, config: ObjectiveConfig, draws: Draws) -> Bool[Tensor, "B K"]:
    """The actions that are given clean: the first ones of a sample of mode POLICY, as far as it has them."""
    count = draws.integers(config.action_prefix + 1)
    if config.prefix_share < 1:
        count *= draws.uniform() < config.prefix_share
    first = torch.arange(batch.action.shape[1], device=batch.action.device) < count[:, None].to(batch.action.device)
    return first & batch.action_valid.any(2) & _modes(batch, frozenset({Mode.POLICY}))[:, None]


def towards(
    batch: Batch,
    actions: Float[Tensor, "B K A"],
    noise: Float[Tensor, "B K A"],
    sigma: Float[Tensor, "B"],
) -> NoisyBatch:
    """The observations of a batch, with `actions` of a teacher in place of its own, at these noise levels. No future.

    Whole chunks count, also past the end of an episode: a teacher has an answer there too. Padded dimensions do not.
    """
    clean, B = torch.zeros_like(sigma), len(sigma)
    values = {
        Group.HISTORY: batch.history,
        Group.OBSERVATION: batch.latents[:, :, :1],
        Group.STATE: batch.state[:, None],
        Group.ACTION: flow.interpolate(actions, noise, sigma),
    }
    return NoisyBatch(
        values=values,
        sigmas={group: sigma if group is Group.ACTION else clean for group in values},
        targets={Group.ACTION: flow.velocity(actions, noise)},
        present={Group.HISTORY: batch.history_valid, Group.STATE: batch.state_valid},
        # the first step lies in the episode, so it tells which dimensions exist
        weighs={Group.ACTION: batch.action_valid[:, :1]},
        taught={Group.ACTION: B},
    )


def masked_mse(
    prediction: Float[Tensor, "B ..."],
    target: Float[Tensor, "B ..."],
    weighs: Bool[Tensor, "B ..."],
    elements: int | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over the elements that weigh, or their sum over `elements`, which are those of a whole batch;
    0 where none does. What does not weigh has no gradient.
    """
    error = torch.where(weighs, prediction - target, 0.0)
    if elements is not None:
        return error.square().sum() / max(1, elements)
    return error.square().sum() / weighs.expand_as(target).sum().clamp(min=1)


def losses(
    velocities: dict[Group, Float[Tensor, "B ..."]],
    noisy: NoisyBatch,
    config: ObjectiveConfig,
    whole: Tally | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """`loss`, the weighted sum, and its parts `loss_action` and `loss_future`, unweighted, for the groups that the
    batch teaches. Of a part of a batch, whose tally is `whole`, they are its shares of those of the whole.
    """
    weights = {Group.ACTION: config.action_weight, Group.FUTURE: config.future_weight}
    elements = dict(zip(Group, whole.elements, strict=True)) if whole else {}
    parts = {
        group: masked_mse(velocities[group], noisy.targets[group], weighs, elements.get(group))
        for group, weighs in noisy.weighs.items()
    }
    total = sum((weights[group] * part for group, part in parts.items()), start=torch.zeros(()))
    return {"loss": total, **{f"loss_{group}": part for group, part in parts.items()}}


def _modes(batch: Batch, modes: frozenset[Mode]) -> Bool[Tensor, "B"]:
    return torch.tensor([mode in modes for mode in batch.modes], device=batch.latents.device)
