"""Instructions through UMT5, the text encoder of Wan: released weights, used once for every instruction.

The encoder of UMT5-XXL takes 11 GB, its answer to one instruction a tenth of a megabyte, and a robot hears few
different ones. So every embedding is kept in a file, and the encoder is needed only for what was never embedded:

    $ACTWAM_CACHE/text/<hash of encoder, precision, tokens and instruction>.safetensors

(`~/.cache/actwam` where the variable is not set). Instructions are embedded one by one, so that an embedding does not
depend on its neighbours, and on the CPU, where it is the same on every machine up to rounding.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from actwam.model.files import DTYPES, Precision, read_json, read_tensors
from actwam.model.hub import assign_weights, one_line, resolve

_STEM = "model"
_FILES = ("config.json", f"{_STEM}.safetensors", f"{_STEM}-*.safetensors", f"{_STEM}.safetensors.index.json")
_PATTERNS = (*_FILES, "tokenizer.json", *(f"text_encoder/{name}" for name in _FILES), "tokenizer/tokenizer.json")
_ENDS = 2**20
"""Bytes at either end of a weight file that its digest looks at: hashing 11 GB at every start would take too long."""


@dataclass(frozen=True)
class UMT5:
    """A UMT5 encoder by name. Two are equal when they embed alike, wherever they were found.

    `source` is a folder or a Hub id. `digest` is what was found there: SHA-256 over configuration and tokenizer, and
    over name, size and both ends of every weight file.
    """

    kind: ClassVar[str] = "umt5"

    source: str = field(compare=False)
    width: int
    tokens: int
    digest: str
    precision: Precision = "auto"

    @classmethod
    def load(cls, source: str, tokens: int = 64, *, precision: Precision = "auto") -> UMT5:
        """The encoder in a local folder or on the Hub: that of a Wan pipeline (`text_encoder/` and `tokenizer/`), or
        an encoder's with its `tokenizer.json`. Embeddings are padded with zeros to `tokens`, 64 as GWP was trained.

        Everything is checked here and nothing is computed. Raises ValueError, one line, on a missing or damaged file,
        a model of another kind, and on any tensor that is missing, unused or misshaped.
        """
        files = _find(source)
        width = _build(files).config.d_model
        _tokenizer(files)
        if Path(source).expanduser().is_dir():
            source = str(Path(source).expanduser().resolve())  # the working folder may be another one next time
        return cls(source, width, tokens, _digest(files), precision)

    def encode(self, instructions: Sequence[str]) -> Float[Tensor, "B M E"]:
        """Last hidden states of the tokens of each instruction, the end token included, then zeros.

        Raises ValueError when an instruction is empty or has more than M tokens, when a cached embedding is damaged,
        and, for one not in the cache, when the encoder is not at its place or has changed.
        """
        padded = torch.zeros(len(instructions), self.tokens, self.width)
        for row, instruction in zip(padded, instructions, strict=True):
            embedding = self._embedding(instruction)
            row[: len(embedding)] = embedding
        return padded

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    def _embedding(self, instruction: str) -> Float[Tensor, "m E"]:
        text = clean(instruction)
        if not text:
            raise ValueError(f"instruction {instruction!r} is empty; say what to do")
        key = json.dumps([self.digest, self.precision, self.tokens, text])
        path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        if not path.is_file():
            encoder = _encoder(self.source, self.digest, self.precision)
            _write(path, encoder.embed(text, self.tokens), text)
        return _read(path, self.tokens, self.width)


def clean(instruction: str) -> str:
    """As Wan cleans a prompt: broken and curly characters mended, HTML entities resolved, twice escaped ones too, and
    one space for any white space.
    """
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ValueError('UMT5 needs ftfy: pip install "actwam[wan]"') from error
    return re.sub(r"\s+", " ", html.unescape(html.unescape(fix_text(instruction)))).strip()


def cache_folder() -> Path:
    """Where embeddings are kept."""
    root = os.environ.get("ACTWAM_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "actwam") / "text"


@dataclass(frozen=True)
class _Files:
    """`folder` holds configuration and weights."""

    folder: Path
    tokenizer: Path


@dataclass(frozen=True, eq=False)
class _Encoder:
    tokenizer: Any
    module: Any

    def embed(self, text: str, tokens: int) -> Float[Tensor, "m E"]:
        encoding = self.tokenizer.encode(text)
        if len(encoding.ids) > tokens:
            raise ValueError(
                f"instruction has {len(encoding.ids)} tokens, this model reads 1 to {tokens}: {text[:80]!r}; shorten it"
            )
        ids, mask = (torch.tensor([numbers]) for numbers in (encoding.ids, encoding.attention_mask))
        return self.module(input_ids=ids, attention_mask=mask).last_hidden_state[0]


@lru_cache(maxsize=1)
def _encoder(source: str, digest: str, precision: Precision) -> _Encoder:
    """Tokenizer and weights, mapped or converted into memory once in the life of the process."""
    files = _find(source)
    if _digest(files) != digest:
        raise ValueError(
            f"{files.folder}: is not the text encoder that was used before: its digest differs; bring that one back"
        )
    module = _build(files)
    return _Encoder(_tokenizer(files), module if precision == "auto" else module.to(DTYPES[precision]))


def _find(source: str) -> _Files:
    root = resolve(source, _PATTERNS)
    inner = (root / "text_encoder").is_dir()
    files = _Files(
        folder=root / "text_encoder" if inner else root,
        tokenizer=root / "tokenizer" / "tokenizer.json" if inner else root / "tokenizer.json",
    )
    for path in (files.folder / "config.json", files.tokenizer):
        if not path.is_file():
            raise ValueError(f"{path}: missing; a UMT5 encoder needs it, copy it from its source")
    return files


def _digest(files: _Files) -> str:
    sha = hashlib.sha256()
    for path in (files.folder / "config.json", files.tokenizer):
        content = path.read_bytes()
        sha.update(f"{path.name}\0{len(content)}\0".encode() + content)
    for path in sorted(files.folder.glob(f"{_STEM}*.safetensors")):
        size = path.stat().st_size
        sha.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            sha.update(file.read(_ENDS))
            file.seek(max(size - _ENDS, 0))
            sha.update(file.read(_ENDS))
    return sha.hexdigest()


def _tokenizer(files: _Files) -> Any:
    """The tokenizer as its file says, special tokens added, nothing cut and nothing padded."""
    from tokenizers import Tokenizer

    if not isinstance(read_json(files.tokenizer).get("model"), dict):
        raise ValueError(f"{files.tokenizer}: holds no tokenizer; copy it again from its source")
    tokenizer = Tokenizer.from_file(str(files.tokenizer))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _build(files: _Files) -> Any:
    """The encoder, its weights mapped from their files: memory is taken when they are first used."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import UMT5Config, UMT5EncoderModel
    except ImportError as error:
        raise ValueError(f'{files.folder}: UMT5 needs transformers: pip install "actwam[wan]"') from error
    config = read_json(files.folder / "config.json")
    if config.get("model_type") != "umt5":
        raise ValueError(f"{files.folder}: its model_type is {config.get('model_type')!r}, this text encoder is umt5")
    try:
        with torch.device("meta"):
            module = UMT5EncoderModel(UMT5Config.from_dict(config))
    except (TypeError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise ValueError(f"{files.folder}: its config.json cannot be a UMT5 encoder: {one_line(error)}") from error
    tensors = read_tensors(files.folder, _STEM)
    one, other = "shared.weight", "encoder.embed_tokens.weight"  # two names of one table, of which files hold one
    table = tensors.get(one, tensors.get(other))
    if table is not None:
        tensors = {**tensors, one: table, other: table}
    assign_weights(module, tensors, files.folder)
    return module.requires_grad_(False).eval()


def _write(path: Path, embedding: Float[Tensor, "m E"], text: str) -> None:
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embedding": embedding.contiguous()}, partial, metadata={"instruction": text})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be written: {error}; set ACTWAM_CACHE to a folder with space") from error
    finally:
        if partial.exists():
            partial.unlink()


@lru_cache(maxsize=1024)
def _read(path: Path, tokens: int, width: int) -> Float[Tensor, "m E"]:
    """A cached embedding in float32, at most a few hundred kilobytes."""
    repair = "delete it, and it will be made again"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: damaged: {error}; {repair}") from error
    embedding = tensors.get("embedding", torch.empty(0))
    if embedding.ndim != 2 or not 0 < len(embedding) <= tokens or embedding.shape[1] != width:
        raise ValueError(f"{path}: of shape {tuple(embedding.shape)}, expected 1 to {tokens} x {width}; {repair}")
    return embedding.to(torch.float32, copy=True)
