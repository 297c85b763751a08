"""A codec fitted on the frames of all datasets, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from actwam.data.dataset import Footage
from actwam.data.latents import PIECE_FRAMES
from actwam.data.partial import share
from actwam.data.transforms import View
from actwam.model.codec import PatchPCACodec
from actwam.train.config import CodecConfig
from actwam.types import Progress

FORMAT, FILE, DIGEST = 2, "codec.safetensors", "digest"
AT_ONCE = 4
"""Videos that are decoded together."""


def fitted_codec(
    config: CodecConfig, datasets: Mapping[str, Footage], views: Mapping[str, View], cache: Path, progress: Progress
) -> PatchPCACodec:
    """What `fit_codec` gives, from `cache` if it was fitted before; a process that comes meanwhile waits for it."""
    shown = [(dataset.digest, str(views[name].layout), dict(views[name].cameras)) for name, dataset in datasets.items()]
    key = json.dumps([FORMAT, config.patch, config.channels, config.fit_frames, shown])
    folder = cache / "codec" / hashlib.sha256(key.encode()).hexdigest()

    def make(partial: Path) -> None:
        codec = fit_codec(config, datasets, views, progress)
        try:
            save_file(codec.tensors(), partial / FILE, {DIGEST: codec.digest()})
        except SafetensorError as error:
            raise ValueError(f"{folder / FILE}: cannot be written: {error}; free disk space and run again") from error

    share([(folder, make)])
    repair = f"delete {folder} and run again"
    try:
        with safe_open(folder / FILE, "pt") as file:
            codec = PatchPCACodec.from_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            digest = (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{folder / FILE}: damaged ({error}); {repair}") from error
    if digest != codec.digest():
        raise ValueError(f"{folder / FILE}: damaged: not the codec that was fitted; {repair}")
    return codec


def fit_codec(
    config: CodecConfig, datasets: Mapping[str, Footage], views: Mapping[str, View], progress: Progress
) -> PatchPCACodec:
    """A codec fitted on frames spread evenly over all datasets, the same ones every time."""
    total = sum(len(dataset.state) for dataset in datasets.values())
    every = -(-total // config.fit_frames)  # rounded up: at most `fit_frames`
    pieces = []
    for name, dataset in datasets.items():
        for episode in dataset.episodes:
            rows = np.arange(-episode.start % every, episode.length, every)
            firsts = range(0, len(rows), PIECE_FRAMES)
            pieces += [(dataset, views[name], episode.index, rows[first : first + PIECE_FRAMES]) for first in firsts]
    pictures = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, picture in enumerate(pool.map(_pictures, *zip(*pieces, strict=True))):
            pictures.append(picture)
            progress("codec: frames", done + 1, len(pieces))
    return PatchPCACodec.fit(torch.from_numpy(np.concatenate(pictures)), patch=config.patch, channels=config.channels)


def _pictures(dataset: Footage, view: View, episode: int, rows: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T h w 3"]:
    return view.picture({camera: dataset.frames(camera, episode, rows) for camera in view.cameras.values()})
