"""Mixtures in a recipe: each source becomes one for every dataset that is there, and training is a function of that."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import clip_files
import pytest
import tiny
import torch
import yaml
from hub_server import Hub, hub_here
from safetensors.torch import load_file

from actwam import cli
from actwam.checkpoint import checkpoints, load
from actwam.data.embodiment import Embodiment
from actwam.data.mixture import Found, find, read_mixture
from actwam.data.transforms import View
from actwam.policy import Policy
from actwam.train.config import CodecConfig, Recipe, SourceConfig
from actwam.train.datasets import FILES_BESIDE, allow_open_files, open_datasets
from actwam.train.encode import mixture
from actwam.train.loop import Run, train
from actwam.train.mixtures import expanded, resolve
from actwam.train.prepare import initial
from actwam.types import Mode

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixtures" / "gwp_pretraining.yaml"
VIDEO = SourceConfig(dataset="general", mode=Mode.VIDEO, weight=3.0)
POLICY = SourceConfig(dataset="general", mode=Mode.POLICY)


def silent(what: str, done: int, total: int) -> None:
    pass


def recipe(*sources: SourceConfig, **changes: Any) -> Recipe:
    return tiny.recipe(tiny.stage(sources=sources), **changes)


def another(name: str, *cameras: str, **changes: Any) -> Embodiment:
    """A robot without state and actions that is none of the recipe's."""
    nothing = {"state_names": (), "action_names": (), "delta_mask": ()}
    slots = {f"slot_{n}": camera for n, camera in enumerate(cameras)}
    return tiny.robot(0, **{"name": name, "cameras": slots, **nothing, **changes})


def written(path: Path, **members: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"members": members}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the paper's nine sources, small, beside its mixture; and demonstrations."""
    root = tmp_path_factory.mktemp("mixtures")
    shutil.copy(EXAMPLE, root / "pretraining.yaml")
    clip_files.write_clips(root / "egodex", tiny.squares(36, 60, 29, 70), tiny.squares(64, 48, 39, 71), fps=20)
    for number, task in enumerate(("task_327", "task_352")):
        hands = another("agibot", "head", "hand_left", "hand_right", "back", fps=30)
        tiny.write_dataset(root / "agibot" / task, hands, episodes=2 + number, length=30)
    tiny.write_dataset(root / "oxe" / "bridge", another("widowx", "image_0", "image_1", fps=5))
    tiny.write_dataset(root / "demos", tiny.robot(0))
    return root


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_here(tmp_path / "hub", monkeypatch) as server:
        yield server


def found(name: str, weight: int, **more: Any) -> Found:
    return Found(f"/{name}", Path(name), float(weight), **more)


def test_every_source_becomes_one_for_each_dataset() -> None:
    parts = (found("a", 1), found("b", 2, video=True, fps=5), found("c", 5))
    made, places = expanded(
        recipe(VIDEO, POLICY, SourceConfig(dataset="demos", mode=Mode.POLICY)),
        {"general": parts, "demos": (Found("", Path("d"), 1.0),)},
    )
    sources = made.stages[0].sources
    assert [(s.dataset, s.mode, s.fps) for s in sources] == [
        ("general/a", Mode.VIDEO, None),
        ("general/b", Mode.VIDEO, 5),
        ("general/c", Mode.VIDEO, None),
        ("general/a", Mode.POLICY, None),
        ("general/c", Mode.POLICY, None),
        ("demos", Mode.POLICY, None),
    ]
    assert [s.weight for s in sources] == [3 / 8, 6 / 8, 15 / 8, 1 / 6, 5 / 6, 1.0]
    assert places == {"general/a": Path("a"), "general/b": Path("b"), "general/c": Path("c"), "demos": Path("d")}


def test_the_codec_is_fitted_on_what_is_used() -> None:
    parts = {"general": (found("a", 1), found("b", 2, video=True))}
    codec = CodecConfig(patch=tiny.PATCH, channels=tiny.CHANNELS, datasets=("general", "other"))
    made, _ = expanded(recipe(POLICY, codec=codec), parts)
    assert made.codec is not None
    assert made.codec.datasets == ("general/a", "other")
    made, _ = expanded(recipe(replace(POLICY, dataset="demos"), codec=codec), parts)
    assert made.codec is not None
    assert made.codec.datasets == ("general/a", "general/b", "other")


def test_actions_of_video_alone_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"dataset general: all that is there of it is for video alone, .* mode policy"
    ):
        expanded(recipe(POLICY), {"general": (found("a", 1, video=True),)})


def test_a_view_names_the_slots_of_the_recipe_or_others() -> None:
    like = tiny.LAYOUT
    views = ({"head": "a", "left": "b", "right": "c"}, {"whole": "a"}, {"top": "a", "below": "b"})
    made, _ = expanded(recipe(VIDEO), {"general": [found(str(n), 1, video=True, view=v) for n, v in enumerate(views)]})
    pictures = [source.view for source in made.stages[0].sources]
    assert pictures[0] == View(like, views[0])
    for picture, cameras in zip(pictures, views, strict=True):
        assert picture is not None
        assert (picture.cameras, picture.layout.height, picture.layout.width) == (cameras, like.height, like.width)
    many = {f"slot_{n}": f"camera_{n}" for n in range(5)}
    with pytest.raises(ValueError, match=r"dataset general/x: a picture of .* does not divide into 5 equal rows"):
        expanded(recipe(VIDEO), {"general": [found("x", 1, video=True, view=many)]})


def test_without_a_mixture_nothing_changes(root: Path) -> None:
    made, data = recipe(VIDEO), {"general": root / "demos"}
    assert resolve(made, data, pytest.fail) == (made, data)


def test_what_is_absent_is_said_once(root: Path) -> None:
    said: list[str] = []
    made, places = resolve(
        recipe(VIDEO, replace(VIDEO, weight=1.0)), {"general": root / "pretraining.yaml"}, said.append
    )
    absent = ["ego4d", "robomind", "rdt", "droid", "atara", "something_something_v2"]
    assert [line.split(" is not at ")[0] for line in said] == [f"general: {name}" for name in absent]
    assert said[0].startswith("general: ego4d is not at ego4d: sign the agreement")
    assert "https://ego4d-data.org" in said[0]
    names = ["egodex", "agibot/task_327", "agibot/task_352", "open_x_embodiment/bridge"]
    assert list(places) == [f"general/{name}" for name in names]
    sources = made.stages[0].sources
    assert sum(source.weight for source in sources) == pytest.approx(4.0)
    weights = {source.dataset: source.weight for source in sources[:4]}
    assert weights["general/egodex"] == pytest.approx(3 * 800 / 6800)
    assert weights["general/agibot/task_327"] == pytest.approx(3 * 2500 / 6800 * 61 / (61 + 93))
    assert sources[1].view == View(tiny.LAYOUT, {"head": "head", "left": "hand_left", "right": "hand_right"})
    assert sources[3].view is not None
    assert sources[3].view.cameras == {"whole": "image_0"}


def test_short_episodes_are_left_out_and_counted(root: Path, tmp_path: Path) -> None:
    tiny.write_dataset(tmp_path / "short", tiny.robot(0), length=3)
    path, said = written(tmp_path / "m.yaml", one={"data": "short", "weight": 1, "short": "leave out"}), list[str]()
    train(recipe(POLICY), {"general": path}, Run(out=tmp_path / "a", cache=tmp_path / "c", say=said.append))
    assert said[-1] == "general/one: 1 of 3 episodes are too short and left out"
    strict = written(tmp_path / "n.yaml", one={"data": "short", "weight": 1})
    with pytest.raises(ValueError, match="short: episode 0 has 3 frames, fewer than the 4 of one window"):
        train(recipe(POLICY), {"general": strict}, Run(out=tmp_path / "b", cache=tmp_path / "c"))


def test_nothing_there_is_an_error(root: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "none.yaml", one={"data": "nowhere", "weight": 1})
    with pytest.raises(ValueError, match=r"none\.yaml: none of its 1 members is there; `actwam mixture .*` lists them"):
        resolve(recipe(VIDEO), {"general": path}, lambda text: None)


def demos_and(root: Path) -> tuple[Recipe, dict[str, Path]]:
    demos = SourceConfig(dataset="demos", mode=Mode.POLICY)
    made = recipe(VIDEO, demos)
    return made, {"general": root / "pretraining.yaml", "demos": root / "demos"}


def test_three_of_nine_are_trained_on_and_resumed(root: Path, tmp_path: Path) -> None:
    """In one go, and stopped in the middle: the same weights; and another mixture is another run."""
    made, data = demos_and(root)
    run = Run(out=tmp_path / "run", cache=tmp_path / "cache")
    whole = train(made, data, run)
    last = checkpoints(whole)[-1]
    first = load_file(shutil.move(last, tmp_path / "first") / "model.safetensors")
    assert train(made, data, replace(run, resume=True)) == whole
    second = load_file(last / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    config = load(checkpoints(whole)[-1]).trained["config"]
    assert [source["dataset"] for source in config["sources"]] == [
        "general/egodex",
        "general/agibot/task_327",
        "general/agibot/task_352",
        "general/open_x_embodiment/bridge",
        "demos",
    ]
    assert Policy.load(whole).act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)
    text = (root / "pretraining.yaml").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mixture.yaml").write_text(text.replace("hours: 800", "hours: 900"))
    for folder in ("egodex", "agibot", "oxe"):
        (other / folder).symlink_to(root / folder)
    with pytest.raises(ValueError, match=r": sources of stage align changed since; train in another folder"):
        train(made, {**data, "general": other / "mixture.yaml"}, replace(run, resume=True))


def test_the_batches_of_a_mixture_are_a_function_of_seed_and_step(root: Path, tmp_path: Path) -> None:
    """Opened anew, with rows from the cache: every batch from any step on is the same, to the bit."""
    made, data = demos_and(root)
    runs = []
    for cache in (tmp_path / "cache", None):
        one, places = resolve(made, data, lambda text: None)
        datasets = open_datasets(one, places, cache)
        begun = initial(one, datasets, tmp_path / "latents", silent)
        runs.append(mixture(one.stages[0], begun, datasets, tmp_path / "latents", silent))
    for step in (5, 0, 11):
        batches = [run.batch(step) for run in runs]
        assert batches[0].modes == batches[1].modes
        assert batches[0].instructions == batches[1].instructions
        for name, value in vars(batches[0]).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(batches[1], name)), name


def test_many_datasets_side_by_side(tmp_path: Path) -> None:
    """Members with actions keep their own robots."""
    for number in range(20):
        tiny.write_dataset(tmp_path / "many" / f"{number:02d}", tiny.robot(number % 2), episodes=2, length=8)
    path = written(tmp_path / "many.yaml", many={"data": "many/*", "weight": 1})
    robots = (tiny.robot(0), tiny.robot(1))
    made = recipe(POLICY, robots=robots, model=tiny.config(embodiments=2))
    one, places = resolve(made, {"general": path}, pytest.fail)
    datasets = open_datasets(one, places, tmp_path / "cache")
    begun = initial(one, datasets, tmp_path / "cache", silent)
    batches = mixture(one.stages[0], begun, datasets, tmp_path / "cache", silent)
    assert len(batches.sources) == 20
    assert {source.transform.embodiment.name for source in batches.sources} == {"robot_0", "robot_1"}
    seen = {int(n) for step in range(10) for n in batches.batch(step).embodiment}
    assert seen == {0, 1}


def test_a_dataset_of_the_hub_is_trained_on_and_pinned(hub: Hub, root: Path, tmp_path: Path) -> None:
    commit = hub.publish("someone/demos", root / "demos")
    made, said = recipe(SourceConfig(dataset="demos", mode=Mode.POLICY)), list[str]()
    data, run = {"demos": Path("stream:someone/demos")}, Run(out=tmp_path / "a", cache=tmp_path / "c", say=said.append)
    there = train(made, data, run)
    assert said[0] == f"demos: stream:someone/demos@{commit}"
    assert not list((tmp_path / "hub").rglob("*.mp4"))
    (source,) = load(checkpoints(there)[-1]).trained["config"]["sources"]
    assert source["dataset"] == f"demos@{commit}"
    here = train(made, {"demos": root / "demos"}, Run(out=tmp_path / "b", cache=tmp_path / "d"))
    first, second = (load_file(checkpoints(at)[-1] / "model.safetensors") for at in (there, here))
    assert all(torch.equal(first[name], second[name]) for name in first)
    hub.publish("someone/demos", tiny.write_dataset(tmp_path / "newer", tiny.robot(0), episodes=4))
    with pytest.raises(ValueError, match=r": sources of stage align changed since"):
        train(made, data, replace(run, resume=True))
    pinned = {"demos": Path(f"hub:someone/demos@{commit}")}
    assert find(
        read_mixture(written(tmp_path / "m.yaml", one={"data": str(pinned["demos"]), "weight": 1}))[0], tmp_path
    )


def test_only_cameras_of_the_robot_are_fetched(hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.publish("someone/agibot", root / "agibot" / "task_327")
    view = {"head": "head", "left": "hand_left", "right": "hand_right"}
    member = {"data": "hub:someone/agibot", "weight": 1, "mode": "video", "view": view}
    path = written(tmp_path / "m.yaml", one=member)
    made = recipe(VIDEO, SourceConfig(dataset="demos", mode=Mode.POLICY))
    train(made, {"general": path, "demos": root / "demos"}, Run(out=tmp_path / "a", cache=tmp_path / "c"))
    assert {path.split("/")[1].removeprefix("observation.images.") for path in hub.videos()} == set(view.values())


def test_the_command_lists_members(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["actwam", "mixture", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0)

    assert run(root / "pretraining.yaml", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["members"]}
    assert {name: row["found"] for name, row in rows.items() if row["found"]} == {
        "egodex": 1,
        "agibot": 2,
        "open_x_embodiment": 1,
    }
    assert rows["agibot"]["hours"] == pytest.approx((61 + 93) / 30 / 3600)
    assert rows["agibot"]["share"] == pytest.approx(2500 / 6800)
    assert run(root / "pretraining.yaml") == 0
    shown = capsys.readouterr()
    assert "open_x_embodiment" in shown.out
    assert "rdt: is not there: join and unpack" in " ".join(shown.err.split())
    assert run(EXAMPLE) == 1
    assert run(root / "nothing.yaml") == 2


def test_more_files_may_be_open_if_the_system_lets_us() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        allow_open_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (FILES_BESIDE + 100, before[1])
        allow_open_files(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == FILES_BESIDE + 100
        if before[1] != resource.RLIM_INFINITY:
            with pytest.raises(ValueError, match=r"files would be open, and the system allows \d+: raise `ulimit -Hn`"):
                allow_open_files(before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
