"""The size of a model, as it stands in `config.json` of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from actwam.types import Group


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """One residual stream, its width, and the groups whose tokens live in it."""

    width: int
    ffn_width: int
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Widths and depths. All experts share the `heads * head_width` channels of self-attention.

    `patch` is height and width in latent pixels of one visual token. `state_width` and `action_width` are the
    padded widths of the widest robot; `embodiments` is how many robots have projectors of their own. With
    `share_state_encoder` the action encoder also encodes the state, as in the official GWP-0. With `precondition` the
    network predicts what the noisy value alone does not tell (`flow.precondition`); the official models do without.
    With `noisy_padding` the action dimensions that a robot lacks carry noise, in training and in acting, as the
    official weights had it; otherwise they are zero.
    """

    layers: int
    heads: int
    head_width: int
    experts: tuple[ExpertConfig, ...]
    latent_channels: int
    patch: tuple[int, int]
    text_width: int
    text_tokens: int
    state_width: int
    action_width: int
    embodiments: int = 1
    projector_widths: tuple[int, int] = (128, 256)
    share_state_encoder: bool = False
    precondition: bool = False
    noisy_padding: bool = False
    frequencies: int = 256
    eps: float = 1e-6

    def __post_init__(self) -> None:
        routed = [group for expert in self.experts for group in expert.groups]
        if sorted(routed) != sorted(Group):
            raise ValueError(f"every group must live in exactly one expert, but the experts hold {routed}")
        if self.share_state_encoder and self.state_width != self.action_width:
            raise ValueError(
                f"share_state_encoder needs equal widths, not state {self.state_width} and action {self.action_width}"
            )

    def expert_of(self, group: Group) -> int:
        """Index of the expert in whose stream the tokens of `group` live."""
        return next(i for i, expert in enumerate(self.experts) if group in expert.groups)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TransformerConfig:
        experts = tuple(
            ExpertConfig(**{**expert, "groups": tuple(Group(group) for group in expert["groups"])})
            for expert in data["experts"]
        )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**{**values, "experts": experts})


def one_expert(width: int, ffn_width: int) -> tuple[ExpertConfig, ...]:
    """All groups in one stream, as in GWP-0."""
    return (ExpertConfig(width=width, ffn_width=ffn_width, groups=tuple(Group)),)


def two_experts(visual: tuple[int, int], action: tuple[int, int]) -> tuple[ExpertConfig, ...]:
    """(width, ffn width) of a visual and of an action stream, as in GWP-0.5 (mixture of transformers)."""
    return (
        ExpertConfig(width=action[0], ffn_width=action[1], groups=(Group.STATE, Group.ACTION)),
        ExpertConfig(width=visual[0], ffn_width=visual[1], groups=(Group.HISTORY, Group.OBSERVATION, Group.FUTURE)),
    )
