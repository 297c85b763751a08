"""A mixture: many datasets under one name, each with a weight, written down as a YAML file.

`examples/mixtures` holds some that explain every line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actwam.data.clips import find_clips, holds_clips
from actwam.data.hub import address_of, info_folder, pin
from actwam.data.info import Info, read_info
from actwam.data.problem import refuse
from actwam.data.video import index_video
from actwam.data.yamls import read_yaml, require_keys, require_value

ENDINGS = (".yaml", ".yml")
WEIGHTS = ("hours", "weight")
TEXTS = ("licence", "url", "get")
MEMBER = (*WEIGHTS, "mode", "view", "fps", "short", *TEXTS)
"""What a member may say beside where its data is."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One line of a mixture. `data` is a folder, `hub:ORG/NAME@REVISION`, `stream:...` (`hub`), or a pattern such as
    `oxe/*` for the datasets in a folder, which share the weight by their hours.

    With `video` nothing but video is learned from it; only then may it have a `view`, slot to camera (of several the
    first that a dataset has), and a rate of its own. With `leave_short` episodes that are too short for a window are
    left out. `licence`, `url` and `get` (how to get it) are for people.
    """

    name: str
    data: str
    weight: float
    video: bool = False
    view: Mapping[str, tuple[str, ...]] | None = field(default=None, hash=False)
    fps: int | None = None
    leave_short: bool = False
    licence: str = ""
    url: str = ""
    get: str = ""

    @property
    def advice(self) -> str:
        """How to get it, for a line about its absence."""
        return "; ".join(text for text in (self.get, self.url) if text) or "see where the mixture says that it is"


@dataclass(frozen=True)
class Found:
    """A dataset of a member that is there: `place` is its folder, or its address at a commit."""

    name: str
    place: Path
    weight: float
    video: bool = False
    view: Mapping[str, str] | None = field(default=None, hash=False)
    fps: int | None = None
    leave_short: bool = False


def read_mixture(path: Path) -> tuple[Member, ...]:
    """The members that a YAML file lists.

    Raises ValueError, one line with the file and the key, on a file that cannot be read, on a key that is missing,
    unknown or stands twice, and on a value that is not what it should be.
    """
    members = read_yaml(path, "a mixture", ("members",))["members"]
    named = isinstance(members, dict) and all(_plain(name) and isinstance(members[name], dict) for name in members)
    require_value(path, "members", members, bool(named and members), "a table of names, each with its data and weight")
    kinds = {kind for said in members.values() for kind in WEIGHTS if kind in said}
    if len(kinds) > 1:
        raise ValueError(f"{path}: some members have hours, some a weight; give all of them the same")
    return tuple(_member(path, name, said) for name, said in members.items())


def find(member: Member, beside: Path) -> tuple[Found, ...]:
    """The datasets of a member, in the order of their names; none if it is absent. Folders are looked for in the folder
    `beside`, unless they are absolute. A dataset of the Hub is pinned to its commit.

    Raises ValueError on a dataset whose `info.json` cannot be read, and on one of the Hub that cannot be had.
    """
    address = address_of(member.data)
    if address is not None:
        pinned = pin(address)
        return (_found(member, f"@{pinned.revision}", Path(str(pinned)), info_folder(pinned)),)
    place = beside / Path(member.data).expanduser()
    if "*" not in member.data:
        return (_found(member, "", place, place),) if place.is_dir() else ()
    root, pattern = _split(place)
    folders = sorted(folder for folder in root.glob(pattern) if (folder / "meta" / "info.json").is_file())
    hours = [_hours_of(read_info(folder)) for folder in folders]
    return tuple(
        _found(member, f"/{folder.relative_to(root).as_posix()}", folder, folder, each / math.fsum(hours))
        for folder, each in zip(folders, hours, strict=True)
    )


def overview(path: Path) -> list[dict[str, Any]]:
    """For every member of a mixture file: `name`, `data`, how many datasets were `found`, their `hours`, its `weight`,
    the `share` of it among those that are there, and what its `problem` is.

    Raises ValueError on a file that is no mixture; what cannot be read or had is a problem of its member.
    """
    members = read_mixture(path)
    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda member: _seen(member, path.parent), members))
    total = math.fsum(member.weight for member, (found, _, _) in zip(members, seen, strict=True) if found)
    return [
        {
            "name": member.name,
            "data": member.data,
            "found": found,
            "hours": hours,
            "weight": member.weight,
            "share": member.weight / total if found else 0.0,
            "problem": problem,
        }
        for member, (found, hours, problem) in zip(members, seen, strict=True)
    ]


def _seen(member: Member, beside: Path) -> tuple[int, float, str]:
    try:
        found = find(member, beside)
        hours = math.fsum(hours_of(one.place) for one in found)
    except ValueError as error:
        return 0, 0.0, str(error)
    return len(found), hours, "" if found else f"is not there: {member.advice}"


def hours_of(place: Path) -> float:
    """How long all that is in a folder or at an address is. Raises ValueError if it cannot be read."""
    address = address_of(place)
    if address is not None:
        return _hours_of(read_info(info_folder(address)))
    if not holds_clips(place):
        return _hours_of(read_info(place))
    paths = [path for path, _ in find_clips(place, refuse)]
    with ThreadPoolExecutor() as pool:
        return math.fsum(index.seconds for index in pool.map(index_video, paths)) / 3600


def is_mixture(place: Path) -> bool:
    """Whether this is a mixture file, and not a folder or an address."""
    return place.suffix.lower() in ENDINGS and not place.is_dir()


def _found(member: Member, which: str, place: Path, folder: Path, share: float = 1.0) -> Found:
    """One dataset of a member, which has this share of its weight; its metadata are in `folder`."""
    view = None
    if member.view is not None:
        several = any(len(cameras) > 1 for cameras in member.view.values())
        known = {camera.name for camera in read_info(folder).cameras} if several else set[str]()
        view = {slot: next((c for c in cameras if c in known), cameras[0]) for slot, cameras in member.view.items()}
    weight = member.weight * share
    return Found(f"{member.name}{which}", place, weight, member.video, view, member.fps, member.leave_short)


def _hours_of(info: Info) -> float:
    return info.total_frames / info.fps / 3600


def _split(place: Path) -> tuple[Path, str]:
    """The part of a path before the first star, and the rest."""
    first = next(number for number, part in enumerate(place.parts) if "*" in part)
    return Path(*place.parts[:first]), "/".join(place.parts[first:])


def _member(path: Path, name: str, said: dict[str, Any]) -> Member:
    where = f"{path}: {name}"
    require_keys(where, said, "a member", ("data",), MEMBER)
    kind = next((kind for kind in WEIGHTS if kind in said), None)
    if kind is None:
        raise ValueError(f"{where}: has neither hours nor a weight; give it one")
    data, weight, view, fps = said["data"], said[kind], said.get("view"), said.get("fps")
    require_value(where, "data", data, isinstance(data, str) and bool(data), "a folder, or hub:ORG/NAME")
    require_value(where, "mode", said.get("mode"), said.get("mode", "video") == "video", "video, or no such line")
    amount = type(weight) in (int, float) and 0 < weight < math.inf
    require_value(where, kind, weight, amount, "a number above 0")
    slots = view if isinstance(view, dict) else {}
    cameras = [[said] if isinstance(said, str) else said for said in slots.values()]
    filled = bool(slots) and _names([*slots]) and all(isinstance(each, list) and _names(each) for each in cameras)
    require_value(where, "view", view, view is None or filled, "lines of slot: camera name, or a list of such names")
    require_value(where, "fps", fps, fps is None or (type(fps) is int and fps > 0), "a whole number of at least 1")
    short = said.get("short", "error")
    require_value(where, "short", short, short in ("error", "leave out"), "error, or leave out")
    for key in TEXTS:
        require_value(where, key, said.get(key), isinstance(said.get(key, ""), str), "text, quoted if need be")
    if "mode" not in said and (view, fps) != (None, None):
        raise ValueError(f"{where}: a view or a rate of its own is for video alone; add mode: video")
    try:
        address_of(data)
    except ValueError as error:
        raise ValueError(f"{where}: data: {error}") from error
    texts = {key: " ".join(said.get(key, "").split()) for key in TEXTS}
    chosen = None if view is None else dict(zip(slots, map(tuple, cameras), strict=True))
    return Member(
        name=name,
        data=data,
        weight=float(weight),
        video="mode" in said,
        view=chosen,
        fps=fps,
        leave_short=short == "leave out",
        **texts,
    )


def _plain(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"\w[\w.\-]*", name) is not None


def _names(value: Sequence[Any]) -> bool:
    """One or more texts that differ."""
    return all(isinstance(name, str) and name for name in value) and 0 < len(value) == len({*value})
