"""One demonstration in memory, as the simulator produces it and the writer stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class Episode:
    """T moments: what every camera saw, the state felt, and the action taken *after* seeing and feeling them.

    A state or an action that nobody recorded has no dimensions. `confidence`, above 0 and up to 1, says how far each
    action can be trusted that was inferred, not recorded. `seed` is that of the simulator.
    """

    images: Mapping[str, UInt8[np.ndarray, "T H W 3"]]
    state: Float[np.ndarray, "T S"]
    action: Float[np.ndarray, "T A"]
    instruction: str
    seed: int | None = None
    confidence: Float[np.ndarray, "T"] | None = None
