"""Keys and values on their way into the blocks and out of them: of the instruction, of the past, of what is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actwam.tokens import Segment
from actwam.types import Context, Group

TextPair = tuple[Float[Tensor, "B N M G"], Float[Tensor, "B N M G"]]
"""Keys and values of the instruction."""


@dataclass(frozen=True)
class TextContext:
    """Cross-attention keys and values of B instructions: a pair for each layer and each expert."""

    layers: tuple[tuple[TextPair, ...], ...]

    def select(self, rows: Int[Tensor, "b"]) -> TextContext:
        """The instructions of the given rows, so that a batch encodes each distinct instruction once."""
        return TextContext(tuple(tuple((k[rows], v[rows]) for k, v in layer) for layer in self.layers))

    @property
    def leaves(self) -> list[Tensor]:
        """All tensors, one after another."""
        return [side for layer in self.layers for pair in layer for side in pair]

    @classmethod
    def of_leaves(cls, leaves: Sequence[Tensor], experts: int) -> TextContext:
        """The inverse of `leaves`."""
        pairs = list(zip(leaves[::2], leaves[1::2], strict=True))
        return cls(tuple(tuple(pairs[i : i + experts]) for i in range(0, len(pairs), experts)))

    @classmethod
    def stack(cls, contexts: Sequence[TextContext]) -> TextContext:
        """Instructions that were encoded one by one, as one batch."""
        if len(contexts) == 1:
            return contexts[0]
        layers = zip(*(context.layers for context in contexts), strict=True)
        pairs = (tuple(zip(*layer, strict=True)) for layer in layers)
        return cls(
            tuple(
                tuple((torch.cat([k for k, _ in expert]), torch.cat([v for _, v in expert])) for expert in layer)
                for layer in pairs
            )
        )


@dataclass(frozen=True)
class Instructions:
    """The embedded instructions of B samples, before any layer has made keys and values of them: `embedded` holds the
    distinct ones, `rows` which of them a sample has.
    """

    embedded: Float[Tensor, "b M E"]
    rows: Int[Tensor, "B"]

    def to(self, device: torch.device) -> Instructions:
        """The same on `device`."""
        return Instructions(self.embedded.to(device), self.rows.to(device))


@dataclass(frozen=True)
class Told:
    """`Instructions` in the widths of the experts, (b, M, D) for each: blocks make keys and values of them."""

    embedded: tuple[Tensor, ...]
    rows: Int[Tensor, "B"]


@dataclass(frozen=True)
class Past:
    """Keys and values of the tokens that are encoded, (B, N, seen, G), with room for new ones behind them or none."""

    k: Tensor
    v: Tensor
    seen: int

    def with_new(self, k: Float[Tensor, "B N n G"], v: Float[Tensor, "B N n G"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the past and of n new tokens, which overwrite those of the last call where there is just
        the room for them.
        """
        old_k, room_k = self.k.tensor_split((self.seen,), dim=2)
        old_v, room_v = self.v.tensor_split((self.seen,), dim=2)
        if room_k.shape != k.shape:
            return torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        room_k.copy_(k)
        room_v.copy_(v)
        return self.k, self.v


class Kept:
    """Collects, block by block, the keys and values of some new groups, which come behind those of a context."""

    def __init__(self, before: Context | None, new: Sequence[Segment], keep: Sequence[Group]) -> None:
        self._before = before or Context((), (), (), ())
        self._lengths = [segment.length for segment in new]
        self._chosen = [i for i, segment in enumerate(new) if segment.group in keep]
        self._groups = tuple(new[i].group for i in self._chosen)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def past(self, block: int) -> Past | None:
        """What a block sees beside new tokens."""
        if not self._before.groups:
            return None
        return Past(self._before.keys[block], self._before.values[block], sum(self._before.lengths))

    def append(self, k: Float[Tensor, "B N n G"], v: Float[Tensor, "B N n G"]) -> None:
        """The keys and values of all new tokens of the next block."""
        if not self._chosen:
            return
        past = self.past(len(self._keys))
        olds = ([], []) if past is None else ([past.k[:, :, : past.seen]], [past.v[:, :, : past.seen]])
        for side, old, new in zip((self._keys, self._values), olds, (k, v), strict=True):
            parts = new.split(self._lengths, dim=2)
            side.append(torch.cat([*old, *(parts[i] for i in self._chosen)], dim=2))

    def context(self) -> Context:
        """The context before, and what was kept."""
        lengths = (self._lengths[i] for i in self._chosen)
        return Context(
            (*self._before.groups, *self._groups),
            (*self._before.lengths, *lengths),
            tuple(self._keys),
            tuple(self._values),
        )
