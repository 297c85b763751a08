"""Mixtures in a recipe: where a dataset is many, every source of it becomes one for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from actwam.data.hub import address_of, pin
from actwam.data.mixture import Found, find, is_mixture, read_mixture
from actwam.data.transforms import View, ViewLayout, layout_of_slots
from actwam.train.config import Recipe, SourceConfig, StageConfig
from actwam.types import Mode

AT_ONCE = 8
"""Members that are looked for together: most of that is waiting for a disk or the network."""


def resolve(recipe: Recipe, data: Mapping[str, Path], say: Callable[[str], None]) -> tuple[Recipe, Mapping[str, Path]]:
    """The recipe over single datasets, and where each of them is, from what `--data` names: folders, datasets of the
    Hub (`data.hub`), and mixture files (`data.mixture`).

    Says which commit a dataset of the Hub is read at, and what is absent. Raises ValueError on a mixture of which
    nothing is there, and as `read_mixture` and `find` do.
    """
    if not any(is_mixture(place) or address_of(place) for place in data.values()):
        return recipe, data
    return expanded(recipe, {name: _look(name, place, say) for name, place in data.items()})


def expanded(recipe: Recipe, found: Mapping[str, Sequence[Found]]) -> tuple[Recipe, dict[str, Path]]:
    """The recipe in which every source stands once for each dataset found under its name, and where these are.

    Its weight is shared among them by their weights. Sources that learn more than video leave out those that are for
    video alone. Raises ValueError when none remains, and on slots of a view that make no picture.
    """
    stages = tuple(_stage(recipe, stage, found) for stage in recipe.stages)
    used = {source.dataset for stage in stages for source in stage.sources}
    codec = recipe.codec
    if codec is not None:
        codec = replace(codec, datasets=tuple(name for each in codec.datasets for name in _names(each, found, used)))
    places = {_name(name, one): one.place for name, many in found.items() for one in many}
    return replace(recipe, stages=stages, codec=codec), places


def _look(name: str, place: Path, say: Callable[[str], None]) -> tuple[Found, ...]:
    address = address_of(place)
    if address is not None:
        pinned = pin(address)
        say(f"{name}: {pinned}")
        return (Found(f"@{pinned.revision}", Path(str(pinned)), 1.0),)
    if not is_mixture(place):
        return (Found("", place, 1.0),)
    members = read_mixture(place)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda member: find(member, place.parent), members))
    for member, there in zip(members, found, strict=True):
        for one in there:
            if address_of(one.place) is not None:
                say(f"{name}: {member.name} is {one.place}")
        if not there:
            say(f"{name}: {member.name} is not at {member.data}: {member.advice}")
    if not any(found):
        raise ValueError(f"{place}: none of its {len(members)} members is there; `actwam mixture {place}` lists them")
    return tuple(replace(one, name=f"/{one.name}") for there in found for one in there)


def _stage(recipe: Recipe, stage: StageConfig, found: Mapping[str, Sequence[Found]]) -> StageConfig:
    sources: list[SourceConfig] = []
    for source in stage.sources:
        many = found.get(source.dataset)
        sources.extend([source] if many is None else _sources(recipe, source, many))
    return replace(stage, sources=tuple(sources))


def _sources(recipe: Recipe, source: SourceConfig, many: Sequence[Found]) -> list[SourceConfig]:
    fitting = [one for one in many if source.mode is Mode.VIDEO or not one.video]
    if not fitting:
        raise ValueError(
            f"dataset {source.dataset}: all that is there of it is for video alone, and recipe {recipe.name} has it in "
            f"mode {source.mode}"
        )
    total = math.fsum(one.weight for one in fitting)
    return [
        replace(
            source,
            dataset=_name(source.dataset, one),
            weight=source.weight * one.weight / total,
            view=_view(recipe, source.dataset, one) or source.view,
            fps=one.fps or source.fps,
            leave_short=one.leave_short or source.leave_short,
        )
        for one in fitting
    ]


def _view(recipe: Recipe, name: str, one: Found) -> View | None:
    """What a member says of its cameras as a picture of the recipe's size."""
    if one.view is None:
        return None
    like = recipe.layouts[0]
    return View(_layout(like, tuple(one.view), f"dataset {_name(name, one)}"), one.view)


def _layout(like: ViewLayout, slots: Sequence[str], whose: str) -> ViewLayout:
    """A layout of these slots: the recipe's if it has them, else the usual one of its size."""
    if {slot.name for slot in like.slots} == set(slots):
        return like
    return layout_of_slots(slots, like.height, like.width, like.resample, whose)


def _name(name: str, one: Found) -> str:
    return f"{name}{one.name}"


def _names(name: str, found: Mapping[str, Sequence[Found]], used: Collection[str]) -> list[str]:
    """What stands for a dataset that the codec is fitted on: of many, those that the stages use, if they use any."""
    many = [_name(name, one) for one in found.get(name, ())]
    return [each for each in many if each in used] or many or [name]
