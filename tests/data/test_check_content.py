"""What the rules of content find in demonstrations that are good but for one thing, and that else they are quiet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reaching

from actwam.data import check_pictures, check_rows
from actwam.data.check import check
from actwam.data.check_episodes import _other_unit
from actwam.data.check_pictures import Watch, cells
from actwam.data.check_rows import evenly_timed, runs, usual_range
from actwam.data.episode import Episode
from actwam.data.problem import Problem
from actwam.sim.robot import metaworld_embodiment

Change = Callable[[Episode], Episode]


def with_state(change: Callable[[np.ndarray], None]) -> Change:
    def changed(episode: Episode) -> Episode:
        state = episode.state.copy()
        change(state)
        return replace(episode, state=state)

    return changed


def with_action(change: Callable[[np.ndarray], None]) -> Change:
    def changed(episode: Episode) -> Episode:
        action = episode.action.copy()
        change(action)
        return replace(episode, action=action)

    return changed


def with_pictures(camera: str, change: Callable[[np.ndarray], None]) -> Change:
    def changed(episode: Episode) -> Episode:
        frames = episode.images[camera].copy()
        change(frames)
        return replace(episode, images={**episode.images, camera: frames})

    return changed


def waiting(first: int, count: int = 90) -> Change:
    """The robot stands still from row `first` on, for `count` more rows."""

    def changed(episode: Episode) -> Episode:
        order = np.insert(np.arange(len(episode.state)), first, np.full(count, first))
        action = episode.action[order].copy()
        action[first : first + count + (first == len(episode.state) - 1), :3] = 0
        images = {camera: frames[order] for camera, frames in episode.images.items()}
        return replace(episode, images=images, state=episode.state[order], action=action)

    return changed


def swapped(episode: Episode) -> Episode:
    return replace(episode, images={**episode.images, "head": episode.images["left"], "left": episode.images["head"]})


def mirrored(values: np.ndarray) -> None:
    values[:, 3] *= -1


def assign(rows: slice, value: object, columns: object = slice(None)) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[rows, columns] = value

    return change


def scale(columns: slice, factor: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[:, columns] *= factor

    return change


def frozen(frames: np.ndarray) -> None:
    frames[20:80] = frames[20]


FOUND = {
    "outlier": (with_state(assign(slice(40, 42), 30.0, 1)), ("outlier", "observation.state", 40)),
    "waits before": (waiting(0), ("idle", None, 0)),
    "waits inside": (waiting(50), ("idle", None, 50)),
    "waits after": (waiting(99), ("idle", None, 99)),
    "command turned over": (with_action(mirrored), ("gripper", "action", None)),
    "sensor turned over": (
        with_state(lambda values: values.__setitem__((slice(None), 3), 1.3 - values[:, 3])),
        ("gripper", "observation.state", None),
    ),
    "both turned over": (
        lambda e: with_action(mirrored)(FOUND["sensor turned over"][0](e)),
        ("gripper", "observation.state", None),
    ),
    "millimetres": (with_state(scale(slice(3), 1000)), ("units", "observation.state", None)),
    "swapped": (swapped, ("swapped", "head", 0)),
    "black from the start": (with_pictures("left", assign(slice(None), 5)), ("black", "left", 0)),
    "black at the end": (with_pictures("left", assign(slice(55, None), 5)), ("black", "left", 55)),
    "frozen": (with_pictures("right", frozen), ("frozen", "right", 20)),
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("place", [0, 3])
def test_what_is_wrong_with_an_episode_is_named(tmp_path: Path, name: str, place: int) -> None:
    change, (kind, key, frame) = FOUND[name]
    episodes = reaching.episodes()
    episodes[place] = change(episodes[place])
    report = check(reaching.write(tmp_path / "d", episodes))
    assert {problem.episode for problem in report.problems} == {place}
    problem = next(problem for problem in report.problems if (problem.kind, problem.key) == (kind, key))
    assert frame is None or abs((problem.frame or 0) - frame) <= 8
    assert problem.file.is_file()
    assert problem.severity == ("error" if kind == "black" else "warning")


def test_degrees_among_radians_and_the_other_way_round(tmp_path: Path) -> None:
    """The joints of four episodes against those of the fifth; small angles in a minority are found too."""
    for factor, others in ((180 / np.pi, 1.0), (np.pi / 180, 180 / np.pi)):
        episodes = [with_state(scale(slice(3), 4 * others))(each) for each in reaching.episodes()]
        episodes[2] = with_state(scale(slice(3), factor))(episodes[2])
        report = check(reaching.write(tmp_path / f"d{factor:.0f}", episodes), decode="none")
        assert [(problem.kind, problem.episode) for problem in report.problems] == [("units", 2)]
        assert "degrees and radians are mixed" in report.problems[0].what


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_dimension_between_two_units_is_told_by_what_other_episodes_reach(factor: float) -> None:
    """An episode that hardly moves along x: its ratio is 40, which alone says neither metres nor millimetres."""
    usual = np.array([0.4, 0.6, 0.3, 0.05]) * (1.0 if factor > 1 else 1000.0)
    level = usual * np.array([0.04 if factor > 1 else 25.0, 1.2, 0.9, 1 / factor]) * factor
    units, found, scaled, certain = _other_unit(level, usual, 1.5 * usual)
    assert (units, found, certain) == ("millimetres and metres", factor, True)
    assert scaled == ((0, 1, 2) if factor > 1 else (1, 2))
    assert not _other_unit(level, usual, 1000.0 * usual)[3]  # another episode reached as far


def test_units_of_the_robot_are_compared(tmp_path: Path) -> None:
    robot = metaworld_embodiment((reaching.SIDE, reaching.SIDE))
    episodes = [with_state(scale(slice(3), 1000))(each) for each in reaching.episodes()]
    folder = reaching.write(tmp_path / "d", episodes)
    assert check(folder, decode="none").problems == ()
    (problem,) = check(folder, decode="none", robot=robot).problems
    assert problem.kind == "units"
    assert "too large for m" in problem.what


def test_a_duplicate_is_one_where_it_looks_the_same(tmp_path: Path) -> None:
    episodes = reaching.episodes(4)
    recoloured = replace(episodes[1], images={name: frames // 2 for name, frames in episodes[1].images.items()})
    report = check(reaching.write(tmp_path / "same", [*episodes, episodes[1]]))
    assert [(problem.kind, problem.episode) for problem in report.problems] == [("duplicate", 4)]
    assert check(reaching.write(tmp_path / "other", [*episodes, recoloured])).problems == ()
    assert len(check(tmp_path / "other", decode="none").problems) == 1, "without pictures it is a suspicion"


def test_good_demonstrations_have_no_problem(tmp_path: Path) -> None:
    report = check(reaching.write(tmp_path / "d", reaching.episodes(8)))
    assert report.problems == ()
    assert check(tmp_path / "d", decode="none") == replace(report, decoded=0)


def test_a_gripper_that_waits_although_it_is_told_to_close_is_not_mirrored(tmp_path: Path) -> None:
    """Its episode closes from the start; before it listens, it stands still for longer than it then moves."""
    closed = [
        with_action(assign(slice(None), value, 3))(each)
        for value, each in zip((1, -1) * 4, reaching.episodes(8), strict=True)
    ]
    for number, episode in enumerate(closed):
        opening = 1 - 0.7 * np.clip(np.arange(100) / 10, 0, 1) if number % 2 == 0 else np.ones(100)
        closed[number] = with_state(assign(slice(None), opening, 3))(episode)
    closed[2] = waiting(0, 180)(closed[2])
    report = check(reaching.write(tmp_path / "d", closed), decode="none")
    assert [(problem.kind, problem.episode) for problem in report.problems] == [("idle", 2)]


def test_a_camera_that_never_sees_the_robot_is_named_once(tmp_path: Path) -> None:
    episodes = [
        with_pictures("left", lambda frames: frames.__setitem__(slice(None), frames[0]))(e) for e in reaching.episodes()
    ]
    (problem,) = check(reaching.write(tmp_path / "d", episodes)).problems
    assert (problem.kind, problem.key, problem.episode) == ("frozen", "left", None)


def test_pauses_glances_and_rare_motion_are_no_problems(tmp_path: Path) -> None:
    """A pause of half a second, a few frames that a camera repeats, and a dimension that moves in one episode only."""
    episodes = reaching.episodes()
    episodes[0] = waiting(50, 40)(episodes[0])
    episodes[1] = with_pictures("head", lambda frames: frames.__setitem__(slice(30, 36), frames[30]))(episodes[1])
    rare = [with_state(scale(slice(0, 1), 1e-3))(each) for each in episodes[1:]]
    assert check(reaching.write(tmp_path / "d", [episodes[0], *rare])).problems == ()


def test_all_episodes_behind_a_damaged_one_are_looked_at(tmp_path: Path) -> None:
    folder = reaching.write(tmp_path / "d", reaching.episodes(4))
    path = folder / "videos/observation.images.head/chunk-000/file-000.mp4"
    data = bytearray(path.read_bytes())
    for part in (0.3, 0.6):
        place = int(len(data) * part)
        data[place : place + 400] = bytes(400)
    path.write_bytes(data)
    damaged = [problem.episode for problem in check(folder).problems]
    assert damaged == [1, 2]


def test_usual_ranges_are_those_of_sorted_rows() -> None:
    values = np.random.default_rng(0).normal(size=(1234, 3))
    low, high = usual_range(values)
    ordered = np.sort(values, axis=0)
    assert np.array_equal(low, ordered[13])
    assert np.array_equal(high, ordered[-14])
    low, high = usual_range(values[:10])
    assert np.array_equal(low, high)


def test_runs() -> None:
    assert runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert runs(np.zeros(3, bool)) == []


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8, 20])
def test_windows_in_few_passes_are_windows_one_by_one(window: int) -> None:
    values = np.random.default_rng(window).normal(size=(40, 2))
    found = check_rows._windowed(values, window, np.maximum)
    assert np.array_equal(found, [values[t : t + window].max(0) for t in range(40 - window + 1)])


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (np.arange(10) / 10, True),
        (5 + np.arange(10) / 10, True),
        (np.arange(10) / 10 + np.tile([0, 0.03], 5), True),
        (np.arange(10) / 20, False),
        (np.delete(np.arange(11), 4) / 10, False),
        (np.arange(10)[::-1] / 10, False),
        (np.full(10, np.nan), False),
    ],
)
def test_evenly_timed_rows(time: np.ndarray, expected: bool) -> None:
    assert evenly_timed(time, 10) == expected


def test_cells_are_means() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    expected = [[picture[8 * i : 8 * i + 8, 8 * j : 8 * j + 8, 1].mean() for j in range(6)] for i in range(4)]
    assert np.allclose(cells(picture), expected)
    assert cells(np.zeros((480, 640, 3), np.uint8)).shape == (16, 16)
    assert cells(np.full((2, 2, 3), 7, np.uint8)).tolist() == [[7]]


def test_a_watch_keeps_stretches_and_their_ends() -> None:
    watch = Watch(fps=8)  # four frames are half a second
    for level in [0] * 5 + [100] * 3 + [0] * 3 + [50] * 4:
        watch.see(np.full((16, 16, 3), level, np.uint8))
    look = watch.look()
    assert look.frames == 15
    assert look.black == ((0, 5),)
    assert look.still == ((0, 5), (11, 15))
    assert check_pictures.BLACK < 50


def test_a_problem_says_its_kind() -> None:
    problem = Problem(what="w", fix="f", file=Path("x"))
    assert problem.to_json()["kind"] == "format"
    assert problem.of_files
    assert not replace(problem, kind="time").of_files
