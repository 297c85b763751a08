"""GWP-0.5 at its full width with random weights: does it load, act in bfloat16, and how far is that from float32?

    python benchmarks/full_width.py [OUT.json] [--layers N] [--device cuda]

On a GPU all 30 layers (12 GB in bfloat16), on a CPU 2 of them, with the codec at full size. A checkpoint is written in
float32, read in both precisions, and asked for the same action chunk of the same observation. Weights are drawn so that
every layer matters; the deviation is over normalised actions, whose scale is 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actwam.checkpoint import Checkpoint, save
from actwam.data.embodiment import Embodiment, read_robot
from actwam.data.loader import Window
from actwam.data.normalize import Normalizer, compute_stats
from actwam.data.transforms import RobotTransform, layout_of
from actwam.model.codec import Codec, read_codec
from actwam.model.text import HashedWords
from actwam.model.transformer import WorldActionTransformer
from actwam.policy import Policy
from actwam.provenance import provenance
from actwam.recipes import gwp
from actwam.tokens import ACTION_CENTERED
from actwam.types import Observation

ROBOT = Path(__file__).parents[1] / "examples" / "robots" / "piper_dual.yaml"
WAN_VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def codec() -> Codec:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(1)
    tensors = AutoencoderKLWan.from_config(WAN_VAE).state_dict()
    return read_codec({"kind": "wan", "config": WAN_VAE}, tensors)


def model(layers: int) -> WorldActionTransformer:
    """Random weights; what begins at zero would hide everything before it."""
    torch.manual_seed(0)
    made = WorldActionTransformer(gwp.official_size(2, layers))
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return made.eval()


def transform(robot: Embodiment) -> RobotTransform:
    random = np.random.default_rng(0)
    state, action = (
        Normalizer(compute_stats(random.normal(size=(1000, len(names))), names))
        for names in (robot.state_names, robot.action_names)
    )
    layout = layout_of(robot, *gwp.PICTURE, resample="bilinear")
    return RobotTransform(robot, layout, state, action, gwp.ACTIONS.width, gwp.ACTIONS.width)


def observation(robot: Embodiment) -> Observation:
    random = np.random.default_rng(0)
    size = (*robot.image_size, 3)
    images = {camera: random.integers(0, 256, size, dtype=np.uint8) for camera in robot.cameras.values()}
    return Observation(images, random.normal(size=len(robot.state_names)).astype(np.float32), "fold the towel")


def act(folder: Path, precision: Any, device: str) -> tuple[np.ndarray, dict[str, float]]:
    """The normalised actions, and what they cost. The first call is not timed."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    policy = Policy.load(folder, device=device, precision=precision)
    loaded = time.perf_counter() - start
    seen = observation(policy.robot.embodiment)
    chunk = policy.act(seen)
    start = time.perf_counter()
    policy.act(seen)
    seconds = time.perf_counter() - start
    actions = policy.robot.model_action(chunk.actions, seen.state)
    costs = {"load_s": round(loaded, 2), "act_s": round(seconds, 3)}
    if device != "cpu":  # a CPU process has made the model before, and its peak is that
        costs["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return actions, costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=30 if torch.cuda.is_available() else 2)
    options = parser.parse_args()
    robot = read_robot(ROBOT)
    made = model(options.layers)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(
            model=made,
            codec=codec(),
            text=HashedWords(width=4096, tokens=gwp.TEXT_TOKENS),
            table=ACTION_CENTERED,
            robots=(transform(robot),),
            window=Window(action_horizon=gwp.ACTION_HORIZON, future_offsets=gwp.offsets(gwp.ACTION_HORIZON)),
            sampling=gwp.sampling(2),
            trained={"random": 0},
        )
        save(checkpoint, Path(folder) / "checkpoint")
        parameters = sum(p.numel() for p in made.parameters())
        del made, checkpoint
        half, half_cost = act(Path(folder) / "checkpoint", "bf16", options.device)
        whole, whole_cost = act(Path(folder) / "checkpoint", "fp32", options.device)
    deviation = np.abs(half - whole)
    results = {
        "layers": options.layers,
        "parameters": parameters,
        "device": options.device,
        "bf16": half_cost,
        "fp32": whole_cost,
        "largest_deviation": float(deviation.max()),
        "mean_deviation": float(deviation.mean()),
        "largest_action": float(np.abs(whole).max()),
        "provenance": provenance(),
    }
    text = json.dumps(results, indent=2) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
