"""Does the code compute what the official code computed? Golden vectors in, largest differences out.

A folder of golden vectors holds `transformer/` in the official layout, `golden.safetensors` with the inputs and
outputs of some cases, and, where a whole call was recorded, `sampling.safetensors` and `vae/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from actwam.data.transforms import t_layout
from actwam.flow import TRAINING_LEVELS
from actwam.memory import device_of
from actwam.model.files import read_json, read_safetensors
from actwam.model.official import Official, read_official
from actwam.model.transformer import GroupInput
from actwam.model.wan import WanCodec
from actwam.recipes import gwp
from actwam.sampler import sample
from actwam.tokens import ACTION_CENTERED
from actwam.types import Group

VIEWS = ("head", "left", "right")
"""The order in which the three views of a recorded call stand."""


def compare(folder: Path, *, device: str = "cpu") -> dict[str, float]:
    """The largest absolute difference of every output, by `case/output`.

    Raises ValueError, one line with the file, when one is missing, damaged, or lacks a tensor.
    """
    cases = read_json(folder / "cases.json")
    golden = read_safetensors(folder / "golden.safetensors")
    tokens = next(iter(cases.values()))["L"]
    official = read_official(folder / "transformer", text_tokens=tokens, actions=gwp.ACTIONS)
    place = device_of(device)
    official.model.to(place)
    found: dict[str, float] = {}
    try:
        for case in cases:
            own = {key: tensor for key, tensor in golden.items() if key.startswith(f"{case}/")}
            moved = {key.removeprefix(f"{case}/"): tensor.to(device) for key, tensor in own.items()}
            found |= {f"{case}/{name}": value for name, value in _compare_case(official, moved).items()}
    except KeyError as error:
        raise ValueError(f"{folder / 'golden.safetensors'}: has no tensor {error}") from error
    call = folder / "sampling.safetensors"
    if call.is_file():
        recorded = {key: tensor.to(device) for key, tensor in read_safetensors(call).items()}
        codec = WanCodec.load(folder / "vae").to(place)
        found |= {f"sampling/{name}": value for name, value in _compare_call(official, codec, recorded).items()}
    return found


@torch.inference_mode()
def _compare_case(official: Official, case: Mapping[str, Tensor]) -> dict[str, float]:
    """Joint pass, and actions alone twice: in one pass, and on an encoded context as they are sampled."""
    model, patch = official.model, official.model.config.patch
    values = {
        Group.STATE: case["input/state"],
        Group.OBSERVATION: case["input/ref_latents"],
        Group.ACTION: case["input/action"],
        Group.FUTURE: case["input/noisy_latents"],
    }
    lengths = [v[0, 0].numel() // (patch[0] * patch[1]) if v.ndim == 5 else v.shape[1] for v in values.values()]
    sigmas = (case["input/timestep"].double() / TRAINING_LEVELS).split(lengths, dim=1)
    inputs = {g: GroupInput(g, v, s) for (g, v), s in zip(values.items(), sigmas, strict=True)}
    text = model.text_context(case["input/encoder_hidden_states"])
    embodiment = _embodiment(official, case["input/embodiment"])
    joint = model(list(inputs.values()), text, embodiment, ACTION_CENTERED)
    present = [inputs[Group.STATE], inputs[Group.OBSERVATION]]
    alone = model([*present, inputs[Group.ACTION]], text, embodiment, ACTION_CENTERED)
    context = model.encode(present, text, embodiment, ACTION_CENTERED)
    cached = model([inputs[Group.ACTION]], text, embodiment, ACTION_CENTERED, context)
    video = torch.cat([joint[Group.OBSERVATION], joint[Group.FUTURE]], dim=2)
    return {
        "video": _difference(video, case["output/video"]),
        "action": _difference(joint[Group.ACTION], case["output/action"]),
        "action_only": _difference(alone[Group.ACTION], case["output/action_only"]),
        "action_only_cached": _difference(cached[Group.ACTION], case["output/action_only"]),
    }


def _compare_call(official: Official, codec: WanCodec, call: Mapping[str, Tensor]) -> dict[str, float]:
    """From three camera pictures to the normalised action: composition, noise levels, codec, Euler steps."""
    height, width, _ = call["ref_image"].shape
    layout = replace(t_layout(width, height // 2, height // 2), resample="bilinear")
    views = {name: call[f"view_{i}"][None].cpu().numpy() for i, name in enumerate(VIEWS)}
    picture = torch.from_numpy(layout.compose(views))
    sampling = replace(gwp.sampling(len(official.model.config.experts)), num_steps=len(call["timesteps"]))
    values, _ = sample(
        official.model,
        ACTION_CENTERED,
        given={Group.OBSERVATION: codec.encode(picture[None]), Group.STATE: call["state"][:, None]},
        noise={Group.ACTION: call["noise_action"]},
        wanted=[Group.ACTION],
        text=official.model.text_context(call["prompt_embeds"]),
        embodiment=torch.zeros(len(call["state"]), dtype=torch.long, device=call["state"].device),
        sampling=sampling,
    )
    return {
        "picture": _difference(picture[0].float(), call["ref_image"].float().cpu()),
        "sigmas": _difference(torch.tensor(sampling.levels(Group.ACTION)), call["sigmas"].cpu()),
        "action": _difference(values[Group.ACTION], call["action"]),
    }


def _embodiment(official: Official, recorded: Tensor) -> Tensor:
    """The official GWP-0 ignores the embodiment and always uses the first, so its golden vectors are those of 0."""
    return torch.zeros_like(recorded) if official.layout == "gwp0" else recorded


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"golden output of shape {tuple(theirs.shape)}, ours has {tuple(ours.shape)}")
    return (ours - theirs).abs().max().item()
