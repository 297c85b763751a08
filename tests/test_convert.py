"""Official folders to checkpoints that act, and back."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_official
import torch
from safetensors.torch import load_file, save_file
from tiny_text import text_encoder

from actwam import cli
from actwam.checkpoint import load, save
from actwam.convert import ImportConfig, export_model, import_model
from actwam.data.normalize import Normalizer
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import FutureTransform
from actwam.model.weights import ActionSide
from actwam.policy import Policy
from actwam.tokens import JOINT


@pytest.fixture(params=["gwp0", "gwp05"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(name: str, tmp_path: Path) -> Path:
    return tiny_official.pipeline(tmp_path / "official", name)


@pytest.fixture
def config(tmp_path: Path) -> ImportConfig:
    return tiny_official.import_config(tmp_path)


def test_what_is_imported_acts(name: str, source: Path, config: ImportConfig, tmp_path: Path) -> None:
    """With the robot's statistics: deterministic, every seed another chunk, in the robot's units."""
    import_model(str(source), tmp_path / "out", config)
    policy = Policy.load(tmp_path / "out")
    assert policy.checkpoint.trained["imported"] == name
    assert policy.checkpoint.model.config.noisy_padding
    observation = tiny_official.observation()
    chunk = policy.act(observation)
    assert chunk.actions.shape == (8, 6)
    assert np.array_equal(policy.act(observation).actions, chunk.actions)
    assert not np.array_equal(policy.act(observation, seed=1).actions, chunk.actions)
    assert policy.imagine(observation).video.shape == (4, 64, 96, 3)


def test_there_and_back_gives_the_same_bytes(source: Path, config: ImportConfig, tmp_path: Path) -> None:
    import_model(str(source), tmp_path / "first", config)
    export_model(tmp_path / "first", tmp_path / "exported")
    stats = tmp_path / "exported" / f"norm_stats_{tiny_official.ROBOT}.json"
    again = replace(config, norm_stats=(stats,), text=str(source))
    import_model(str(tmp_path / "exported"), tmp_path / "second", again)
    for file in ("model.safetensors", "codec.safetensors", "norm_stats.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    original = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    exported = load_file(tmp_path / "exported" / "vae" / "diffusion_pytorch_model.safetensors")
    assert set(original) == set(exported)
    assert all(torch.equal(tensor, exported[key]) for key, tensor in original.items())


def test_a_bin_for_their_converter(source: Path, config: ImportConfig, tmp_path: Path) -> None:
    import_model(str(source), tmp_path / "first", config)
    export_model(tmp_path / "first", tmp_path / "exported", pickled=True)
    assert [path.name for path in sorted((tmp_path / "exported" / "transformer").iterdir())] == [
        "config.json",
        "diffusion_pytorch_model.bin",
    ]
    import_model(str(tmp_path / "exported"), tmp_path / "second", replace(config, text=str(source)))
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("first", "second"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_the_official_statistics_are_the_same_map(source: Path, config: ImportConfig, tmp_path: Path) -> None:
    """2 (x - q01) / (q99 - q01) - 1, over actions relative to the state where the mask says so."""
    robot = import_model(str(source), tmp_path / "out", config).robot()
    stats = json.loads(config.norm_stats[0].read_text())["norm_stats"]
    state, action = np.linspace(-1, 1, 6, dtype=np.float32), np.linspace(0, 2, 12, dtype=np.float32).reshape(2, 6)
    low, high = (np.array(stats["observation.state"][q][:6]) for q in ("q01", "q99"))
    expected = 2 * (state - low) / (high - low) - 1
    assert np.allclose(robot.model_state(state)[:6], expected, atol=1e-6)
    assert not robot.model_state(state)[6:].any()
    low, high = (np.array(stats["action"][q][:6]) for q in ("q01", "q99"))
    relative = action - np.where(robot.embodiment.delta_mask, state, 0)
    assert np.allclose(robot.model_action(action, state)[:, :6], 2 * (relative - low) / (high - low) - 1, atol=1e-5)
    assert np.allclose(robot.robot_action(robot.model_action(action, state), state), action, atol=1e-5)


def test_without_a_robot_it_can_be_trained_but_not_act(source: Path, config: ImportConfig, tmp_path: Path) -> None:
    import_model(str(source), tmp_path / "out", replace(config, robots=(), norm_stats=()))
    assert load(tmp_path / "out").robots == ()
    with pytest.raises(ValueError, match="no robot: name one when importing it, or fine-tune"):
        Policy.load(tmp_path / "out")


@pytest.mark.parametrize("experts", ["one", "two"])
def test_wan_as_the_start_of_training(experts: str, tmp_path: Path, config: ImportConfig) -> None:
    source = tiny_official.wan_pipeline(tmp_path / "wan")
    side = ActionSide(width=9, embodiments=2, expert=(48, 80) if experts == "two" else None)
    out = import_model(str(source), tmp_path / "out", replace(config, robots=(), norm_stats=(), actions=side))
    assert out.trained["imported"] == "wan"
    sizes = load(tmp_path / "out").model.config
    assert (sizes.action_width, sizes.embodiments, len(sizes.experts)) == (9, 2, 1 if experts == "one" else 2)


def run(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["actwam", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_the_commands(
    source: Path,
    config: ImportConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--robots", *config.robots, "--norm-stats", *config.norm_stats, "--picture", 64, 96, "--action-horizon", 8]
    assert run("import", source, "--out", tmp_path / "out", *words, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    export = ("export", tmp_path / "out", "--out", tmp_path / "exported", "--format", "bin")
    assert run(*export, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "exported" / "transformer" / "diffusion_pytorch_model.bin").is_file()


def without(folder: Path, *parts: str) -> None:
    for part in parts:
        shutil.rmtree(folder / part)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def column(config: ImportConfig, name: str, place: int, value: Any) -> None:
    """Write one number into the statistics of the state."""
    data = json.loads(config.norm_stats[0].read_text())
    data["norm_stats"]["observation.state"][name][place] = value
    config.norm_stats[0].write_text(json.dumps(data))


def heads(source: Path, number: int, width: int) -> None:
    rewrite(source / "transformer" / "config.json", num_attention_heads=number, attention_head_dim=width)


def poison(path: Path) -> None:
    tensors = load_file(path)
    tensors["proj_out.bias"][3] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s, c: without(s, "transformer"), "has no config.json"),
        (lambda s, c: (s / "transformer" / "diffusion_pytorch_model.safetensors").unlink(), "no weights here"),
        (lambda s, c: rewrite(s / "transformer" / "config.json", num_layers=3), "num_layers is 3"),
        (lambda s, c: without(s, "vae"), "Wan-AI/Wan2.2-TI2V-5B-Diffusers: no such folder, and not to be had"),
        (lambda s, c: without(s, "text_encoder", "tokenizer"), "Wan-AI/Wan2.2-TI2V-5B-Diffusers: no such folder"),
        (lambda s, c: text_encoder(s, width=24), "reads a text encoder of width 16, the one given has 24"),
        (lambda s, c: rewrite(c.norm_stats[0], norm_stats={}), "has no norm_stats of observation.state and action"),
        (lambda s, c: c.robots[0].write_text("name: 3"), "robot.yaml"),
        (lambda s, c: c.robots[0].write_text(c.robots[0].read_text() + "fps: 7\n"), "key fps stands twice"),
        (lambda s, c: tiny_official.robot_file(c.robots[0].parent, name="a/b"), "name is 'a/b'"),
        (lambda s, c: tiny_official.robot_file(c.robots[0].parent, cameras={"haed": "front"}), "see head, left, right"),
        (lambda s, c: column(c, "q01", 0, 9.0), "min <= q01 <= q99 <= max"),
        (lambda s, c: column(c, "q99", 0, "high"), "expected at least 6 numbers"),
        (lambda s, c: column(c, "q99", 7, 1.0), "has more than the 6 dimensions"),
        (
            lambda s, c: rewrite(s / "transformer" / "config.json", num_attention_heads=-2, attention_head_dim=-32),
            "-2 x",
        ),
        (lambda s, c: rewrite(s / "transformer" / "config.json", num_attention_heads=64, attention_head_dim=1), "64 x"),
        (lambda s, c: poison(s / "transformer" / "diffusion_pytorch_model.safetensors"), "NaN or Inf in proj_out.bias"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    spoil: Any, said: str, config: ImportConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_official.pipeline(tmp_path / "official", "gwp05")
    spoil(source, config)
    with pytest.raises(ValueError) as error:
        import_model(str(source), tmp_path / "out", config)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out*"))


def test_other_refusals(config: ImportConfig, tmp_path: Path) -> None:
    source = tiny_official.pipeline(tmp_path / "official", "gwp05")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out: exists already"):
        import_model(str(source), tmp_path / "out", config)
    with pytest.raises(ValueError, match="1 robots and 0 files of statistics"):
        import_model(str(source), tmp_path / "new", replace(config, norm_stats=()))
    twice = replace(config, robots=config.robots * 2, norm_stats=config.norm_stats * 2)
    with pytest.raises(ValueError, match="two robots are called"):
        import_model(str(source), tmp_path / "new", twice)
    with pytest.raises(ValueError, match="is gwp05; experts: for Wan only"):
        import_model(str(source), tmp_path / "new", replace(config, only_for_wan=("experts",)))
    with pytest.raises(ValueError, match="nobody/nothing: no such folder, and not to be had from the Hub"):
        import_model("nobody/nothing", tmp_path / "new", config)
    with pytest.raises(ValueError, match="no such folder, and no Hub id"):
        import_model(str(tmp_path / "nowhere"), tmp_path / "new", config)


def test_a_model_of_our_own_is_not_exported(tmp_path: Path, config: ImportConfig) -> None:
    save(tiny.checkpoint("two"), tmp_path / "ours")
    with pytest.raises(ValueError, match="its codec is patch_pca"):
        export_model(tmp_path / "ours", tmp_path / "exported")
    imported = import_model(str(tiny_official.pipeline(tmp_path / "official", "gwp05")), tmp_path / "out", config)
    save(replace(imported, model=tiny.model("two", precondition=True)), tmp_path / "other")
    with pytest.raises(ValueError, match="no counterpart among the official ones: it preconditions"):
        export_model(tmp_path / "other", tmp_path / "exported")
    assert not list(tmp_path.glob("exported*"))


def test_what_stands_still_is_what_it_is_officially(name: str, tmp_path: Path, config: ImportConfig) -> None:
    """2 (x - q01) / max(q99 - q01, 1e-8) - 1 is -1 for it there, both ways; exported, it is what it was trained on."""
    source = tiny_official.pipeline(tmp_path / "official", name)
    stats = json.loads(config.norm_stats[0].read_text())
    for part in stats["norm_stats"].values():
        for column in ("mean", "min", "max", "q01", "q99"):
            part[column][2] = 0.4
        part["std"][2] = 0.0
    config.norm_stats[0].write_text(json.dumps(stats))
    robot = import_model(str(source), tmp_path / "out", config).robot()
    state = np.full(6, 0.4, np.float32)
    assert robot.model_state(state)[2] == pytest.approx(-1)
    action = robot.model_action(state[None], state)
    assert action[0, 2] == pytest.approx(-1), "the third dimension, a gripper, is absolute"
    assert robot.robot_action(action, state)[0, 2] == pytest.approx(0.4)


def test_an_export_of_what_stands_still_is_zero_there_as_it_is_here(tmp_path: Path, config: ImportConfig) -> None:
    source = tiny_official.pipeline(tmp_path / "official", "gwp05")
    imported = import_model(str(source), tmp_path / "out", config)
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    rows[:, 2] = 0.4
    normalizer = Normalizer(compute_stats(rows, tiny_official.NAMES), "quantile", "center")
    robot = replace(imported.robots[0], state=normalizer, action=normalizer)
    save(replace(imported, robots=(robot,)), tmp_path / "tuned")
    export_model(tmp_path / "tuned", tmp_path / "exported")
    written = json.loads((tmp_path / "exported" / f"norm_stats_{tiny_official.ROBOT}.json").read_text())["norm_stats"]
    low, high = (np.array(written["observation.state"][column][:6]) for column in ("q01", "q99"))
    there = 2 * (rows - low) / np.maximum(high - low, 1e-8) - 1
    assert np.allclose(there, normalizer.normalize(rows), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": JOINT}, "its table is JOINT"),
        ({"future": FutureTransform((1.0,) * 4)}, "it sees the future as change"),
    ],
)
def test_what_the_official_inference_would_run_differently_is_not_exported(
    changes: dict[str, Any], said: str, tmp_path: Path, config: ImportConfig
) -> None:
    source = tiny_official.pipeline(tmp_path / "official", "gwp05")
    imported = import_model(str(source), tmp_path / "out", config)
    save(replace(imported, **changes), tmp_path / "other")
    with pytest.raises(ValueError, match=said):
        export_model(tmp_path / "other", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("model", "changes", "picture", "said"),
    [
        ("gwp05", {"index": 7}, (64, 96), "has index 7, the model 2 embodiments"),
        ("gwp05", {"state": [f"s{i}" for i in range(9)]}, (64, 96), "expected at least 9 numbers"),
        ("gwp05", {}, (112, 96), "112 pixels high do not divide into tokens of 32"),
        ("gwp05", {}, (64, 80), "80 pixels wide do not divide into tokens of 32"),
        ("gwp0", {"index": 1}, (64, 96), "acts as embodiment 0 for every robot"),
    ],
)
def test_robots_and_pictures_that_do_not_fit_the_model(
    model: str, changes: dict[str, Any], picture: tuple[int, int], said: str, tmp_path: Path, config: ImportConfig
) -> None:
    source = tiny_official.pipeline(tmp_path / "official", model)
    tiny_official.robot_file(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        import_model(str(source), tmp_path / "out", replace(config, picture=picture))
    assert said in str(error.value)
    assert not list(tmp_path.glob("out*"))


def test_one_of_several_folders(tmp_path: Path, config: ImportConfig) -> None:
    source = tiny_official.pipeline(tmp_path / "official", "gwp05")
    shutil.copytree(source / "transformer", source / "transformer_ema")
    with pytest.raises(ValueError, match="holds transformer and transformer_ema: choose one with --folder"):
        import_model(str(source), tmp_path / "out", config)
    import_model(str(source), tmp_path / "out", replace(config, folder="transformer_ema"))
