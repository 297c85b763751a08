"""More robots than the start has: whose rows and statistics stay, whose begin anew, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from actwam.checkpoint import Checkpoint, Setup, load, read_setup, save
from actwam.data.dataset import LeRobotDataset
from actwam.data.embodiment import Embodiment
from actwam.data.normalize import Normalizer
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import RobotTransform
from actwam.model.projectors import EmbodimentLinear
from actwam.model.transformer import WorldActionTransformer
from actwam.policy import Policy
from actwam.train.config import Lora, Recipe, SourceConfig
from actwam.train.datasets import open_datasets
from actwam.train.grow import grow, known_robots, require_range, sizes_for
from actwam.train.loop import Run, train
from actwam.train.prepare import initial
from actwam.train.state import TrainState
from actwam.types import Mode

OLD = tiny.robot(0)
NEW = tiny.robot(1, name="new")
ONE = tiny.config(embodiments=1)


def silent(what: str, done: int, total: int) -> None:
    pass


def setup(*robots: RobotTransform, embodiments: int = 1, **trained: Any) -> Setup:
    checkpoint = tiny.checkpoint(robots=robots)
    fields = {name: getattr(checkpoint, name) for name in ("text", "table", "robots", "window", "sampling", "future")}
    return Setup(model=tiny.config(embodiments=embodiments), trained=trained, **fields)


def rows(model: WorldActionTransformer, index: int) -> dict[str, Tensor]:
    """What belongs to one robot."""
    return {
        f"{name}.{part}": getattr(layer, part)[index].detach().clone()
        for name, layer in model.named_modules()
        if isinstance(layer, EmbodimentLinear)
        for part in ("weight", "bias")
    }


def shared(model: WorldActionTransformer) -> dict[str, Tensor]:
    own = {
        f"{n}.{p}"
        for n, layer in model.named_modules()
        if isinstance(layer, EmbodimentLinear)
        for p in ("weight", "bias")
    }
    return {name: tensor for name, tensor in tiny.weights_of(model).items() if name not in own}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("grow")
    return {
        "old": tiny.write_dataset(root / "old", OLD),
        "new": tiny.write_dataset(root / "new", NEW),
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one robot."""
    folder = tmp_path_factory.mktemp("start") / "start"
    save(tiny.checkpoint(model=tiny.model("two", embodiments=1), robots=(tiny.transform(OLD),)), folder)
    return folder


def recipe(start: Path, *names: str, robots: tuple[Embodiment, ...] = (NEW,), **changes: Any) -> Recipe:
    """Demonstrations of these datasets; stage fields as `stage`."""
    stage = tiny.stage(
        sources=tuple(SourceConfig(dataset=name, mode=Mode.POLICY) for name in names or ("new",)),
        **changes.pop("stage", {}),
    )
    sizes = {"model": tiny.config("two"), "codec": None, "text": None}
    return tiny.recipe(stage, start=start, robots=robots, **{**sizes, **changes})


def began(made: Recipe, data: dict[str, Path], cache: Path) -> Checkpoint:
    return initial(made, open_datasets(made, data), cache, silent)


def test_a_new_robot_begins_as_the_first_and_all_else_stays(start: Path, data: dict[str, Path], tmp_path: Path) -> None:
    before, made = load(start).model, began(recipe(start), data, tmp_path)
    assert made.model.config == tiny.config("two", embodiments=2)
    assert same(shared(made.model), shared(before))
    assert same(rows(made.model, 0), rows(before, 0))
    new, first = rows(made.model, 1), rows(before, 0)
    assert same({n: t for n, t in new.items() if "state" in n}, {n: t for n, t in first.items() if "state" in n})
    used = len(NEW.action_names)  # of three: the third is padding to it, and silent
    assert torch.equal(new["action_decoder.last.weight"][:, :used], first["action_decoder.last.weight"][:, :used])
    assert not new["action_decoder.last.weight"][:, used:].any()
    assert [robot.embodiment.name for robot in made.robots] == ["new", OLD.name]
    save(made, tmp_path / "made")
    read = load(tmp_path / "made")
    assert same(tiny.weights_of(read.model), tiny.weights_of(made.model))


def test_the_old_robot_acts_as_before(start: Path, data: dict[str, Path], tmp_path: Path) -> None:
    save(began(recipe(start), data, tmp_path / "cache"), tmp_path / "grown")
    before, after = (
        Policy.load(folder, robot=OLD.name).act(tiny.observation()) for folder in (start, tmp_path / "grown")
    )
    # to the last bit but one: where weights lie in memory decides how they are multiplied
    assert np.allclose(before.actions, after.actions, rtol=1e-5, atol=1e-5)


def test_a_recipe_says_whose_projectors_are_copied() -> None:
    model = tiny.model(embodiments=2)
    there = setup(tiny.transform(OLD), tiny.transform(tiny.robot(1)), embodiments=2)
    third = replace(OLD, name="third", index=2)
    before = [rows(model, index) for index in range(2)]
    made = tiny.recipe(start=Path("x"), robots=(third,), model=tiny.config(embodiments=3), like="robot_1")
    grow(model, there, made)
    assert [same(rows(model, index), before[index % 2]) for index in range(2)] == [True, True]
    assert same(rows(model, 2), before[1])
    model = tiny.model(embodiments=2)
    grow(model, there, replace(made, like=None))
    assert same(rows(model, 2), before[0])


@pytest.mark.parametrize(
    ("robots", "trained", "copied"),
    [
        ((tiny.transform(OLD),), {}, True),  # its row was never trained
        ((), {}, False),
        ((tiny.transform(OLD),), {"imported": "gwp05"}, False),
        ((), {"imported": "gwp0"}, True),
    ],
)
def test_rows_that_the_start_has_are_new_where_they_were_never_trained(
    robots: tuple[RobotTransform, ...], trained: dict[str, str], copied: bool
) -> None:
    model = tiny.model(embodiments=2)
    before = [rows(model, index) for index in range(2)]
    made = tiny.recipe(start=Path("x"), robots=(NEW,), model=tiny.config())
    grow(model, setup(*robots, embodiments=2, **trained), made)
    assert same(rows(model, 0), before[0])
    assert same(rows(model, 1), before[0 if copied else 1])


@pytest.mark.parametrize("more", [{}, {"ema_decay": None}, {"lora": Lora(rank=2, alpha=2.0)}], ids=str)
def test_rows_of_robots_that_are_not_there_to_learn_stay_to_the_bit(
    more: dict[str, Any], start: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    """Weight decay, moments, the moving average: nothing moves them, in whatever way the rest is trained."""
    made = recipe(start, stage={"weight_decay": 0.5, "steps": 3, **more})
    first = began(made, data, tmp_path / "cache").model
    after = load(train(made, data, Run(out=tmp_path / "run", cache=tmp_path / "cache"))).model
    assert same(rows(after, 0), rows(first, 0))
    assert not same(rows(after, 1), rows(first, 1))
    assert not same(shared(after), shared(first))


def test_8_bit_moments_and_rounding_by_chance_leave_them_too() -> None:
    torch.manual_seed(0)
    layer = EmbodimentLinear(2, 64, 64).bfloat16()
    stage = tiny.stage(optimizer="adamw8bit", weights="bf16", ema_decay=None, precision="auto", weight_decay=0.5)
    state, before = TrainState.start(layer, stage), layer.weight.detach().clone()
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than all else here
        for step in range(3):
            layer(torch.randn(4, 3, 64).bfloat16(), torch.ones(4, dtype=torch.long)).square().sum().backward()
            state.update(1e-2, step)
    assert torch.equal(layer.weight[0], before[0])
    assert not torch.equal(layer.weight[1], before[1])


def test_video_of_a_robot_leaves_its_rows_to_the_bit(start: Path, data: dict[str, Path], tmp_path: Path) -> None:
    """Its actions stand in a batch with those of another robot, masked."""
    both = tuple(SourceConfig(dataset=name, mode=mode) for name, mode in (("old", Mode.POLICY), ("new", Mode.VIDEO)))
    stages = (tiny.stage(sources=both, weight_decay=0.5, steps=3),)
    made = replace(recipe(start, robots=(NEW, OLD)), stages=stages)
    first = began(made, data, tmp_path / "cache").model
    after = load(train(made, data, Run(out=tmp_path / "run", cache=tmp_path / "cache"))).model
    assert same(rows(after, 1), rows(first, 1))
    assert not same(rows(after, 0), rows(first, 0))


def test_statistics_stay_while_the_numbers_mean_what_they_meant(
    start: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    stats = tiny.transform(OLD)
    made = began(recipe(start, "old", "new", robots=(OLD, NEW)), data, tmp_path)
    assert made.robots[0] == stats
    assert made.robots[1].action.stats.count != stats.action.stats.count  # of its dataset
    fitted = began(recipe(start, "old", "new", robots=(OLD, NEW), refit=(OLD.name,)), data, tmp_path)
    assert fitted.robots[0].action.stats.count == tiny.HORIZON * sum(n - tiny.HORIZON + 1 for n in (14, 15, 16))
    kept = began(recipe(start), data, tmp_path)
    assert kept.robots[1] == stats


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({}, True),
        ({"cameras": {"head": "front", "left": "a", "right": "b"}, "image_size": (64, 64)}, True),
        ({"fps": 20}, False),
        ({"index": 1}, False),
        ({"action_names": ("x", "grip", "y")}, False),
        ({"state_names": ("a", "b", "c")}, False),
        ({"delta_mask": (True, False, False)}, False),
    ],
)
def test_what_must_be_as_it_was(changes: dict[str, Any], stays: bool) -> None:
    robot = replace(OLD, **changes)
    made = tiny.recipe(start=Path("x"), robots=(robot,), model=tiny.config())
    known = known_robots(made, setup(tiny.transform(OLD), embodiments=2))
    assert (OLD.name in known) == stays
    if stays:
        assert known[OLD.name] == replace(tiny.transform(OLD), embodiment=robot)


@pytest.mark.parametrize(
    ("robots", "drop", "embodiments"),
    [
        ((), (), 1),
        ((OLD,), (), 1),
        ((NEW,), (), 2),
        ((NEW, replace(NEW, name="newer", index=2)), (), 3),
        ((NEW, replace(NEW, name="twin")), (), 2),
        ((replace(NEW, index=0),), (OLD.name,), 1),
    ],
)
def test_there_are_as_many_embodiments_as_robots_need(
    robots: tuple[Embodiment, ...], drop: tuple[str, ...], embodiments: int
) -> None:
    assert sizes_for(setup(tiny.transform(OLD)), robots, "here", drop) == tiny.config(embodiments=embodiments)


def test_rows_that_no_robot_has_are_taken_first() -> None:
    assert sizes_for(setup(tiny.transform(OLD), embodiments=4), (replace(NEW, index=3),), "here").embodiments == 4


@pytest.mark.parametrize(
    ("robots", "drop", "said"),
    [
        (
            (replace(NEW, index=0),),
            (),
            "here: index 0 of embodiment new is that of robot robot_0 there, whose projectors would be trained over: "
            "give new index 1",
        ),
        ((replace(NEW, index=0), replace(NEW, name="b")), (), "give new index 2"),
        ((replace(OLD, index=1),), (), "robot robot_0 has index 0 there and 1 here"),
        ((replace(NEW, index=5),), (), "here: index 5 of embodiment new leaves rows unused: take 1"),
        ((NEW,), ("stranger",), "here: has no robot stranger to drop; it has robot_0"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    robots: tuple[Embodiment, ...], drop: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError) as error:
        sizes_for(setup(tiny.transform(OLD)), robots, "here", drop)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"robots": (replace(OLD, name="new"),)}, "start: index 0 of embodiment new is that of robot robot_0"),
        ({"refit": ("stranger",)}, "start: has no robot stranger to refit; it has robot_0"),
        ({"like": "stranger"}, "start: has no robot stranger to begin like; it has robot_0"),
        ({"drop": ("stranger",)}, "start: has no robot stranger to drop; it has robot_0"),
    ],
)
def test_a_recipe_that_does_not_fit_its_start_is_refused(
    changes: dict[str, Any], said: str, start: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    """Before its weights are read."""
    robots = changes.get("robots", (NEW,))
    folders = {**data, "new": tiny.write_dataset(tmp_path / "like", robots[0])}
    made = recipe(start, **changes)
    with pytest.raises(ValueError, match=said) as error:
        began(made, folders, tmp_path)
    assert "\n" not in str(error.value)


def test_a_dropped_robot_gives_its_index(start: Path, tmp_path: Path) -> None:
    twin = replace(OLD, name="new")
    made = recipe(start, robots=(twin,), drop=(OLD.name,), model=tiny.config("two", embodiments=1))
    begun = began(made, {"new": tiny.write_dataset(tmp_path / "twin", twin)}, tmp_path)
    assert [robot.embodiment for robot in begun.robots] == [twin]
    assert same(rows(begun.model, 0), rows(load(start).model, 0))


def test_a_robot_wider_than_the_model_is_refused(start: Path) -> None:
    wide = replace(NEW, state_names=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="embodiment new has 4 state dimensions, the model is 3 wide"):
        recipe(start, robots=(wide,))


def ranged(actions: np.ndarray, **how: Any) -> RobotTransform:
    """Robot 0 with statistics of these actions."""
    return replace(tiny.transform(OLD), action=Normalizer(compute_stats(actions, OLD.action_names), **how))


def test_numbers_far_from_the_statistics_that_stay_are_refused(data: dict[str, Path], tmp_path: Path) -> None:
    dataset, window = LeRobotDataset.open(data["old"]), tiny.checkpoint().window
    require_range(ranged(dataset.action), dataset, window, Path("start"), tmp_path)
    require_range(ranged(dataset.action * 5 + 3), dataset, window, Path("start"), tmp_path)
    with pytest.raises(ValueError, match=r"old: action: x reaches 58 times the range .* refit robot_0") as error:
        require_range(
            ranged(dataset.action * np.array([np.pi / 180, 1, 1], np.float32)),
            dataset,
            window,
            Path("start"),
            tmp_path,
        )
    assert "\n" not in str(error.value)


def test_a_dimension_that_stood_still_may_not_begin_to_move(data: dict[str, Path], tmp_path: Path) -> None:
    """It would be held at its constant, whatever the demonstrations show."""
    dataset, window = LeRobotDataset.open(data["old"]), tiny.checkpoint().window
    still = dataset.action.copy()
    still[:, 2] = 0.5
    robot = ranged(still, constant="center")
    with pytest.raises(ValueError, match=r"old: action: grip moves, and stands still at 0.5 in the statistics"):
        require_range(robot, dataset, window, Path("start"), tmp_path / "moving")
    require_range(robot, replace(dataset, action=still), window, Path("start"), tmp_path / "still")


def test_a_kept_robot_goes_through_stages_and_resuming(start: Path, data: dict[str, Path], tmp_path: Path) -> None:
    one = recipe(start)
    made = replace(one, stages=(replace(one.stages[0], name="first"), replace(one.stages[0], name="second")))
    run = Run(out=tmp_path / "run", cache=tmp_path / "cache")
    folder = train(made, data, run)
    assert [robot.embodiment.name for robot in read_setup(folder).robots] == ["new", OLD.name]
    assert read_setup(folder).robots[1] == tiny.transform(OLD)
    assert train(made, data, replace(run, resume=True)) == folder
    assert Policy.load(folder, robot=OLD.name).act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)
