"""Instructions as hashed words: what must be told apart is, and the rest is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from actwam.model.text import HashedWords, TextEncoder, read_text, words
from actwam.model.umt5 import UMT5

TEXT = HashedWords(width=32, tokens=6)


def test_distinct_sentences_differ_and_equal_ones_do_not() -> None:
    sentences = ["open the drawer", "open the door", "close the drawer", "open drawer", "open the drawer now"]
    embedded = TEXT.encode(sentences)
    assert embedded.shape == (5, 6, 32)
    assert embedded.dtype == torch.float32
    assert torch.cdist(embedded.flatten(1), embedded.flatten(1)).add(torch.eye(5) * 9).min() > 1
    assert torch.equal(TEXT.encode(["open the drawer"])[0], embedded[0])


def test_word_order_matters() -> None:
    a, b = TEXT.encode(["cup on plate", "plate on cup"])
    assert not torch.allclose(a, b)
    assert torch.allclose(a[1], b[1])  # the same word in the same place
    assert not torch.allclose(a[0], b[2])  # the same word elsewhere
    assert not torch.allclose(a.sum(0), TEXT.encode(["cup on dish"])[0].sum(0))


def test_case_and_punctuation_do_not_matter() -> None:
    assert words("Push button 2, gently!") == ["push", "button", "2", "gently"]
    a, b = TEXT.encode(["Open the drawer.", "open the  drawer"])
    assert torch.equal(a, b)


def test_padding_is_zero_and_words_are_not() -> None:
    embedded = TEXT.encode(["open the drawer"])[0]
    assert embedded[:3].any(1).all()
    assert not embedded[3:].any()


def test_words_are_nearly_orthogonal_and_of_unit_variance() -> None:
    wide = HashedWords(width=2048, tokens=1)
    vectors = torch.cat(list(wide.encode(["drawer", "door", "button", "handle"])))
    vectors = vectors - torch.cat([torch.zeros(1024), torch.ones(1024)])  # the sine and cosine of place 0
    assert torch.allclose(vectors.std(1), torch.ones(4), atol=0.1)
    assert (torch.corrcoef(vectors) - torch.eye(4)).abs().max() < 0.1


@pytest.mark.parametrize("sentence", ["", "  ", "!?", "one two three four five six seven"])
def test_empty_and_too_long_instructions_are_refused(sentence: str) -> None:
    with pytest.raises(ValueError, match=r"instruction has \d words, this model reads 1 to 6"):
        TEXT.encode(["fine", sentence])


def test_what_was_embedded_cannot_be_changed_by_its_user() -> None:
    TEXT.encode(["lift it"]).zero_()
    assert TEXT.encode(["lift it"]).any()


@pytest.mark.parametrize("text", [TEXT, UMT5("owner/name", width=8, tokens=4, digest="ab", precision="bf16")])
def test_a_checkpoint_brings_the_encoder_back(text: TextEncoder) -> None:
    config = json.loads(json.dumps(text.to_json()))
    again = read_text(config)
    assert type(again) is type(text)
    assert again == text
    assert again.to_json() == config
    assert config["kind"] == text.kind


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "one of hashed_words, umt5, not None"),
        ({"kind": "bert"}, "one of hashed_words, umt5, not 'bert'"),
        ({"kind": "hashed_words", "width": 4}, "text encoder hashed_words: .*tokens"),
        ({"kind": "umt5", "width": 4, "tokens": 4}, "text encoder umt5: .*source"),
        ({"kind": "hashed_words", "width": 4, "tokens": 4, "speed": 1}, "text encoder hashed_words: .*speed"),
    ],
)
def test_an_encoder_that_is_none_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_text(config)
