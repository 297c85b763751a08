"""A checkpoint folder: everything comes back bit for bit, and nothing damaged is ever loaded."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from actwam import checkpoint as module
from actwam.checkpoint import checkpoints, load, load_weights, newest, save
from actwam.data.transforms import FutureTransform
from actwam.tokens import TABLES

TRAIN_STATE = {"weight/a": torch.arange(6.0), "step/a": torch.zeros(())}


def train_state(folder: Path) -> None:
    (folder / "train_state").mkdir()
    save_file(TRAIN_STATE, folder / "train_state" / "state.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: take `folder` to damage something."""
    folder = tmp_path_factory.mktemp("saved") / "step_00000007"
    save(tiny.checkpoint("two"), folder, beside=train_state)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "step_00000007"))


def sign(folder: Path) -> None:
    """Make the manifest fit again, as somebody who tampers with a checkpoint would."""
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
    (folder / "manifest.json").write_text(json.dumps(hashes) + "\n")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data) + "\n")


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("experts", ["one", "two"])
@pytest.mark.parametrize("table", ["ACTION_CENTERED", "JOINT"])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, experts: str, table: str) -> None:
    scale = (0.1, 1 / 3, 2e-6, 1.0, 2.0, 3.0) if table == "JOINT" else None
    before = tiny.checkpoint(experts, table=TABLES[table], future=FutureTransform(scale))
    save(before, tmp_path / "c")
    after = load(tmp_path / "c")
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor)
    assert after.model.config == before.model.config
    assert after.codec.digest() == before.codec.digest()
    assert after.codec.patch == before.codec.patch
    assert after.robots == before.robots
    assert (after.text, after.table, after.window) == (before.text, before.table, before.window)
    assert (after.sampling, after.future, after.trained) == (before.sampling, before.future, before.trained)
    assert not after.model.training


def test_saving_twice_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save(load(saved), tmp_path / "again", beside=train_state)
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (saved / "manifest.json").read_bytes()


def test_the_manifest_has_the_hash_of_every_other_file(saved: Path) -> None:
    hashes = json.loads((saved / "manifest.json").read_text())
    files = {path.relative_to(saved).as_posix(): path for path in saved.rglob("*") if path.is_file()}
    assert set(hashes) == set(files) - {"manifest.json"}
    assert set(hashes) == {
        "config.json",
        "model.safetensors",
        "codec.safetensors",
        "norm_stats.json",
        "train_state/state.safetensors",
    }
    for name, digest in hashes.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest


def test_an_average_is_saved_in_place_of_the_weights(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint()
    average = {name: tensor + 1 for name, tensor in checkpoint.model.state_dict().items()}
    save(checkpoint, tmp_path / "c", weights=average)
    after = load(tmp_path / "c").model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in average.items())


FILES = (
    "config.json",
    "model.safetensors",
    "codec.safetensors",
    "norm_stats.json",
    "train_state/state.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed_in_every_file(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) * 2 // 3] ^= 1
    (folder / name).write_bytes(data)
    assert f"{name}: changed since it was written" in refusal(folder)


def test_a_changed_manifest_is_noticed(folder: Path) -> None:
    edit(folder / "manifest.json", lambda hashes: hashes.update({"config.json": "0" * 64}))
    assert "config.json: changed since it was written" in refusal(folder)
    (folder / "manifest.json").write_text("{")
    assert "manifest.json: cannot be read" in refusal(folder)
    (folder / "manifest.json").write_text("[]\n")
    assert "manifest.json: must hold a JSON object" in refusal(folder)


def test_a_manifest_without_its_last_byte_is_noticed(folder: Path) -> None:
    whole = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(whole[:-1])
    assert "manifest.json: cut off; use another checkpoint" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name}: missing" in refusal(folder)


@pytest.mark.parametrize("name", ["extra.txt", "train_state/more.safetensors", "train_state/manifest.json"])
def test_an_extra_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("hello")
    assert f"{name}: not part of the checkpoint" in refusal(folder)


def test_a_folder_without_checkpoint_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "no checkpoint here" in refusal(folder)
    assert "no checkpoint here" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("patch_head.bias"), "missing patch_head.bias"),
        (lambda t: t.update(stranger=torch.zeros(1)), "unused stranger"),
        (lambda t: t.update({"patch_head.bias": torch.zeros(7)}), r"patch_head.bias is (7,), not (6,)"),
        (lambda t: t.update({"patch_head.bias": torch.zeros(1, 6)}), r"patch_head.bias is (1, 6), not (6,)"),
    ],
    ids=["missing", "extra", "misshaped", "misshaped but broadcastable"],
)
def test_tensors_are_all_accounted_for(folder: Path, change: Callable[[Any], object], message: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    sign(folder)
    said = refusal(folder)
    assert "model.safetensors: the tensors do not fit WorldActionTransformer" in said
    assert message in said


def test_every_wrong_tensor_is_listed(tmp_path: Path) -> None:
    tensors = tiny.weights_of(tiny.model())
    del tensors["patch_head.bias"], tensors["patch_head.weight"]
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"missing patch_head.weight; missing patch_head.bias"):
        load_weights(tiny.config(), tmp_path / "file.safetensors")


def test_weights_keep_their_dtype(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in tiny.weights_of(tiny.model()).items()}
    save_file(tensors, path)
    model = load_weights(tiny.config(), path)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    save_file(tensors | {"patch_head.bias": tensors["patch_head.bias"].float()}, path)
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16, torch.float32, not float32 or bfloat16 through"):
        load_weights(tiny.config(), path)


def test_training_on_loaded_weights_leaves_the_file_alone(tmp_path: Path) -> None:
    """The weights are the mapped file until somebody writes to them."""
    path = tmp_path / "file.safetensors"
    save_file(tiny.weights_of(tiny.model()), path)
    before = path.read_bytes()
    model = load_weights(tiny.config(), path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    for name in ("model.safetensors", "codec.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(b"no tensors")
        sign(folder)
        assert name in refusal(folder)
        (folder / name).write_bytes(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "checkpoint format 99, this version reads 2"),
        (lambda c: c.pop("format"), "checkpoint format None"),
        (lambda c: c.update(table="SIDEWAYS"), "SIDEWAYS"),
        (lambda c: c.pop("robots"), "robots"),
        (lambda c: c.pop("trained"), "trained"),
        (lambda c: c["robots"][0]["embodiment"].update(name="stranger"), "stranger"),
        (lambda c: c["model"].update(colour="red"), "colour"),
        (lambda c: c["window"].update(future_offsets=[3, 2]), "future_offsets must be positive and rising"),
        (lambda c: c["robots"][0]["embodiment"].update(delta_mask=[True]), "delta_mask has 1 entries"),
        (lambda c: c["model"]["experts"].pop(), "exactly one expert"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, change: Callable[[Any], object], message: str) -> None:
    edit(folder / "config.json", change)
    sign(folder)
    said = refusal(folder)
    assert str(folder) in said
    assert message in said


def test_statistics_that_do_not_fit_are_refused(folder: Path) -> None:
    edit(folder / "norm_stats.json", lambda stats: stats["robot_0"]["state"]["stats"].update(mean=[0.0]))
    sign(folder)
    assert "mean has 1 numbers for 3 dimensions" in refusal(folder)


def test_robots_are_found_by_name() -> None:
    checkpoint = tiny.checkpoint()
    assert checkpoint.robot("robot_1").embodiment.index == 1
    with pytest.raises(ValueError, match="trained on robot_0, robot_1; name one of them, not 'robot_2'"):
        checkpoint.robot("robot_2")
    with pytest.raises(ValueError, match="name one of them, not None"):
        checkpoint.robot()
    assert replace(checkpoint, robots=checkpoint.robots[1:]).robot() == checkpoint.robots[1]


def test_the_newest_checkpoint_of_a_run_is_taken(saved: Path, tmp_path: Path) -> None:
    for step in (10, 9, 100):
        shutil.copytree(saved, tmp_path / f"step_{step:08d}")
    (tmp_path / "step_00000200.partial").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step_00000009",
        "step_00000010",
        "step_00000100",
    ]
    assert newest(tmp_path) == tmp_path / "step_00000100"
    assert newest(tmp_path / "step_00000009") == tmp_path / "step_00000009"


def test_an_existing_folder_is_not_overwritten(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        save(tiny.checkpoint(seed=1), folder)
    assert (folder / "manifest.json").read_bytes() == before


def save_with_little_room(run: Path, limits: list[int]) -> list[str]:
    """In a process of its own: the limit is on the size of any file that this process writes."""
    torch.set_num_threads(1)
    checkpoint, messages = tiny.checkpoint("two"), []
    save(checkpoint, run / "step_00000001", beside=train_state)
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(checkpoint, run / "step_00000002", beside=train_state)
        except ValueError as error:
            messages.append(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return messages


def test_a_disk_without_room_leaves_the_previous_checkpoint_and_no_half(tmp_path: Path) -> None:
    limits = [0, 1000, 8_000, 60_000]  # the JSON files, then the weights, do not fit
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        messages = pool.apply(save_with_little_room, (tmp_path, limits))
    assert len(messages) == len(limits)
    for message in messages:
        assert "step_00000002: the checkpoint could not be written" in message
        assert "free disk space and resume" in message
        assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert load(tmp_path).trained["step"] == 7


def kill_at_every_point(run: Path) -> list[list[str]]:
    """In a process of its own: fork, save, and die by SIGKILL before the nth write to the disk, for every n.

    Returns what each attempt left in the folder, until one was not killed.
    """
    torch.set_num_threads(1)
    checkpoint, left = tiny.checkpoint(), []
    save(checkpoint, run / "step_00000001", beside=train_state)
    while True:
        child = os.fork()
        if child == 0:
            try:
                _die_before(len(left))
                save(checkpoint, run / "step_00000002", beside=train_state)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        found = sorted(path.name for path in run.iterdir())
        left.append(found)
        for path in checkpoints(run):
            assert load(path).trained == checkpoint.trained
        if not os.WIFSIGNALED(status):
            return left
        if "step_00000002" in found:  # killed after it was renamed into place
            shutil.rmtree(run / "step_00000002")


def _die_before(operation: int) -> None:
    done = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return real(*args, **kwargs)

        return call

    module.save_file = counted(module.save_file)
    Path.write_text = counted(Path.write_text)
    Path.rename = counted(Path.rename)
    os.fsync = counted(os.fsync)


def test_a_process_killed_while_saving_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        left = pool.apply(kill_at_every_point, (tmp_path,))
    assert len(left) > 12  # three JSON files, three of tensors, their flushes, the rename, one more flush
    assert ["step_00000001", "step_00000002.partial"] in left
    assert all("step_00000001" in found for found in left)
    assert left[-1] == ["step_00000001", "step_00000002"]
    assert load(tmp_path).trained["step"] == 7
