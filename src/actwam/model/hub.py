"""Released models: from a folder or the Hub, and into a module, completely."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from actwam.model.files import mismatches

_HUB_ID = re.compile(r"\w[\w.\-]*/\w[\w.\-]*")


def resolve(source: str, patterns: Sequence[str]) -> Path:
    """The local folder `source`, or else the folder into which the Hub's model `source` (owner/name) is downloaded.

    Only files that match one of `patterns` (as in `fnmatch`, on the path within the model) are fetched, and only those
    that the Hub's cache lacks. Without network a model in that cache is found all the same. Raises ValueError when
    there is neither such a folder nor such a model, or the download fails.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(source):
        raise ValueError(f"{source!r}: no such folder, and no Hub id such as Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        raise ValueError(f'{source}: no such folder; to fetch it from the Hub: pip install "actwam[wan]"') from error
    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except (OSError, ValueError, HTTPError) as error:
        raise ValueError(
            f"{source}: no such folder, and not to be had from the Hub either ({one_line(error)}); check the name and "
            "the network, or download the model and give its folder"
        ) from error


def one_line(error: Exception) -> str:
    """What a library has to say, without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def assign_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Make `tensors` the parameters of `module`, which may stand on the meta device: nothing is allocated or copied.

    Raises ValueError listing every missing, unused and misshaped tensor.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if wrong := mismatches(found, own):
        raise ValueError(f"{source}: the tensors do not fit {type(module).__name__}: {wrong}")
    module.load_state_dict(dict(tensors), assign=True)
