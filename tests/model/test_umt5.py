"""UMT5: the embeddings of transformers, kept on disk, and the encoder left alone while they are."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import text_encoder
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from actwam.model import umt5
from actwam.model.text import TextEncoder, read_text
from actwam.model.umt5 import UMT5, clean


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test, on disk and in memory."""
    monkeypatch.setenv("ACTWAM_CACHE", str(tmp_path / "cache"))
    umt5._encoder.cache_clear()
    umt5._read.cache_clear()
    return tmp_path / "cache" / "text"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "pipeline"))


def direct(folder: Path, instruction: str, tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What Wan's pipeline does: padded to `tokens`, masked, and the padding set to zero afterwards."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    module = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).eval()
    found = tokenizer([instruction], padding="max_length", max_length=tokens, return_tensors="pt")
    with torch.no_grad():
        states = module(found.input_ids, found.attention_mask).last_hidden_state
    return (states * found.attention_mask[..., None])[0].float()


def refuse(*args: Any) -> None:
    raise AssertionError("the encoder was loaded")


def encoder_config(folder: Path, **changes: Any) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "text_encoder").glob("model-*.safetensors"))


def tensors_with(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def test_embeddings_are_those_of_transformers(original: Path) -> None:
    text = UMT5.load(str(original))
    seen: TextEncoder = text
    assert (seen.kind, seen.width, seen.tokens) == ("umt5", 16, 64)
    sentences = ["open the drawer", "put the cup on the plate now"]
    embedded = text.encode(sentences)
    assert embedded.shape == (2, 64, 16)
    assert embedded.dtype == torch.float32
    for sentence, embedding, count in zip(sentences, embedded, (4, 8), strict=True):
        assert torch.allclose(embedding, direct(original, sentence, 64), atol=1e-5)
        assert embedding[:count].any(1).all()
        assert not embedding[count:].any()


def test_the_encoder_is_read_from_shards(original: Path) -> None:
    assert len(shards(original)) > 1


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_an_encoder_alone_in_one_file_embeds_alike(original: Path, tmp_path: Path, name: str) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(original / "tokenizer", alone)
    UMT5EncoderModel.from_pretrained(original / "text_encoder").save_pretrained(alone)
    tensors_with(alone / "model.safetensors", lambda t: t.update({name: t.pop("shared.weight")}))
    text = UMT5.load(str(alone))
    assert torch.allclose(text.encode(["open the door"])[0], direct(original, "open the door", 64), atol=1e-5)


def test_bfloat16_on_request(original: Path) -> None:
    text = UMT5.load(str(original), precision="bf16")
    embedded = text.encode(["open the door"])
    full = UMT5.load(str(original)).encode(["open the door"])
    assert embedded.dtype == torch.float32
    assert torch.equal(embedded, embedded.bfloat16().float())
    assert torch.allclose(embedded[0], direct(original, "open the door", 64, torch.bfloat16), atol=0.05)
    assert not torch.equal(embedded, full)
    assert torch.allclose(embedded, full, atol=0.1)


def test_prompts_are_cleaned_as_wan_cleans_them(original: Path) -> None:
    assert clean("  open &amp;amp;\n\tclose  the&nbsp;door ") == "open & close the door"
    text = UMT5.load(str(original))
    a, b = text.encode(["open &amp; close", " open  & close"])
    assert torch.equal(a, b)


def test_an_embedding_does_not_depend_on_its_neighbours(original: Path, cache: Path) -> None:
    text = UMT5.load(str(original))
    together = text.encode(["open the door", "put the cup on the plate now"])
    shutil.rmtree(cache)
    umt5._read.cache_clear()
    assert torch.equal(text.encode(["open the door"])[0], together[0])


def test_what_was_embedded_needs_no_encoder(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = UMT5.load(str(folder))
    first = text.encode(["open the door", "open the door", "open  the door"])
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(umt5, "_encoder", refuse)
    shutil.rmtree(folder)
    umt5._read.cache_clear()
    again = read_text(json.loads(json.dumps(text.to_json())))
    assert again == text
    assert torch.equal(again.encode(["open the door"])[0], first[0])
    with pytest.raises(AssertionError, match="the encoder was loaded"):
        again.encode(["close the door"])


def test_the_encoder_is_loaded_once_in_a_process(folder: Path) -> None:
    text = UMT5.load(str(folder))
    text.encode(["open the door"])
    shutil.rmtree(folder)
    assert text.encode(["close the door"]).any()


def test_other_settings_are_other_files(original: Path, cache: Path) -> None:
    for text in (UMT5.load(str(original)), UMT5.load(str(original), 32), UMT5.load(str(original), precision="bf16")):
        assert text.encode(["open the door"]).shape == (1, text.tokens, 16)
    assert len(list(cache.iterdir())) == 3


def test_without_the_variable_the_cache_is_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACTWAM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert umt5.cache_folder() == tmp_path / ".cache" / "actwam" / "text"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: save_file({"embedding": torch.ones(4, 8)}, path), r"of shape \(4, 8\), expected 1 to 64 x 16"),
        (lambda path: save_file({"embedding": torch.ones(65, 16)}, path), r"of shape \(65, 16\)"),
        (lambda path: save_file({"embedding": torch.ones(0, 16)}, path), r"of shape \(0, 16\)"),
        (lambda path: save_file({"other": torch.ones(4, 16)}, path), r"of shape \(0,\)"),
    ],
)
def test_a_damaged_embedding_is_one_line(
    original: Path, cache: Path, damage: Callable[[Path], Any], message: str
) -> None:
    text = UMT5.load(str(original))
    text.encode(["open the door"])
    umt5._read.cache_clear()
    (path,) = cache.iterdir()
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        text.encode(["open the door"])
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)
    path.unlink()
    assert text.encode(["open the door"]).any()


def test_a_cache_that_cannot_be_written_leaves_nothing(original: Path, cache: Path) -> None:
    text = UMT5.load(str(original))
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    with pytest.raises(ValueError, match=r"cannot be written: .*; set ACTWAM_CACHE"):
        text.encode(["open the door"])
    assert list(cache.parent.iterdir()) == [cache]


def test_too_long_and_empty_instructions_are_refused(original: Path, cache: Path) -> None:
    text = UMT5.load(str(original), 5)
    assert text.encode(["open the drawer now"]).shape == (1, 5, 16)
    with pytest.raises(ValueError, match="has 6 tokens, this model reads 1 to 5: 'open the drawer now now'"):
        text.encode(["open the drawer now now"])
    for empty in ("", " \n", "&nbsp;"):
        with pytest.raises(ValueError, match="is empty"):
            text.encode([empty])
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", [
    lambda f: encoder_config(f, layer_norm_epsilon=1e-5),
    lambda f: tensors_with(shards(f)[-1], lambda t: next(iter(t.values())).add_(1.0)),
    lambda f: (f / "tokenizer" / "tokenizer.json").write_text(
        (f / "tokenizer" / "tokenizer.json").read_text().replace("drawer", "shelf")),
])  # fmt: skip
def test_an_encoder_that_changed_is_refused(folder: Path, change: Callable[[Path], Any]) -> None:
    text = UMT5.load(str(folder))
    cached = text.encode(["open the door"])
    umt5._encoder.cache_clear()
    change(folder)
    assert UMT5.load(str(folder)) != text
    assert torch.equal(text.encode(["open the door"]), cached)
    with pytest.raises(ValueError, match="is not the text encoder that was used before") as caught:
        text.encode(["close the door"])
    assert str(folder) in str(caught.value)


def test_an_encoder_that_was_moved_is_the_same(folder: Path, tmp_path: Path) -> None:
    text = UMT5.load(str(folder))
    folder.rename(tmp_path / "elsewhere")
    assert UMT5.load(str(tmp_path / "elsewhere")) == text
    with pytest.raises(ValueError, match="no such folder"):
        text.encode(["open the door"])


def test_a_relative_folder_is_found_from_anywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    text = UMT5.load(folder.name)
    monkeypatch.chdir("/")
    assert text.encode(["open the door"]).any()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "text_encoder" / "config.json").unlink(), "config.json: missing"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json: missing"),
        (lambda f: truncate(f / "tokenizer" / "tokenizer.json"), "tokenizer.json: cannot be read"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").write_text("{}"), "tokenizer.json: holds no tokenizer"),
        (lambda f: encoder_config(f, model_type="t5"), "model_type is 't5', this text encoder is umt5"),
        (lambda f: encoder_config(f, d_model="wide"), "cannot be a UMT5 encoder"),
        (lambda f: encoder_config(f, d_ff=32), r"wi_0.weight is \(24, 16\), not \(32, 16\)"),
        (lambda f: truncate(shards(f)[0]), "safetensors: cannot be read"),
        (lambda f: shards(f)[0].unlink(), "safetensors: cannot be read"),
        (lambda f: (f / "text_encoder" / "model.safetensors.index.json").unlink(), "index.json: missing"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "config.json: missing"),
    ],
)
def test_a_damaged_encoder_is_one_line_at_the_door(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        UMT5.load(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_without_transformers_it_says_what_to_install(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'needs transformers: pip install "actwam\[wan\]"'):
        UMT5.load(str(original))


def test_a_hub_id_without_network_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^nobody/nothing: no such folder, and not to be had from the Hub") as caught:
        UMT5.load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_hub_id_stays_a_hub_id(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        wanted = {path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()}
        found = {name for name in wanted if any(fnmatch(name, pattern) for pattern in allow_patterns)}
        assert found == {name for name in wanted if "tokenizer_config" not in name and "special_tokens" not in name}
        return str(original)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    text = UMT5.load("owner/name")
    assert text.source == "owner/name"
    assert text == UMT5.load(str(original))
    assert text.encode(["open the door"]).any()
