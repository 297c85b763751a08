"""A text encoder as Wan publishes it, tiny: UMT5 with random weights, and a tokenizer that knows a few words."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ("open", "close", "the", "drawer", "door", "&", "now", "put", "cup", "on", "plate")


def text_encoder(folder: Path, *, width: int = 16) -> Path:
    """A random UMT5 encoder in several shards, and a tokenizer that knows `WORDS`."""
    for part in ("tokenizer", "text_encoder"):
        shutil.rmtree(folder / part, ignore_errors=True)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)]
    vocabulary += [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.1)
    module = UMT5EncoderModel(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module.save_pretrained(folder / "text_encoder", max_shard_size="8KB")
    return folder
