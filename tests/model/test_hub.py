"""A folder, or the Hub, or one clear line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn

from actwam.model.hub import assign_weights, resolve


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve(str(tmp_path), ["*"]) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name", ["*"]) == Path("owner/name")  # a folder comes before the Hub
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/owner", ["*"]) == tmp_path / "owner"


def test_a_hub_id_is_fetched_by_its_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Sequence[str]]] = []

    def fetch(name: str, *, allow_patterns: Sequence[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("owner/name-2.2", ["vae/*"]) == tmp_path
    assert asked == [("owner/name-2.2", ["vae/*"])]


def test_a_hub_id_without_network_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^nobody/nothing: no such folder, and not to be had from the Hub") as caught:
        resolve("nobody/nothing", ["*"])
    assert "\n" not in str(caught.value)
    assert "check the name and the network" in str(caught.value)


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./missing", "../up/down", "one", "a/b/c", "", "~nobody/x", "a/.."]
)
def test_what_can_only_be_a_path_does_not_ask_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fetch(*args: Any, **kwargs: Any) -> str:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        resolve(source, ["*"])


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "actwam\[wan\]"'):
        resolve("nobody/nothing", ["*"])


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("")
    with pytest.raises(ValueError, match="no such folder"):
        resolve(str(tmp_path / "weights"), ["*"])


def test_weights_are_assigned_and_not_copied() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    tensors = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    assign_weights(module, tensors, "here")
    assert module.weight.data_ptr() == tensors["weight"].data_ptr()


def test_every_tensor_that_does_not_fit_is_listed() -> None:
    tensors = {"weight": torch.ones(2, 2), "b": torch.ones(1), "c": torch.ones(1)}
    wrong = r"here: .* fit Linear: missing bias; unused b; unused c; weight is \(2, 2\), not \(3, 2\)"
    with pytest.raises(ValueError, match=wrong):
        assign_weights(nn.Linear(2, 3), tensors, "here")
