"""Runs policies that `actwam package` wrote: see `Runner`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

__all__ = ["Runner"]
FORMAT = 1
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class Runner:
    """A packaged policy.

    `cameras`, `image_size` (height, width), `state_names`, `action_names`, `action_horizon`, `fps` and `instructions`
    say what goes in and what comes out.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        device: str = "CPU",
    ) -> None:
        """Read and verify a package, and compile it for this machine: some seconds.

        Raises ValueError on a missing, extra or changed file, on a package of another format, and on a precision that
        is unknown or that the device does not have.
        """
        folder = Path(folder)
        if precision not in _HINTS:
            raise ValueError(f"precision is fp32 or bf16, not {precision!r}")
        _verify(folder)
        said = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        if said.get("format") != FORMAT:
            raise ValueError(f"{folder}: package format {said.get('format')}, this runner reads {FORMAT}")
        self.robot: str = said["robot"]
        self.fps: int = said["fps"]
        self.cameras: tuple[str, ...] = tuple(said["cameras"])
        self.image_size: tuple[int, int] = tuple(said["image_size"])
        self.state_names: tuple[str, ...] = tuple(said["state_names"])
        self.action_names: tuple[str, ...] = tuple(said["action_names"])
        self.action_horizon: int = said["action_horizon"]
        self.instructions: tuple[str, ...] = tuple(said["instructions"])
        self._noise: dict[str, list[int]] = said["noise"]
        self._noisy_actions: int = said["noisy_actions"]
        with np.load(folder / "instructions.npz", allow_pickle=False) as texts:
            self._texts = {text: texts[str(i)] for i, text in enumerate(self.instructions)}
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
            raise ValueError(f"this {device} does not multiply in bfloat16: run the package in fp32")
        self._request = core.compile_model(folder / "request.xml", device, settings).create_infer_request()

    def act(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        instruction: str,
        *,
        seed: int = 0,
        noise: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """The next actions, (action_horizon, actions) float32 in the robot's units, first action first.

        `images` are uint8 (H, W, 3), `state` is float (state,) in the robot's units. `seed` draws the noise that
        actions are denoised from, unless `noise` is given. Raises ValueError on a missing or unknown camera, a wrong
        picture size or dtype, a state of the wrong width, NaN or Inf, and an instruction that the package does not
        know.
        """
        if instruction not in self._texts:
            raise ValueError(
                f"instruction {instruction!r} is unknown: this package knows {', '.join(map(repr, self._texts))}"
            )
        state = np.asarray(state, np.float32)
        if state.shape != (len(self.state_names),) or not np.isfinite(state).all():
            raise ValueError(
                f"state must be the {len(self.state_names)} finite numbers {self.state_names}, not {state}"
            )
        inputs = {
            **self._images(images),
            "state": state[None],
            "text": self._texts[instruction],
            **{f"noise {group}": value for group, value in (noise or self.draw(seed)).items()},
        }
        return np.array(self._request.infer({name: inputs[name] for name in self._known(inputs)})[0][0])

    def draw(self, seed: int) -> dict[str, np.ndarray]:
        """The noise of a seed: float32 arrays by group."""
        random = np.random.default_rng(seed)
        drawn = {group: random.standard_normal(shape, np.float32) for group, shape in self._noise.items()}
        drawn["action"][..., self._noisy_actions :] = 0  # dimensions that this robot lacks
        return drawn

    def _images(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if set(images) != set(self.cameras):
            raise ValueError(f"this robot has cameras {sorted(self.cameras)}, not {sorted(images)}")
        for name, image in images.items():
            if image.dtype != np.uint8 or image.shape != (*self.image_size, 3):
                size = "x".join(map(str, (*self.image_size, 3)))
                found = "x".join(map(str, image.shape))
                raise ValueError(f"camera {name} must give {size} uint8 pictures, not {found} {image.dtype}")
        return {f"image {name}": images[name][None] for name in self.cameras}

    def _known(self, inputs: Mapping[str, np.ndarray]) -> list[str]:
        """What the request reads: one that ignores the state has no such input."""
        return [name for put in self._request.model_inputs for name in put.get_names() if name in inputs]


def _verify(folder: Path) -> None:
    """Raises ValueError naming the first file that is missing, extra or changed."""
    try:
        expected = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no package here: {error}") from error
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            what = "missing" if name not in found else "changed" if name in expected else "not part of the package"
            raise ValueError(f"{folder / name}: {what}; copy the package again")
