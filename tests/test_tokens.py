"""Masks, order and caching, against masks and plans written out by hand: the parser is not its own judge."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actwam.tokens import (
    ACTION_CENTERED,
    ACTION_ONLY,
    BIDIRECTIONAL,
    JOINT,
    TABLES,
    UNCOUPLED,
    VIDEO_FIRST,
    Rows,
    Segment,
    Stage,
    Table,
    attention_mask,
    plan,
    rows_of,
    table_named,
    tokens_denoised,
)
from actwam.types import Group

HIST, OBS, STATE, ACT, FUT = Group.HISTORY, Group.OBSERVATION, Group.STATE, Group.ACTION, Group.FUTURE
LENGTHS = {OBS: 3, STATE: 1, ACT: 4, FUT: 6}

# Section 1 of the design: rows and columns are observation, state, action, future.
MASKS = {
    ACTION_CENTERED: ["1100", "1100", "1110", "1111"],
    JOINT: ["1100", "1100", "1111", "1111"],
    VIDEO_FIRST: ["1100", "1100", "1111", "1101"],
    UNCOUPLED: ["1100", "1100", "1110", "1101"],
    ACTION_ONLY: ["110", "110", "111"],
    BIDIRECTIONAL: ["1111", "1111", "1111", "1111"],
}


def stage(encode: set[Group], denoise: set[Group], recompute: set[Group] = frozenset()) -> Stage:
    return Stage(frozenset(encode), frozenset(recompute), frozenset(denoise))


@pytest.mark.parametrize("table", MASKS, ids=lambda table: table.name)
def test_the_mask_is_the_one_of_the_design(table: Table) -> None:
    groups = [OBS, STATE, ACT, FUT][: len(MASKS[table])]
    mask = attention_mask(table, [Segment(group, LENGTHS[group]) for group in groups])
    small = torch.tensor([[mark == "1" for mark in row] for row in MASKS[table]])
    counts = torch.tensor([LENGTHS[group] for group in groups])
    assert torch.equal(mask, small.repeat_interleave(counts, 0).repeat_interleave(counts, 1))


def test_every_table_is_listed_under_its_name() -> None:
    assert {table.name: table for table in MASKS} == TABLES
    assert len({id(table) for table in TABLES.values()}) == 6


def test_the_mask_follows_the_order_of_the_segments() -> None:
    mask = attention_mask(ACTION_CENTERED, [Segment(FUT, 1), Segment(ACT, 2), Segment(OBS, 1)])
    assert mask.int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]


def test_encoded_segments_are_looked_at_but_do_not_look() -> None:
    segments = [Segment(OBS, 2), Segment(STATE, 1), Segment(ACT, 3)]
    whole = attention_mask(ACTION_CENTERED, segments)
    assert torch.equal(attention_mask(ACTION_CENTERED, segments, first_query=2), whole[3:])


def test_a_moment_of_history_sees_itself_and_what_came_before() -> None:
    mask = attention_mask(JOINT, [Segment(HIST, 6, moments=3), Segment(OBS, 1), Segment(FUT, 1)])
    expected = torch.tensor(
        [
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1, 1, 1, 1],
        ]
    )
    assert torch.equal(mask, expected.bool())


@pytest.mark.parametrize("past_moments", [1, 2])
def test_a_moment_is_appended_to_an_encoded_history(past_moments: int) -> None:
    at_once = attention_mask(JOINT, [Segment(HIST, 9, moments=3), Segment(OBS, 2)])
    segments = [Segment(HIST, 6, moments=past_moments), Segment(HIST, 3), Segment(OBS, 2)]
    assert torch.equal(attention_mask(JOINT, segments, first_query=1), at_once[6:])


def test_a_mask_is_few_runs_of_equal_rows() -> None:
    segments = [Segment(OBS, 3), Segment(FUT, 6), Segment(STATE, 1), Segment(ACT, 4)]  # as two experts have them
    everything, present = ((0, 14),), ((0, 3), (9, 10))
    assert rows_of(attention_mask(ACTION_CENTERED, segments)) == (
        Rows(3, present),
        Rows(6, everything),
        Rows(1, present),
        Rows(4, ((0, 3), (9, 14))),
    )
    assert rows_of(attention_mask(BIDIRECTIONAL, segments)) == (Rows(14, everything),)


@pytest.mark.parametrize("table", MASKS, ids=lambda table: table.name)
@pytest.mark.parametrize("first_query", [0, 1])
def test_the_runs_of_a_mask_tell_all_of_it(table: Table, first_query: int) -> None:
    segments = [Segment(HIST, 4, moments=2), *(Segment(group, LENGTHS[group]) for group in table.groups[1:])]
    mask = attention_mask(table, segments, first_query)
    drawn = torch.zeros_like(mask)
    first = 0
    for rows in rows_of(mask):
        for start, stop in rows.keys:
            drawn[first : first + rows.length, start:stop] = True
        first += rows.length
    assert first == len(mask)
    assert torch.equal(drawn, mask)


def test_history_that_does_not_divide_into_moments_is_refused() -> None:
    with pytest.raises(ValueError, match="7 history tokens do not divide into 2 moments"):
        attention_mask(JOINT, [Segment(HIST, 7, moments=2)])


def test_a_group_that_the_table_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="ACTION_ONLY has no group future"):
        attention_mask(ACTION_ONLY, [Segment(OBS, 1), Segment(FUT, 1)])
    with pytest.raises(ValueError, match="ACTION_ONLY has no group future"):
        plan(ACTION_ONLY, [FUT], [OBS, STATE])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("", "same groups"),
        ("      obs st\nobservation x", "same groups"),
        ("             obs\nobservation  x\nobservation  x", "same groups"),
        ("             obs obs\nobservation  x   x", "stands in"),
        ("             obs foo\nobservation  x\nfoo          x", "foo"),
        ("             obs st\nobservation  o\nstate            x", "anything but one x"),
        ("             obs\nobservation  xx", "anything but one x"),
        ("             obs st\nobservation  x x\nstate            x", "anything but one x"),
    ],
)
def test_a_bad_picture_is_refused(picture: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table.parse("bad", picture)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Any table over the observation and any other groups: only `history` is as in every table."""
    groups = [group for group in (OBS, STATE, ACT, FUT) if draw(st.booleans())] or [OBS]
    sees = {query: {HIST} | {key for key in groups if draw(st.booleans())} for query in groups}
    return Table("random", {HIST: frozenset({HIST}), **{q: frozenset(keys) for q, keys in sees.items()}})


@given(tables())
def test_draw_and_parse_are_inverse(table: Table) -> None:
    assert Table.parse("again", table.draw()).sees == table.sees


BOTH = {ACT, FUT}
PLANS = [
    (ACTION_CENTERED, {ACT}, (stage({OBS, STATE}, {ACT}),)),
    (ACTION_CENTERED, BOTH, (stage({OBS, STATE}, {ACT}), stage({ACT}, {FUT}))),
    (JOINT, {ACT}, (stage({OBS, STATE}, BOTH),)),
    (JOINT, BOTH, (stage({OBS, STATE}, BOTH),)),
    (VIDEO_FIRST, {ACT}, (stage({OBS, STATE}, {FUT}), stage({FUT}, {ACT}))),
    (VIDEO_FIRST, {FUT}, (stage({OBS, STATE}, {FUT}),)),
    (UNCOUPLED, {ACT}, (stage({OBS, STATE}, {ACT}),)),
    (UNCOUPLED, BOTH, (stage({OBS, STATE}, {ACT}), stage(set(), {FUT}))),
    (ACTION_ONLY, {ACT}, (stage({OBS, STATE}, {ACT}),)),
    (BIDIRECTIONAL, {ACT}, (stage(set(), BOTH, recompute={OBS, STATE}),)),
]


@pytest.mark.parametrize(("table", "wanted", "expected"), PLANS, ids=lambda x: getattr(x, "name", None))
def test_the_plan_of_every_family(table: Table, wanted: set[Group], expected: tuple[Stage, ...]) -> None:
    assert plan(table, wanted, {OBS, STATE}) == expected


def test_given_groups_are_not_denoised() -> None:
    assert plan(ACTION_CENTERED, {FUT}, {OBS, STATE, ACT}) == (stage({OBS, STATE, ACT}, {FUT}),)
    assert plan(VIDEO_FIRST, {ACT}, {OBS, STATE, FUT}) == (stage({OBS, STATE, FUT}, {ACT}),)
    assert plan(JOINT, {FUT}, {OBS, STATE, ACT}) == (stage({OBS, STATE}, {FUT}, recompute={ACT}),)


def test_history_is_encoded_when_there_is_one() -> None:
    assert plan(ACTION_CENTERED, {ACT}, {HIST, OBS, STATE}) == (stage({HIST, OBS, STATE}, {ACT}),)


def test_state_and_history_that_are_not_given_are_not_there() -> None:
    assert plan(ACTION_CENTERED, {ACT}, {OBS}) == (stage({OBS}, {ACT}),)
    assert plan(BIDIRECTIONAL, {FUT}, {OBS, ACT}) == (stage(set(), {FUT}, recompute={OBS, ACT}),)
    through_state = Table.parse("through", "            obs st act fut\nobservation  x\nstate            x      x\n"
                                           "action       x   x  x\nfuture       x          x")  # fmt: skip
    assert plan(through_state, {ACT}, {OBS, STATE}) == (stage({OBS}, {FUT}), stage({FUT, STATE}, {ACT}))
    assert plan(through_state, {ACT}, {OBS}) == (stage({OBS}, {ACT}),)  # nobody looks at the future now


@pytest.mark.parametrize("table", MASKS, ids=lambda table: table.name)
def test_what_nothing_can_denoise_must_be_given(table: Table) -> None:
    with pytest.raises(ValueError, match=f"{table.name}: observation must be given: nothing can denoise it"):
        plan(table, {ACT}, {STATE})
    for group in (HIST, OBS, STATE):
        with pytest.raises(ValueError, match=f"{group} must be given"):
            plan(table, {ACT, group}, {HIST, OBS, STATE} - {group})
        assert plan(table, {group}, {HIST, OBS, STATE}) == () or table is BIDIRECTIONAL


def test_a_table_is_found_by_its_name() -> None:
    assert all(table_named(name) is table for name, table in TABLES.items())
    with pytest.raises(ValueError) as caught:
        table_named("SIDEWAYS")
    assert str(caught.value) == (
        "table 'SIDEWAYS' is unknown: there are ACTION_CENTERED, JOINT, VIDEO_FIRST, UNCOUPLED, ACTION_ONLY, "
        "BIDIRECTIONAL"
    )


def test_the_cost_of_acting_follows_from_the_table() -> None:
    lengths = {OBS: 120, STATE: 1, ACT: 48, FUT: 120}
    cost = {table.name: tokens_denoised(plan(table, {ACT}, {OBS, STATE}), lengths) for table in MASKS}
    assert cost == {
        "ACTION_CENTERED": 48,
        "ACTION_ONLY": 48,
        "UNCOUPLED": 48,
        "JOINT": 168,
        "VIDEO_FIRST": 168,
        "BIDIRECTIONAL": 289,
    }


def reachable(table: Table, group: Group, absent: set[Group]) -> set[Group]:
    """Slow twin of `Table.reach`: follow every x, one at a time."""
    found, left = set(), [group]
    while left:
        here = left.pop()
        if here not in found:
            found.add(here)
            left += [key for key in table.sees[here] if key not in absent]
    return found


def subsets(groups: tuple[Group, ...]) -> list[tuple[Group, ...]]:
    return list(chain.from_iterable(combinations(groups, n) for n in range(len(groups) + 1)))


@settings(max_examples=200)
@given(tables(), st.data())
def test_any_plan_denoises_what_is_needed_and_encodes_the_settled(table: Table, data: st.DataObject) -> None:
    drawn = tuple(group for group in table.groups if group is not HIST)
    wanted = data.draw(st.sampled_from(subsets(drawn)))
    clean = set(data.draw(st.sampled_from(subsets(drawn))))
    absent = {HIST, STATE} - clean - set(wanted)
    needed = set().union(*(reachable(table, group, absent) for group in wanted))
    if needed & {OBS, STATE} - clean:
        with pytest.raises(ValueError, match="must be given"):
            plan(table, wanted, clean)
        return
    stages = plan(table, wanted, clean)
    denoised = [group for stage in stages for group in stage.denoise]
    assert sorted(denoised) == sorted(needed - clean)
    finished, encoded = needed & clean, set()
    for part in stages:
        unfinished = needed - finished
        assert not part.encode & (encoded | part.recompute | part.denoise)
        for group in part.encode:
            assert group in finished
            assert not reachable(table, group, absent) & unfinished
            assert reachable(table, group, absent) <= encoded | part.encode
        for group in part.denoise:
            assert set(part.denoise) <= reachable(table, group, absent)
            assert reachable(table, group, absent) & unfinished == set(part.denoise)
        encoded |= part.encode
        looked_at = set().union(*(table.sees[g] for g in part.denoise | part.recompute)) - absent
        assert looked_at <= encoded | part.recompute | part.denoise
        finished |= part.denoise
