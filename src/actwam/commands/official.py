"""Official models: `import`, `export`, `parity`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from actwam.commands.options import Precision
from actwam.console import print_numbers, stderr


def import_(
    source: Positional[str],
    *,
    out: Path,
    folder: str | None = None,
    codec: str | None = None,
    text: str | None = None,
    robots: tuple[Path, ...] = (),
    norm_stats: tuple[Path, ...] = (),
    action_horizon: int | None = None,
    picture: tuple[int, int] | None = None,
    precision: Precision = "auto",
    experts: Literal["one", "two"] | None = None,
    action_width: int | None = None,
    embodiments: int | None = None,
    time_projection: Literal["chunks", "official"] | None = None,
    seed: int | None = None,
) -> int:
    """Make a checkpoint of GWP-0, GWP-0.5 or Wan 2.2.

    Args:
        source: A local folder, or a Hub id such as Wan-AI/Wan2.2-TI2V-5B-Diffusers.
        out: Folder of the checkpoint.
        folder: Where in the source the weights are, such as transformer_ema, if there are several.
        codec: Folder or Hub id with vae/; that beside the weights, or Wan 2.2's, if not given.
        text: Folder or Hub id with text_encoder/ and tokenizer/; as with the codec.
        robots: YAML files of the robots that the weights act for.
        norm_stats: Their statistics, one file for each robot.
        action_horizon: Actions in a chunk, 48 in the official models.
        picture: Height and width of the composed picture, 384 and 320 in the official models.
        precision: What the weights are kept in; auto keeps what the files have.
        experts: Only for Wan: one expert as in GWP-0, or a second one for actions as in GWP-0.5 (the default).
        action_width: Only for Wan: dimensions that state and action are padded to, 32 if not given.
        embodiments: Only for Wan: robots with projectors of their own, one if not given.
        time_projection: Only for Wan with two experts: how the noise projection is cut; official repeats a fault.
        seed: Only for Wan: draws the weights that Wan does not have, 0 if not given.
    """
    from actwam.convert import ImportConfig, import_model
    from actwam.recipes.gwp import ACTIONS

    sizes = {"action_horizon": action_horizon, "picture": picture, "time_projection": time_projection, "seed": seed}
    side = {"width": action_width, "embodiments": embodiments}
    for_wan = {"experts": experts, **side, "time_projection": time_projection, "seed": seed}
    config = ImportConfig(
        folder=folder,
        codec=codec,
        text=text,
        robots=robots,
        norm_stats=norm_stats,
        actions=replace(ACTIONS, expert=None if experts == "one" else ACTIONS.expert, **_given(side)),
        precision=precision,
        only_for_wan=tuple(_given(for_wan)),
        **_given(sizes),
    )
    checkpoint = import_model(source, out, config)
    millions = sum(p.numel() for p in checkpoint.model.parameters()) / 1e6
    stderr.print(f"{checkpoint.trained['imported']}: {millions:.1f} M parameters, every tensor used", markup=False)
    print(out)
    return 0


def export(checkpoint: Positional[Path], *, out: Path, format: Literal["safetensors", "bin"] = "safetensors") -> int:
    """Write a checkpoint in the layout of the official GWP-0 or GWP-0.5.

    Args:
        checkpoint: A checkpoint, or the folder of a training run.
        out: Folder for transformer/, vae/ and the statistics of each robot.
        format: bin is a pickle, which wam.cpp's converter reads; nothing here does, but import.
    """
    from actwam.convert import export_model

    export_model(checkpoint, out, pickled=format == "bin")
    print(out)
    return 0


def parity(folder: Positional[Path], *, tolerance: float = 1e-5, device: str = "cpu") -> int:
    """Compare this code with golden vectors of the official one: the largest difference of every output, as JSON.

    Args:
        folder: Holds transformer/, golden.safetensors and cases.json; sampling.safetensors and vae/ if a whole call
            was recorded.
        tolerance: Exit code 1 when an output differs by more. Pictures must always be equal.
        device: Where to compute.
    """
    from actwam.parity import compare

    differences = compare(folder, device=device)
    print_numbers(differences, as_json=True)
    return 0 if all(value <= tolerance for value in differences.values()) else 1


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given: the others keep the values of the official models."""
    return {name: value for name, value in options.items() if value is not None}
