"""Folders of official models: every way they are saved, every way they are damaged, and the warm start from Wan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actwam.model import weights
from actwam.model.official import Official, read_official, slice_expert, write_official
from actwam.model.weights import ActionSide

FIXTURES = Path(__file__).parents[1] / "fixtures"
STEM = "diffusion_pytorch_model"
SIDE = ActionSide(width=7, embodiments=3, expert=(48, 80))


def read(folder: Path, **options: Any) -> Official:
    return read_official(folder, **{"text_tokens": 5, "actions": SIDE, "pickled": True, **options})


def official_tensors(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / name / "transformer" / f"{STEM}.safetensors")


def write(folder: Path, name: str, tensors: dict[str, Tensor] | None = None) -> Path:
    """The tiny official model without its tensors, or with others."""
    folder.mkdir(parents=True)
    shutil.copy(FIXTURES / name / "transformer" / "config.json", folder)
    if tensors is not None:
        save_file(tensors, folder / f"{STEM}.safetensors")
    return folder


def shard(folder: Path, tensors: dict[str, Tensor], parts: int = 3) -> None:
    """As diffusers saves a large model: numbered files, and an index of what is where."""
    places = {}
    for i in range(parts):
        file = f"{STEM}-{i + 1:05d}-of-{parts:05d}.safetensors"
        some = dict(list(tensors.items())[i::parts])
        save_file(some, folder / file)
        places |= dict.fromkeys(some, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))


def same(found: Official, expected: Official) -> bool:
    theirs = expected.model.state_dict()
    return found.layout == expected.layout and all(
        torch.equal(tensor, theirs[name]) for name, tensor in found.model.state_dict().items()
    )


@pytest.fixture(params=["gwp0", "gwp05"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_folder_and_the_folder_above_it(name: str) -> None:
    inner = read(FIXTURES / name / "transformer")
    assert inner.layout == name
    assert same(read(FIXTURES / name), inner)
    assert not inner.model.training


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"model": t}, lambda t: {"state_dict": t, "step": 3}])
def test_the_trainers_bin(name: str, wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "transformer", name)
    torch.save(wrap(official_tensors(name)), folder / f"{STEM}.bin")
    assert same(read(folder), read(FIXTURES / name))


def test_shards(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "transformer", name)
    shard(folder, official_tensors(name))
    assert same(read(folder), read(FIXTURES / name))


def test_a_bin_in_shards(tmp_path: Path) -> None:
    """As diffusers saves more than 10 GB where it was told not to use safetensors."""
    folder, places = write(tmp_path / "transformer", "gwp0"), {}
    tensors = official_tensors("gwp0")
    for i in range(2):
        some = dict(list(tensors.items())[i::2])
        torch.save(some, folder / f"{STEM}-{i + 1:05d}-of-00002.bin")
        places |= dict.fromkeys(some, f"{STEM}-{i + 1:05d}-of-00002.bin")
    (folder / f"{STEM}.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert same(read(folder), read(FIXTURES / "gwp0"))
    with pytest.raises(ValueError, match="is a pickle"):
        read(folder, pickled=False)


def test_two_candidates_are_no_choice(tmp_path: Path) -> None:
    for place in ("transformer", "transformer_ema"):
        write(tmp_path / place, "gwp0", official_tensors("gwp0"))
    with pytest.raises(ValueError, match="holds transformer and transformer_ema: choose one"):
        read(tmp_path)
    assert read(tmp_path / "transformer_ema").layout == "gwp0"


def test_only_who_allows_it_opens_a_bin(tmp_path: Path) -> None:
    folder = write(tmp_path / "transformer", "gwp0")
    torch.save(official_tensors("gwp0"), folder / f"{STEM}.bin")
    with pytest.raises(ValueError, match="is a pickle, which only `actwam import` opens"):
        read(folder, pickled=False)


class Malice:
    """What a pickle may do when it is opened: call anything."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("executed"), "code ran")


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "transformer", "gwp0")
    torch.save({"a": torch.zeros(1), "b": Malice()}, folder / f"{STEM}.bin")
    with pytest.raises(ValueError, match="refused, because it holds more than tensors"):
        read(folder)
    assert not Path("executed").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / f"{STEM}.safetensors.index.json"
    data = json.loads(path.read_text())
    change(data["weight_map"])
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: cut(f / f"{STEM}-00002-of-00003.safetensors"), "00002-of-00003.safetensors: cannot be read"),
        (lambda f: (f / f"{STEM}-00002-of-00003.safetensors").unlink(), "00002-of-00003.safetensors: cannot be read"),
        (lambda f: (f / f"{STEM}.safetensors.index.json").unlink(), "index.json: missing, so nothing says"),
        (lambda f: break_index(f, lambda m: m.update(stray=next(iter(m.values())))), "disagree about stray"),
        (lambda f: break_index(f, lambda m: m.pop("proj_out.bias")), "disagree about proj_out.bias"),
        (lambda f: break_index(f, lambda m: m.update({"proj_out.bias": "../up.safetensors"})), "leaves the folder"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: (f / "config.json").write_text('{"num_attention_heads": 3}'), "num_attention_heads 3"),
    ],
)
def test_damage_is_one_clear_line(damage: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "transformer", "gwp05")
    shard(folder, official_tensors("gwp05"))
    damage(folder)
    with pytest.raises(ValueError) as error:
        read(folder)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_or_empty_bin(tmp_path: Path) -> None:
    folder = write(tmp_path / "transformer", "gwp0")
    with pytest.raises(ValueError, match="no weights here"):
        read(folder)
    for content in (b"", b"not a zip", b"PK\x03\x04 cut off"):
        (folder / f"{STEM}.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"\.bin: (cannot be read|refused)"):
            read(folder)
    torch.save([torch.zeros(1)], folder / f"{STEM}.bin")
    with pytest.raises(ValueError, match="no dictionary of tensors"):
        read(folder)


def test_dtypes(tmp_path: Path) -> None:
    tensors = official_tensors("gwp05")
    half = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    folder = write(tmp_path / "half", "gwp05", half)
    assert {p.dtype for p in read(folder).model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in read(folder, precision="fp32").model.parameters()} == {torch.float32}
    mixed = write(tmp_path / "mixed", "gwp05", half | {"proj_out.bias": tensors["proj_out.bias"]})
    assert {p.dtype for p in read(mixed).model.parameters()} == {torch.float32}
    whole = write(tmp_path / "whole", "gwp05", half | {"proj_out.bias": torch.zeros(16, dtype=torch.int8)})
    with pytest.raises(ValueError, match="quantised weights are not read"):
        read(whole)


def test_export_and_import_again(name: str, tmp_path: Path) -> None:
    """The tensors to the bit, and a config.json that the official class would take."""
    model = read(FIXTURES / name).model
    for pickled in (False, True):
        out = tmp_path / f"out{pickled}"
        assert write_official(model, out, pickled=pickled) == name
        assert same(read(out), read(FIXTURES / name))
    written = load_file(tmp_path / "outFalse" / "transformer" / f"{STEM}.safetensors")
    original = official_tensors(name)
    assert set(written) == set(original)
    assert all(torch.equal(tensor, original[key]) for key, tensor in written.items())
    stated = json.loads((tmp_path / "outFalse" / "transformer" / "config.json").read_text())
    before = json.loads((FIXTURES / name / "transformer" / "config.json").read_text())
    assert set(stated) == set(before)
    differ = {key for key in stated if stated[key] != before[key]}
    assert differ <= {"rope_max_seq_len"}  # a limit of theirs, which no tensor tells


# warm start from Wan


@pytest.fixture
def wan(tmp_path: Path) -> Path:
    """Wan is what GWP-0 is without its action projectors."""
    tensors = {k: t for k, t in official_tensors("gwp0").items() if not k.startswith(weights.ACTION_PARTS)}
    folder = write(tmp_path / "wan", "gwp0", tensors)
    stated = json.loads((folder / "config.json").read_text()) | {"_class_name": "WanTransformer3DModel"}
    ours = ("in_action_channels", "out_action_channels", "num_embodiments")
    kept = {key: value for key, value in stated.items() if key not in ours}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("expert", [None, (48, 80)])
def test_wan_keeps_every_weight_of_its_own(wan: Path, expert: tuple[int, int] | None) -> None:
    made = read(wan, actions=ActionSide(width=7, embodiments=3, expert=expert))
    config = made.model.config
    assert made.layout == "wan"
    back = weights.to_theirs(made.model.state_dict(), config, "wan")
    original = load_file(wan / f"{STEM}.safetensors")
    assert set(back) == set(original)
    assert all(torch.equal(tensor, original[key]) for key, tensor in back.items())
    assert made.model.action_encoder.first.weight.shape == (3, 7, 128)
    assert not made.model.action_decoder.last.weight.any(), "an untrained head must begin at zero velocity"
    assert made.model.action_encoder.first.weight.std() > 0.1


def test_the_new_weights_come_from_the_seed(wan: Path) -> None:
    assert same(read(wan, seed=3), read(wan, seed=3))
    assert not same(read(wan, seed=3), read(wan, seed=4))


def test_the_action_expert_is_cut_out_of_the_visual_one(wan: Path) -> None:
    model = read(wan).model
    action, visual = model.blocks[1].experts
    assert torch.equal(action.qkv.weight, visual.qkv.weight[:, :48])
    assert torch.equal(action.qkv.bias, visual.qkv.bias)
    assert torch.equal(action.out.weight, visual.out.weight[:48])
    assert torch.equal(action.ffn[0].weight, visual.ffn[0].weight[:80, :48])
    assert torch.equal(action.ffn[2].weight, visual.ffn[2].weight[:48, :80])
    assert torch.equal(action.table, visual.table[:, :48])
    assert torch.equal(action.norm_qk, visual.norm_qk)
    small, large = model.experts
    assert torch.equal(small.text_embedder[0].weight, large.text_embedder[0].weight[:48])
    assert torch.equal(small.head_table, large.head_table[:, :48])


@pytest.mark.parametrize("way", ["chunks", "official"])
def test_the_time_projection_is_cut_chunk_by_chunk(wan: Path, way: Any) -> None:
    """Six modulations of D rows: ours cuts each of them, the released code cuts the stack."""
    small, large = (expert.noise.project for expert in read(wan, time_projection=way).model.experts)
    D, d = large.in_features, small.in_features
    rows = torch.cat([torch.arange(i * D, i * D + d) for i in range(6)]) if way == "chunks" else torch.arange(6 * d)
    assert torch.equal(small.weight, large.weight[rows][:, :d])
    assert torch.equal(small.bias, large.bias[rows])


def test_an_action_expert_cannot_be_wider_than_its_source(wan: Path) -> None:
    with pytest.raises(ValueError, match="wider than the visual expert"):
        read(wan, actions=ActionSide(width=7, expert=(96, 80)))


def test_slicing_touches_the_action_expert_alone() -> None:
    model = read(FIXTURES / "gwp05").model
    tensors = model.state_dict()
    sliced = slice_expert(model.config, tensors, {name: t.shape for name, t in tensors.items()})
    action = {name for name in tensors if name.startswith("experts.0.") or ".experts.0." in name}
    assert set(sliced) == action
    assert all(tensor.shape == tensors[name].shape for name, tensor in sliced.items())
