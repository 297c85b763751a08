"""A policy as a folder that acts without PyTorch and without this package (`packages/actwam-runner`).

request.xml, request.bin    everything between the cameras' pictures and actions in the robot's units, for OpenVINO
instructions.npz            keys and values of the instructions that it knows
package.json                what goes in and comes out
manifest.json               SHA-256 of every other file
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actwam.checkpoint import write_manifest
from actwam.data.partial import partial_folder
from actwam.deploy.request import Request, stacked
from actwam.policy import Policy
from actwam.types import Observation

FORMAT = 1
Arguments = tuple[list[Tensor], Tensor, Tensor, list[Tensor]]
"""Of a request: images, state, text and noise."""


def write_package(policy: Policy, instructions: Sequence[str], folder: Path) -> None:
    """Write `folder`, which must not exist; nothing is left behind if that fails.

    Raises ValueError without OpenVINO, without instructions and on one that the policy cannot read, for a policy that
    looks back (`Request`), and for one that is not in float32 on the CPU.
    """
    try:
        import openvino
    except ImportError as error:
        raise ValueError('packages are written by OpenVINO: pip install "actwam[deploy]"') from error
    if not instructions:
        raise ValueError("a package knows the instructions that it is given: name at least one")
    if next(policy.checkpoint.model.parameters()).dtype != torch.float32 or policy.device.type != "cpu":
        raise ValueError(
            "load the policy in fp32 on the cpu: where and how it computes is chosen by who runs the package"
        )
    request = Request(policy).eval()
    texts: dict[str, Any] = {
        str(i): stacked(policy.encode([_blank(policy, text)]).text).cpu().numpy() for i, text in enumerate(instructions)
    }
    example = arguments(policy, request, _blank(policy, instructions[0]), 0)
    with partial_folder(folder) as partial:
        model = to_openvino(exported(request, example), example)
        for put, name in zip(model.inputs, _names(policy, request), strict=True):
            put.get_tensor().set_names({name})
        openvino.save_model(model, partial / "request.xml", compress_to_fp16=False)
        np.savez(partial / "instructions.npz", **texts)
        contents = json.dumps(_contents(policy, request, instructions, example[3]), indent=2)
        (partial / "package.json").write_text(contents + "\n", encoding="utf-8")
        write_manifest(partial)


def _blank(policy: Policy, instruction: str) -> Observation:
    robot = policy.robot.embodiment
    images = {camera: np.zeros((*robot.image_size, 3), np.uint8) for camera in robot.cameras.values()}
    return Observation(images, np.zeros(len(robot.state_names), np.float32), instruction)


def arguments(policy: Policy, request: Request, seen: Observation, seed: int) -> Arguments:
    """What to ask a policy's request for the actions of `Policy.act`. Raises ValueError as that does."""
    encoded, cameras = policy.encode([seen]), policy.robot.embodiment.cameras
    images = [torch.from_numpy(seen.images[cameras[slot.name]])[None] for slot in request.layout.slots]
    noise = policy.noise(request.denoised, encoded, [seed])
    return images, torch.from_numpy(seen.state)[None], stacked(encoded.text), [noise[g] for g in request.denoised]


@torch.no_grad()
def exported(request: Request, example: Arguments) -> torch.export.ExportedProgram:
    """The request as one graph, for arguments of the shapes of the example."""
    request(*example)  # makes, outside of the trace, what is kept from call to call
    return torch.export.export(request, example, strict=False)


def to_openvino(program: torch.export.ExportedProgram, example: Arguments) -> Any:
    """An exported request as OpenVINO takes it, with its inputs in the order of `Arguments`."""
    import openvino

    with _without_telemetry():
        model = openvino.convert_model(program)
    images, state, text, noise = example
    shapes = [list(each.shape) for each in (*images, state, text, *noise)]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))  # else slower kernels, for any shape
    return model


def _names(policy: Policy, request: Request) -> list[str]:
    cameras = [policy.robot.embodiment.cameras[slot.name] for slot in request.layout.slots]
    return [*(f"image {camera}" for camera in cameras), "state", "text", *(f"noise {g}" for g in request.denoised)]


def _contents(policy: Policy, request: Request, instructions: Sequence[str], noise: Sequence[Tensor]) -> dict[str, Any]:
    robot, checkpoint = policy.robot.embodiment, policy.checkpoint
    dimensions = policy.robot.action_width if checkpoint.model.config.noisy_padding else len(robot.action_names)
    return {
        "format": FORMAT,
        "robot": robot.name,
        "fps": robot.fps,
        "cameras": [robot.cameras[slot.name] for slot in request.layout.slots],
        "image_size": list(robot.image_size),
        "state_names": list(robot.state_names),
        "action_names": list(robot.action_names),
        "action_horizon": checkpoint.window.action_horizon,
        "instructions": list(instructions),
        "noise": {g.value: list(each.shape) for g, each in zip(request.denoised, noise, strict=True)},
        "noisy_actions": dimensions,
        "table": policy.table.name,
        "num_steps": checkpoint.sampling.num_steps,
        "checkpoint": checkpoint.digest,
    }


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """OpenVINO's converter tells Intel that it was used, without asking, unless it takes itself to be in a CI job."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        del os.environ["CI"]
        if before is not None:
            os.environ["CI"] = before
