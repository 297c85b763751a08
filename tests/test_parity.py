"""The official models' golden vectors, and that the comparison would notice anything."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actwam import cli
from actwam.parity import compare

FIXTURES = Path(__file__).parent / "fixtures"
CASES = ("one_future_frame", "three_future_frames")
OUTPUTS = ("video", "action", "action_only", "action_only_cached")


@pytest.fixture(params=["gwp0", "gwp05"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_official_output(name: str) -> None:
    found = compare(FIXTURES / name)
    assert set(found) == {f"{case}/{output}" for case in CASES for output in OUTPUTS} | {
        "sampling/picture", "sampling/sigmas", "sampling/action",
    }  # fmt: skip
    assert found.pop("sampling/picture") == 0
    assert found.pop("sampling/sigmas") < 1e-7
    assert found.pop("sampling/action") <= 1e-4
    assert max(found.values()) <= 1e-5


def test_the_command(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for tolerance, code in (("1e-4", 0), ("1e-12", 1)):
        monkeypatch.setattr(sys, "argv", ["actwam", "parity", str(FIXTURES / name), "--tolerance", tolerance])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == code
        assert set(json.loads(capsys.readouterr().out)) == set(compare(FIXTURES / name))


@pytest.mark.parametrize(
    ("file", "key", "output"),
    [
        ("transformer/diffusion_pytorch_model", "blocks.1.attn1.norm_k.weight", "one_future_frame/video"),
        ("golden", "three_future_frames/input/timestep", "three_future_frames/video"),
        ("sampling", "view_1", "sampling/picture"),
        ("sampling", "noise_action", "sampling/action"),
        ("vae/diffusion_pytorch_model", "encoder.conv_in.weight", "sampling/action"),
    ],
)
def test_a_small_change_anywhere_shows(file: str, key: str, output: str, tmp_path: Path) -> None:
    folder = tmp_path / "gwp0"
    shutil.copytree(FIXTURES / "gwp0", folder)
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    change = tensors[key].flatten()
    if change.dtype is torch.uint8:  # its last rows are cut off
        change[len(change) // 2] += 20
    else:
        change[-1] += 0.5
    save_file(tensors | {key: change.view_as(tensors[key])}, path)
    assert compare(folder)[output] > 1e-4


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "gwp0"
    shutil.copytree(FIXTURES / "gwp0", folder)
    golden = load_file(folder / "golden.safetensors")
    del golden["one_future_frame/input/state"]
    save_file(golden, folder / "golden.safetensors")
    with pytest.raises(ValueError, match=r"golden.safetensors: has no tensor 'input/state'"):
        compare(folder)
    (folder / "golden.safetensors").unlink()
    with pytest.raises(ValueError, match=r"golden\.safetensors: cannot be read"):
        compare(folder)
