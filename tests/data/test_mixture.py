"""Mixture files: what they say, what is there of it, and one line about everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clip_files
import pytest
import tiny
import yaml

from actwam.data.mixture import Found, find, hours_of, is_mixture, overview, read_mixture

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixtures" / "gwp_pretraining.yaml"
HOURS = {
    "egodex": 800,
    "agibot": 2500,
    "ego4d": 3500,
    "robomind": 300,
    "rdt": 25,
    "open_x_embodiment": 3500,
    "droid": 350,
    "atara": 10,
    "something_something_v2": 200,
}
"""Table 1 of arXiv 2603.17240."""


def written(folder: Path, **members: dict[str, Any]) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"members": members}, sort_keys=False))
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    whole = {
        "data": "hub:org/name@v3.0",
        "hours": 3.5,
        "mode": "video",
        "view": {"head": "top", "left": ["wrist", "hand"]},
        "fps": 30,
        "licence": "MIT",
        "url": "https://example.org",
        "get": "ask\nfor it",
    }
    one, two = read_mixture(written(tmp_path, one=whole, two={"data": "two/*", "hours": 1}))
    assert (one.name, one.data, one.weight, one.video, one.fps) == ("one", "hub:org/name@v3.0", 3.5, True, 30)
    assert one.view == {"head": ("top",), "left": ("wrist", "hand")}
    assert one.advice == "ask for it; https://example.org"
    assert (two.weight, two.video, two.view, two.fps) == (1.0, False, None, None)
    assert "where the mixture says" in two.advice


def test_the_nine_sources_of_the_paper() -> None:
    members = read_mixture(EXAMPLE)
    assert {member.name: member.weight for member in members} == HOURS
    assert all(member.video for member in members)
    assert not any(find(member, EXAMPLE.parent) for member in members)
    assert all(row["problem"].startswith("is not there: ") for row in overview(EXAMPLE))


ONE = {"data": "one", "weight": 1}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "members is {}, expected a table of names"),
        ({"a b": ONE}, "members is .*, expected a table of names"),
        ({"one": "folder"}, "members is .*, expected a table of names"),
        ({"one": {"weight": 1}}, "one: missing key data; a member has data and may have hours, weight"),
        ({"one": {**ONE, "colour": "red"}}, "one: unknown key colour"),
        ({"one": {"data": "one"}}, "one: has neither hours nor a weight; give it one"),
        ({"one": {**ONE, "hours": 2}}, "some members have hours, some a weight; give all of them the same"),
        ({"one": ONE, "two": {"data": "two", "hours": 2}}, "some members have hours, some a weight"),
        ({"one": {"data": "one", "hours": 0}}, "one: hours is 0, expected a number above 0"),
        ({"one": {**ONE, "weight": True}}, "one: weight is True, expected a number above 0"),
        ({"one": {**ONE, "weight": float("nan")}}, "one: weight is nan, expected"),
        ({"one": {**ONE, "data": ""}}, "one: data is '', expected a folder, or hub:ORG/NAME"),
        ({"one": {**ONE, "data": ["a"]}}, "one: data is .*, expected a folder"),
        ({"one": {**ONE, "data": "hub:a"}}, "one: data: hub:a: no dataset of the Hub"),
        ({"one": {**ONE, "mode": "policy"}}, "one: mode is 'policy', expected video, or no such line"),
        ({"one": {**ONE, "mode": "video", "view": "top"}}, "one: view is 'top', expected lines of slot: camera"),
        ({"one": {**ONE, "mode": "video", "view": {"head": []}}}, "one: view is .*, expected lines of slot"),
        ({"one": {**ONE, "mode": "video", "fps": 2.5}}, "one: fps is 2.5, expected a whole number"),
        ({"one": {**ONE, "short": "drop"}}, "one: short is 'drop', expected error, or leave out"),
        ({"one": {**ONE, "view": {"head": "top"}}}, "one: a view or a rate of its own is for video alone; add mode"),
        ({"one": {**ONE, "url": 3}}, "one: url is 3, expected text"),
    ],
)
def test_what_cannot_be_a_mixture_is_refused_in_one_line(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"mixture\.yaml: {message}") as caught:
        read_mixture(written(tmp_path, **members))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: {one: {data: a, data: b, weight: 1}}", "key data stands twice; keep one"),
        ("- one", "must hold the keys members"),
        ("datasets: {}", "missing key members, unknown key datasets; a mixture has members$"),
        ("members: [", "cannot be read: while parsing"),
    ],
)
def test_a_file_that_is_no_mixture_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mixture\.yaml: {message}"):
        read_mixture(path)
    with pytest.raises(ValueError, match=r"none\.yml: cannot be read"):
        read_mixture(tmp_path / "none.yml")


def test_only_a_file_is_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").mkdir()
    assert is_mixture(tmp_path / "a.YAML")
    assert not is_mixture(tmp_path / "dataset.yaml")
    assert not is_mixture(Path("hub:org/name"))


def test_what_is_there(tmp_path: Path) -> None:
    long, short = (tiny.write_dataset(tmp_path / "many" / n, tiny.robot(), length=k) for n, k in (("b", 20), ("a", 8)))
    (tmp_path / "many" / "notes").mkdir()
    clip_files.write_clips(tmp_path / "clips", clip_files.ramp(37), fps=10)
    members = read_mixture(
        written(
            tmp_path,
            many={"data": "many/*", "weight": 2, "mode": "video", "view": {"whole": ["other", "front"]}},
            clips={"data": str(tmp_path / "clips"), "weight": 1, "mode": "video", "fps": 5},
            none={"data": "none", "weight": 3, "get": "ask"},
            empty={"data": "many/x*", "weight": 3},
        )
    )
    many, clips, none, empty = (find(member, tmp_path) for member in members)
    rows = {"a": 8 + 9 + 10, "b": 20 + 21 + 22}
    shares = {name: 2 * n / sum(rows.values()) for name, n in rows.items()}
    assert [one.name for one in many] == ["many/a", "many/b"]
    assert [one.place for one in many] == [short, long]
    assert [one.weight for one in many] == pytest.approx(list(shares.values()))
    assert [one.view for one in many] == [{"whole": "front"}] * 2
    assert clips == (Found("clips", tmp_path / "clips", 1.0, True, None, 5),)
    assert none == empty == ()
    assert hours_of(long) == pytest.approx(rows["b"] / 10 / 3600)
    assert hours_of(tmp_path / "clips") == pytest.approx(3.6 / 3600)
    seen = overview(tmp_path / "mixture.yaml")
    assert [row["found"] for row in seen] == [2, 1, 0, 0]
    assert [row["share"] for row in seen] == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert seen[2]["problem"] == "is not there: ask"


def test_a_dataset_that_cannot_be_read_is_a_problem_of_its_member(tmp_path: Path) -> None:
    folder = tiny.write_dataset(tmp_path / "many" / "a", tiny.robot())
    (folder / "meta" / "info.json").write_text("{}")
    path = written(tmp_path, many={"data": "many/*", "weight": 2})
    with pytest.raises(ValueError, match=r"info\.json: LeRobot dataset None cannot be read"):
        find(read_mixture(path)[0], tmp_path)
    (row,) = overview(path)
    assert (row["found"], row["share"]) == (0, 0.0)
    assert "cannot be read" in row["problem"]
