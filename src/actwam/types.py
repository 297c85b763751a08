"""The nouns of ActWAM, and the legend of dimension letters.

Every shape in the code is written with these letters, and with no others:

    B batch            V camera views      T video frames        F latent frames
    Z latent channels  H W picture pixels  h w latent grid       P tokens per latent frame
    L sequence         D width             N heads               K action horizon
    A action width     S state width       M text tokens         E text width
    C colour channels (3, RGB)             G head width          Q queried tokens
    R moments of history

Pictures are uint8 RGB, height before width, values 0..255. Actions and states are float32 in the robot's own
units until `data.normalize` maps them to the model's range. `sigma` is a noise level: 0 is clean, 1 is pure
noise. A mask called `*_valid` is True where data may be used; a mask called `*attention_mask` is True where a
token may look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""


class Group(StrEnum):
    """What a token stands for. `tokens.py` says which group may look at which."""

    HISTORY = "history"
    OBSERVATION = "observation"
    STATE = "state"
    ACTION = "action"
    FUTURE = "future"


class Mode(StrEnum):
    """What a training sample teaches: a choice of which groups are present, given clean, or noisy.

    =========  ===========  ==========  ========================================================
    mode       state        action      future
    =========  ===========  ==========  ========================================================
    VIDEO      absent       absent      predicted (world-model pretraining, video-only clips)
    WORLD      given        given       predicted (action-conditioned world model, AC-WM)
    POLICY     given        predicted   predicted, at its own independent noise level (WAM)
    INVERSE    given        predicted   given (inverse dynamics, pseudo-labels)
    =========  ===========  ==========  ========================================================
    """

    VIDEO = "video"
    WORLD = "world"
    POLICY = "policy"
    INVERSE = "inverse"


@dataclass(frozen=True)
class Observation:
    """What a robot sees and feels at one moment, in its own units.

    `images` maps the camera's name to its picture; `instruction` is the sentence that says what to do.
    """

    images: Mapping[str, UInt8[np.ndarray, "H W 3"]]
    state: Float[np.ndarray, "S"]
    instruction: str


@dataclass(frozen=True)
class ActionChunk:
    """The next K actions, in the robot's own units, first action first."""

    actions: Float[np.ndarray, "K A"]


@dataclass(frozen=True)
class Previous:
    """The chunk that was returned last in an episode, of which `executed` actions have been executed since.

    So many as are `committed` of those that remain will be executed before the next chunk is there, which therefore
    begins with exactly them. Raises ValueError unless some of it remains, and as much as is committed, but no whole
    chunk.
    """

    chunk: ActionChunk
    executed: int
    committed: int = 0

    def __post_init__(self) -> None:
        K = len(self.chunk.actions)
        if not 0 <= self.executed < K:
            raise ValueError(
                f"{self.executed} of {K} actions were executed: a previous chunk is one of which some remain; where "
                "none do, give None"
            )
        if not 0 <= self.committed <= min(K - self.executed, K - 1):
            raise ValueError(
                f"{self.committed} actions are committed, and of {K} in the previous chunk {self.executed} were "
                "executed: commit to what remains, and not to a whole chunk; ask earlier, or predict more actions"
            )

    def continued(self) -> Float[np.ndarray, "K A"]:
        """The actions that remain, and the last of them again until there are K."""
        actions = self.chunk.actions
        return actions[np.minimum(np.arange(len(actions)) + self.executed, len(actions) - 1)]


@dataclass(frozen=True)
class Batch:
    """B training windows on one device: past frames, the present one and its state, the next K actions, F future
    frames.

    `latents` holds the present frame at index 0 and then the future frames, `history` those before it, oldest first.
    `state` and `action` are normalised and padded to the model's widths. `action_valid` is False past the end of the
    episode and in padded dimensions, `future_valid` is False for frames past the end, `history_valid` for those before
    the beginning. `state_valid` is False for windows of which no state is known.
    """

    modes: tuple[Mode, ...]
    history: Float[Tensor, "B Z R h w"]
    history_valid: Bool[Tensor, "B R"]
    future_valid: Bool[Tensor, "B F"]
    latents: Float[Tensor, "B Z 1+F h w"]
    state_valid: Bool[Tensor, "B"]
    state: Float[Tensor, "B S"]
    action: Float[Tensor, "B K A"]
    action_valid: Bool[Tensor, "B K A"]
    instructions: tuple[str, ...]
    embodiment: Int[Tensor, "B"]

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on `device`."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Context:
    """Encoded clean groups: their keys and values in every layer. A value, never hidden state of a module.

    `groups[i]` names the group of the i-th run of tokens along L, `lengths[i]` how many tokens it has.
    `keys[layer]` and `values[layer]` hold them after normalisation and rotary embedding. Behind them there may be room
    for the tokens that are denoised: whoever made it writes there, and what stands there means nothing to others.
    """

    groups: tuple[Group, ...]
    lengths: tuple[int, ...]
    keys: tuple[Float[Tensor, "B N L G"], ...]
    values: tuple[Float[Tensor, "B N L G"], ...]

    def with_room(self, tokens: int) -> Context:
        """A copy with room for so many tokens behind."""

        def roomy(side: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(torch.cat([x, x.new_empty(*x.shape[:2], tokens, x.shape[3])], dim=2) for x in side)

        return Context(self.groups, self.lengths, roomy(self.keys), roomy(self.values))

    @classmethod
    def stack(cls, contexts: Sequence[Context]) -> Context:
        """Contexts of the same groups, as many tokens of each, one after another as one batch."""
        first = contexts[0]
        if len(contexts) == 1:
            return first
        keys = zip(*(context.keys for context in contexts), strict=True)
        values = zip(*(context.values for context in contexts), strict=True)
        return cls(first.groups, first.lengths, tuple(map(torch.cat, keys)), tuple(map(torch.cat, values)))

    def split(self) -> list[Context]:
        """One context for each sample of the batch, each in memory of its own."""
        if len(self.keys[0]) == 1:
            return [self]
        keys = zip(*(k.split(1) for k in self.keys), strict=True)
        values = zip(*(v.split(1) for v in self.values), strict=True)
        return [
            Context(self.groups, self.lengths, tuple(map(torch.clone, k)), tuple(map(torch.clone, v)))
            for k, v in zip(keys, values, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Memory:
    """What a policy remembers of one episode, from one call to the next. A value: the policy itself holds none.

    `seen` are the latents of the last pictures that it looked at, oldest first: those that it looked back on when it
    was called last, and behind them what it saw then. `context` holds the former, encoded for `instruction` and at
    their places as of that call; None when it was the first.
    """

    instruction: str
    seen: Float[Tensor, "1 Z n h w"]
    context: Context | None
