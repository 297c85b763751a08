"""Pipelines as the official models are published, tiny: weights, autoencoder, text encoder, statistics of a robot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file, save_file
from tiny_text import text_encoder

from actwam.convert import ImportConfig
from actwam.model import weights
from actwam.types import Observation

FIXTURES = Path(__file__).parent / "fixtures"
ROBOT = "two_arms"
NAMES = ("left_x", "left_y", "left_grip", "right_x", "right_y", "right_grip")
CAMERAS = {"head": "front", "left": "wrist_left", "right": "wrist_right"}
PICTURE, ACTION_HORIZON = (64, 96), 8


def pipeline(folder: Path, name: str) -> Path:
    """GWP-0 or GWP-0.5 with everything beside it that acting needs."""
    for part in ("transformer", "vae"):
        shutil.copytree(FIXTURES / name / part, folder / part)
    return text_encoder(folder)


def wan_pipeline(folder: Path) -> Path:
    """Wan 2.2: GWP-0 without its action projectors."""
    pipeline(folder, "gwp0")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({k: t for k, t in load_file(path).items() if not k.startswith(weights.ACTION_PARTS)}, path)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "WanTransformer3DModel"}))
    return folder


def robot_file(folder: Path, name: str = ROBOT, **changes: Any) -> Path:
    """Two arms of two joints and a gripper: joints are deltas, grippers absolute."""
    path = folder / "robot.yaml"
    fields = {
        "name": name,
        "fps": 10,
        "image_size": [48, 64],
        "cameras": CAMERAS,
        "state": list(NAMES),
        "action": list(NAMES),
        "delta": [name for name in NAMES if not name.endswith("grip")],
        **changes,
    }
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def statistics_file(folder: Path, width: int = 8) -> Path:
    """The official form: lists as long as the padded vectors."""
    path = folder / "norm_stats.json"
    used = len(NAMES)
    columns = {"mean": 0.1, "std": 0.6, "min": -2.0, "max": 2.5, "q01": -1.5, "q99": 2.0}
    stats = {
        column: [value * (1 + 0.1 * i) for i in range(used)] + [0.0] * (width - used)
        for column, value in columns.items()
    }
    path.write_text(json.dumps({"norm_stats": {"observation.state": stats, "action": stats}}))
    return path


def import_config(folder: Path) -> ImportConfig:
    """A robot and its statistics, written to `folder`."""
    return ImportConfig(
        robots=(robot_file(folder),),
        norm_stats=(statistics_file(folder),),
        action_horizon=ACTION_HORIZON,
        picture=PICTURE,
    )


def observation(seed: int = 0) -> Observation:
    random = np.random.default_rng(seed)
    images = {camera: random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for camera in CAMERAS.values()}
    return Observation(images, random.uniform(-1, 1, len(NAMES)).astype(np.float32), "open the drawer")
