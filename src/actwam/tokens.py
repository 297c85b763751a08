"""Who may look at whom: the one idea of ActWAM, written as pictures.

A family of models is a table. Row by row it says which groups of tokens a group may attend to. Everything
else is derived from the table here and nowhere else: the attention mask, what must be denoised to obtain a
group, in which order, and which encoded groups can be kept as a `Context`.

`history` is not drawn, because it is the same in every table: all rows see it, and inside it a moment sees
itself and earlier moments only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from actwam.types import Group

_HEADER = {"obs": Group.OBSERVATION, "st": Group.STATE, "act": Group.ACTION, "fut": Group.FUTURE}


@dataclass(frozen=True, eq=False)
class Table:
    """A family of models: `sees[q]` holds the groups that tokens of group q may attend to. Equal only to
    itself.
    """

    name: str
    sees: Mapping[Group, frozenset[Group]]

    @classmethod
    def parse(cls, name: str, picture: str) -> Table:
        """Read a picture: an x in the row of q, below the header of k, lets q attend to k.

        Raises ValueError when rows and columns differ, or when anything but one x stands below a header.
        """
        header, *rows = [line for line in picture.splitlines() if line.strip()] or [""]
        columns = {_HEADER.get(word[0], word[0]): range(*word.span()) for word in re.finditer(r"\S+", header)}
        if not columns or sorted(columns) != sorted(row.split()[0] for row in rows):
            raise ValueError(f"table {name}: rows and columns must name the same groups, each once")
        sees = {Group.HISTORY: frozenset({Group.HISTORY})}
        for row in rows:
            query = row.split()[0]
            marks = [i for i in range(row.index(query) + len(query), len(row)) if row[i] != " "]
            seen = [Group(group) for group, column in columns.items() if set(marks) & set(column)]
            if len(seen) != len(marks) or any(row[i] != "x" for i in marks):
                raise ValueError(f"table {name}: anything but one x below a header stands in {row!r}")
            sees[Group(query)] = frozenset({*seen, Group.HISTORY})
        return cls(name, sees)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of this family, `history` first, in the order of the picture."""
        return tuple(self.sees)

    def reach(self, group: Group, absent: Set[Group] = frozenset()) -> frozenset[Group]:
        """All groups that `group` depends on, directly or through others, itself included, where there are no
        `absent` ones.
        """
        found, new = frozenset({group}), self.sees[group] - absent
        while not new <= found:
            found |= new
            new = frozenset().union(*(self.sees[g] for g in found)) - absent
        return found

    def draw(self) -> str:
        """The picture again, as `parse` reads it."""
        names = {group: word for word, group in _HEADER.items() if group in self.sees}
        lines = [" " * 13 + " ".join(names.values())]
        for query in names:
            marks = [("x" if key in self.sees[query] else " ").ljust(len(word)) for key, word in names.items()]
            lines.append(f"{query:<13}{' '.join(marks)}".rstrip())
        return "\n".join(lines)


# GigaWorld-Policy: actions never see the future, the future sees the actions.
ACTION_CENTERED = Table.parse("ACTION_CENTERED", """
                 obs st act fut
    observation   x  x
    state         x  x
    action        x  x  x
    future        x  x  x   x
""")  # fmt: skip

# Motus, DreamZero, Cosmos-Policy: actions and future are denoised together.
JOINT = Table.parse("JOINT", """
                 obs st act fut
    observation   x  x
    state         x  x
    action        x  x  x   x
    future        x  x  x   x
""")  # fmt: skip

# UniPi, mimic-video: imagine, then invert.
VIDEO_FIRST = Table.parse("VIDEO_FIRST", """
                 obs st act fut
    observation   x  x
    state         x  x
    action        x  x  x   x
    future        x  x      x
""")  # fmt: skip

# FastWAM: actions and future share the observation and nothing else.
UNCOUPLED = Table.parse("UNCOUPLED", """
                 obs st act fut
    observation   x  x
    state         x  x
    action        x  x  x
    future        x  x      x
""")  # fmt: skip

# A vision-language-action policy (pi0.5, GigaBrain-0, X-VLA): there is no future.
ACTION_ONLY = Table.parse("ACTION_ONLY", """
                 obs st act
    observation   x  x
    state         x  x
    action        x  x  x
""")  # fmt: skip

# The self-attention ablation of the GigaWorld-Policy paper: all see all, nothing can be cached.
BIDIRECTIONAL = Table.parse("BIDIRECTIONAL", """
                 obs st act fut
    observation   x  x  x   x
    state         x  x  x   x
    action        x  x  x   x
    future        x  x  x   x
""")  # fmt: skip

TABLES = {table.name: table for table in (ACTION_CENTERED, JOINT, VIDEO_FIRST, UNCOUPLED, ACTION_ONLY, BIDIRECTIONAL)}

MAY_BE_ABSENT = frozenset({Group.HISTORY, Group.STATE})
"""An episode begins without a past, and a video has no state."""
NEVER_NOISY = MAY_BE_ABSENT | {Group.OBSERVATION}


def table_named(name: str) -> Table:
    """The family of this name. Raises ValueError, listing those there are, on any other."""
    if name not in TABLES:
        raise ValueError(f"table {name!r} is unknown: there are {', '.join(TABLES)}")
    return TABLES[name]


@dataclass(frozen=True)
class Segment:
    """A run of `length` tokens of one group; one of history is split into equal `moments`."""

    group: Group
    length: int
    moments: int = 1


def attention_mask(table: Table, segments: Sequence[Segment], first_query: int = 0) -> Bool[Tensor, "Q L"]:
    """True where a token may attend. Rows are the tokens of `segments[first_query:]`, columns those of all
    segments.

    Segments before `first_query` are already encoded (a `Context`); they are looked at, but do not look.
    Raises ValueError on a group that the table does not have.
    """
    order = table.groups
    _require_known(table, {segment.group for segment in segments})
    group, moment, past = [], [], 0
    for segment in segments:
        if segment.length % segment.moments:
            raise ValueError(f"{segment.length} history tokens do not divide into {segment.moments} moments")
        per_moment = segment.length // segment.moments
        group += [order.index(segment.group)] * segment.length
        moment += [past + i // per_moment for i in range(segment.length)]
        past += segment.moments if segment.group is Group.HISTORY else 0
    group_L, moment_L = torch.tensor(group), torch.tensor(moment)
    start = sum(segment.length for segment in segments[:first_query])
    sees = torch.tensor([[key in table.sees[query] for key in order] for query in order])
    in_history = group_L == order.index(Group.HISTORY)
    later = in_history[start:, None] & in_history & (moment_L > moment_L[start:, None])
    return sees[group_L[start:]][:, group_L] & ~later


@dataclass(frozen=True)
class Rows:
    """Tokens next to one another that may attend to the same ones: how many they are, and from where to where the
    others lie.
    """

    length: int
    keys: tuple[tuple[int, int], ...]


def rows_of(mask: Bool[Tensor, "Q L"]) -> tuple[Rows, ...]:
    """A mask as runs of equal rows: groups are blocks, so that they are few."""
    distinct, lengths = mask.unique_consecutive(dim=0, return_counts=True)
    edges = F.pad(distinct.int(), (1, 1)).diff(dim=1)  # 1 where a range of keys starts, -1 where one stops
    starts, stops = ([(edge == kind).nonzero()[:, 0].tolist() for edge in edges] for kind in (1, -1))
    return tuple(
        Rows(length, tuple(zip(*ranges, strict=True)))
        for length, *ranges in zip(lengths.tolist(), starts, stops, strict=True)
    )


@dataclass(frozen=True)
class Stage:
    """One part of sampling: encode some finished groups, then denoise some noisy ones together.

    `encode`: finished groups that are encoded now and kept as context from here on. `recompute`: finished
    groups that look at something unfinished, so that they accompany every denoising step. `denoise`: noisy
    groups that see each other and are denoised together.
    """

    encode: frozenset[Group]
    recompute: frozenset[Group]
    denoise: frozenset[Group]


def plan(table: Table, wanted: Iterable[Group], given: Iterable[Group]) -> tuple[Stage, ...]:
    """How to sample the `wanted` groups when the `given` groups are clean.

    Noisy groups that a wanted one depends on are denoised with it (they see each other) or before it (it is
    seen). Nothing else is touched: this is why an ACTION_CENTERED policy needs no future to act. State and history
    that are not given are not there: nobody looks at them. Raises ValueError when a group is wanted, or an
    observation needed, that is not given and that nothing can denoise.
    """
    wanted, given = frozenset(wanted), frozenset(given)
    _require_known(table, wanted | given)
    reach = partial(table.reach, absent=MAY_BE_ABSENT - given - wanted)
    used = frozenset().union(*(reach(group) for group in wanted))
    if lacking := used & NEVER_NOISY - given:
        raise ValueError(
            f"table {table.name}: {', '.join(sorted(lacking))} must be given: nothing can denoise it out of noise"
        )
    remaining, finished, encoded = used - given, used & given, frozenset[Group]()
    stages = []
    while remaining:
        together = next(
            component
            for group in sorted(remaining)
            if reach(group) & remaining
            <= (component := frozenset(g for g in remaining if group in reach(g) and g in reach(group)))
        )
        settled = frozenset(group for group in finished if not reach(group) & remaining)
        seen = frozenset().union(*(reach(group) for group in together))
        stages.append(Stage((settled - encoded) & seen, (finished - settled) & seen, together))
        encoded |= settled & seen
        finished, remaining = finished | together, remaining - together
    return tuple(stages)


def denoised(stages: Sequence[Stage]) -> frozenset[Group]:
    """The groups that need noise to start from."""
    return frozenset[Group]().union(*(stage.denoise for stage in stages))


def tokens_denoised(stages: Sequence[Stage], lengths: Mapping[Group, int]) -> int:
    """Tokens that pass through the model at every denoising step, summed over the stages: the cost of
    sampling.
    """
    return sum(lengths[group] for stage in stages for group in stage.denoise | stage.recompute)


def _require_known(table: Table, groups: Set[Group]) -> None:
    unknown = groups - set(table.groups)
    if unknown:
        raise ValueError(f"table {table.name} has no group {', '.join(sorted(unknown))}")
