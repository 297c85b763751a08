"""Actions for videos that have none: `label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from tyro.conf import Positional

from actwam.commands.acting import load_policy
from actwam.commands.options import Json, Precision
from actwam.console import print_numbers, progress_bars, stdout

if TYPE_CHECKING:
    from actwam.labels import Errors, LabelReport


def label(
    dataset: Positional[Path],
    *,
    policy: Path,
    out: Path,
    heldout: Path | None = None,
    robot: str | None = None,
    stride: int | None = None,
    samples: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "auto",
    as_json: Json = False,
) -> int:
    """Infer the actions of a dataset from its videos, with an inverse dynamics model, and write them as a new dataset.

    Its own actions, if it has any, are not looked at; the error against them is reported. The rows at the end of an
    episode whose actions no frame shows are left out.

    Args:
        dataset: LeRobot dataset with the videos; it needs neither actions nor a state.
        policy: A checkpoint trained with mode inverse, as recipe metaworld.inverse does, or its training run.
        out: Folder of the new dataset; meta/labels.json in it holds the report.
        heldout: Labelled episodes that the policy was not trained on: measures the error, calibrates the confidence.
        robot: The robot in the videos, where the dataset does not say it.
        stride: Rows from one window to the next; a quarter of what a window shows if not given.
        samples: Noises that every window is denoised from; they and the windows give the confidence.
        batch_size: Windows denoised together.
        seed: Draws the noise.
        device: Where the model runs.
        precision: What it computes in; auto is what its weights are stored in.
        as_json: Print the report as JSON.
    """
    from actwam.data.dataset import LeRobotDataset
    from actwam.inverse import Inference
    from actwam.labels import label as run

    ask = Inference(stride=stride, samples=samples, seed=seed, batch_size=batch_size)
    videos = LeRobotDataset.open(dataset)
    labelled = None if heldout is None else LeRobotDataset.open(heldout)
    loaded = load_policy(policy, device, precision, robot or videos.robot_type or None)
    with progress_bars() as report:
        found = run(loaded, videos, out, heldout=labelled, ask=ask, progress=report)
    if as_json:
        print_numbers(found.to_json(), as_json=True)
    else:
        _print_report(found)
    return 0


def _print_report(found: LabelReport) -> None:
    """What was written, and the errors that are known."""
    print_numbers(
        {
            "dataset": found.folder,
            "episodes": found.episodes,
            "frames": found.frames,
            "left out": found.left_out,
            "state": "known" if found.with_state else "unknown",
            "videos": found.videos,
            "confidence": found.confidence,
        },
        as_json=False,
    )
    for what, errors in (("held-out", found.heldout), ("its own", found.own_actions)):
        if errors is not None:
            _print_errors(what, errors)


def _print_errors(what: str, errors: Errors) -> None:
    """A row for every dimension, and one for every quarter of the rows."""
    columns = ("rmse", "mae", "rmse_normalised", "mae_normalised", "r2", "baseline_rmse", "baseline_mae")
    dimensions = Table(
        "dimension", *(name.replace("_normalised", "/std").replace("_", " ") for name in columns), box=None
    )
    dimensions.title = f"against {what} actions of {errors.folder}: {errors.frames} frames, {errors.episodes} episodes"
    for name, each in errors.dimensions.items():
        dimensions.add_row(name, *(_number(getattr(each, column)) for column in columns))
    quarters = Table("confidence", "from", "to", "frames", "rmse/std", box=None)
    quarters.title = f"rank correlation of spread and error: {_number(errors.rank_correlation)}"
    for name, part in errors.quarters.items():
        numbers = (part.confidence_from, part.confidence_to)
        quarters.add_row(name, *map(_number, numbers), str(part.frames), _number(part.rmse_normalised))
    for table in (dimensions, quarters):
        table.title_justify = "left"
        stdout.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
