"""The nouns of ActWAM, and the legend of dimension letters.

Every shape in the code is written with these letters, and with no others:

    B batch            V camera views      T video frames        F latent frames
    Z latent channels  H W picture pixels  h w latent grid       P tokens per latent frame
    L sequence         D width             N heads               K action horizon
    A action width     S state width       M text tokens         E text width
    C colour channels (3, RGB)             G head width          Q queried tokens

Pictures are uint8 RGB, height before width, values 0..255. Actions and states are float32 in the robot's own
units until `data.normalize` maps them to the model's range. `sigma` is a noise level: 0 is clean, 1 is pure
noise. A mask called `*_valid` is True where data may be used; a mask called `*attention_mask` is True where a
token may look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


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
class Batch:
    """B training windows on one device: the present frame and its state, the next K actions, F future frames.

    `latents` holds the present frame at index 0 and then the future frames. `state` and `action` are
    normalised and padded to the model's widths. `action_valid` is False past the end of the episode and in
    padded dimensions, `future_valid` is False for frames past the end.
    """

    modes: tuple[Mode, ...]
    future_valid: Bool[Tensor, "B F"]
    latents: Float[Tensor, "B Z 1+F h w"]
    state: Float[Tensor, "B S"]
    action: Float[Tensor, "B K A"]
    action_valid: Bool[Tensor, "B K A"]
    instructions: tuple[str, ...]
    embodiment: Int[Tensor, "B"]


@dataclass(frozen=True)
class Context:
    """Encoded clean groups: their keys and values in every layer. A value, never hidden state of a module.

    `groups[i]` names the group of the i-th run of tokens along L, `lengths[i]` how many tokens it has.
    `keys[layer]` and `values[layer]` hold them after normalisation and rotary embedding.
    """

    groups: tuple[Group, ...]
    lengths: tuple[int, ...]
    keys: tuple[Float[Tensor, "B N L G"], ...]
    values: tuple[Float[Tensor, "B N L G"], ...]
