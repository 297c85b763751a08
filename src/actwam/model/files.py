"""Tensor files as diffusers and its trainers leave them: one safetensors file, shards with an index, or a `.bin`.

They are read as untrusted input. A `.bin` is a pickle; only a dictionary of plain tensors is taken from it, by
PyTorch's restricted loader, and anything else in it is refused without being executed. No other file of ActWAM
reads or writes pickles.
"""

from __future__ import annotations

import json
import pickle  # for the name of an exception
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Precision = Literal["auto", "fp32", "bf16"]
"""What weights are kept in. "auto" is what the file has."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

STEM = "diffusion_pytorch_model"
_WRAPPERS = ("model", "state_dict")
"""Keys under which trainers put the tensors, when they do not stand at the top."""
Shape = tuple[int, ...]
_COPY = "copy it again from its source"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError when the file is missing or holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return data


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped into memory. Raises ValueError when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; {_COPY}") from error


def read_tensors(folder: Path, stem: str = STEM, *, pickled: bool = False) -> dict[str, Tensor]:
    """The tensors of a model's folder, whichever way they were saved; a `.bin` only where `pickled` allows it.

    Raises ValueError on a folder without weights, shards without their index or the other way round, a tensor that
    the index promises and no shard has, a damaged file, and a `.bin` with more in it than tensors.
    """
    whole, index, pickle_file = (folder / f"{stem}{end}" for end in (".safetensors", ".safetensors.index.json", ".bin"))
    pickle_index = folder / f"{stem}.bin.index.json"
    if index.is_file():
        return _read_shards(index, read_safetensors)
    if whole.is_file():
        return read_safetensors(whole)
    if (pickle_index.is_file() or pickle_file.is_file()) and not pickled:
        raise ValueError(f"{pickle_file}: is a pickle, which only `actwam import` opens; convert it to safetensors")
    if pickle_index.is_file():
        return _read_shards(pickle_index, _read_pickled)
    if pickle_file.is_file():
        return _read_pickled(pickle_file)
    if list(folder.glob(f"{stem}-*")):
        raise ValueError(f"{index}: missing, so nothing says which tensors the shards must hold; {_COPY}")
    raise ValueError(f"{folder}: no weights here: neither {whole.name}, {index.name} nor {pickle_file.name}")


def mismatches(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    """Every missing, unused and misshaped tensor, "" when there is none."""
    wrong = [f"missing {name}" for name in expected if name not in found]
    wrong += [f"unused {name}" for name in found if name not in expected]
    wrong += [
        f"{name} is {tuple(found[name])}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    return "; ".join(wrong)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, *, pickled: bool = False) -> None:
    """Write the weights of a model's folder: safetensors, or the `.bin` that GWP's trainer and C++ converter use."""
    if pickled:
        torch.save(dict(tensors), folder / f"{STEM}.bin")
    else:
        save_file(dict(tensors), folder / f"{STEM}.safetensors", metadata={"format": "pt"})


def _read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{index}: has no weight_map from tensors to files; {_COPY}")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index}: shard {shard!r} leaves the folder; do not trust it")
        tensors |= read(index.with_name(shard))
    wrong = sorted(set(places) ^ set(tensors))
    if wrong:
        raise ValueError(f"{index}: index and shards disagree about {', '.join(wrong)}; {_COPY}")
    return tensors


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        data = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, because it holds more than tensors; do not trust it") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}; {_COPY}") from error
    for wrapper in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items()):
        raise ValueError(f"{path}: holds no dictionary of tensors, wrapped in {' or '.join(_WRAPPERS)} or not")
    return data
