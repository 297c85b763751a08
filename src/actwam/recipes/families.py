"""The families of models that ActWAM compares, each a table, its sigmas and what a demonstration teaches it."""

from __future__ import annotations

from dataclasses import dataclass

from actwam.tokens import (
    ACTION_CENTERED,
    ACTION_ONLY,
    BIDIRECTIONAL,
    JOINT,
    UNCOUPLED,
    VIDEO_FIRST,
    Table,
)
from actwam.types import Group, Mode


@dataclass(frozen=True, kw_only=True)
class Family:
    """`modes` are what demonstrations teach, by equal shares. `shared_sigma` trains action and future at one noise
    level, for families that also denoise them together. `history` is how many past moments are seen.
    """

    table: Table
    modes: tuple[Mode, ...] = (Mode.POLICY,)
    shared_sigma: bool = False
    history: int = 0

    @property
    def has_future(self) -> bool:
        return Group.FUTURE in self.table.groups


FAMILIES = {
    # GigaWorld-Policy
    "ACTION_CENTERED": Family(table=ACTION_CENTERED),
    # pi0.5, GigaBrain-0, X-VLA
    "ACTION_ONLY": Family(table=ACTION_ONLY),
    # Motus, Cosmos-Policy
    "JOINT": Family(table=JOINT, shared_sigma=True),
    # DreamZero, LingBot-VA: chunk by chunk, what was observed takes the place of what was imagined
    "JOINT_HISTORY": Family(table=JOINT, shared_sigma=True, history=4),
    # UniPi, mimic-video: it imagines a future that sees no action (WORLD), and inverts it when it is finished (INVERSE)
    "VIDEO_FIRST": Family(table=VIDEO_FIRST, modes=(Mode.WORLD, Mode.INVERSE)),
    # FastWAM
    "UNCOUPLED": Family(table=UNCOUPLED),
    # the ablation of the GigaWorld-Policy paper
    "BIDIRECTIONAL": Family(table=BIDIRECTIONAL, shared_sigma=True),
}


def family_of(name: str) -> Family:
    """The family of this name. Raises ValueError listing those there are."""
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[name]
