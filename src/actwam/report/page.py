"""A finished run as one HTML page that needs nothing but itself: no script, no network, light and dark."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from actwam.report.figures import curves, loss_panels, mask_figure
from actwam.tokens import TABLES
from actwam.train.metrics import read_metrics
from actwam.types import Group

NONE = "\N{EN DASH}"
VIDEO_BUDGET = 6_000_000
"""Bytes of videos that are put into the page, the smallest first; the others are linked where they lie.
Base64 makes a third more of them, and the page stays at about 8 MB."""

_SCORE = dict.fromkeys(("success_rate", "n_episodes", "wilson_low", "wilson_high", "n_crashes"))
_CASE = dict.fromkeys(("p50", "p95", "p99", "mean", "n", "tokens_denoised"))
_QUALITY = dict.fromkeys(("psnr", "ssim", "psnr_moved", "per_offset"))
_RESULTS: dict[str, Any] = {
    **_SCORE,
    "per_task": None,
    "randomized": {**_SCORE, "per_task": None},
    "latency_ms": {"action_only": _CASE, "joint": _CASE},
    "seconds": None,
    "settings": None,
    "model": {"parameters": None, "table": None, "tokens": None},
    "provenance": {
        **dict.fromkeys(("commit", "dirty", "versions", "python", "date")),
        "machine": dict.fromkeys(("cpu", "cores", "memory_gb", "gpu", "system")),
    },
}
_IMAGINE: dict[str, Any] = {
    **dict.fromkeys(("n", "offsets", "fps", "ssim_window", "moved_threshold", "moved_share", "strips")),
    **dict.fromkeys(("imagined", "persistence", "codec"), _QUALITY),
}


@dataclass(frozen=True)
class Mark:
    """One measured success rate: a row of the table, and a mark with its interval in the figure."""

    task: str
    scene: str
    rate: float | None
    low: float
    high: float
    n: int
    crashes: int

    @property
    def successes(self) -> int:
        return round((self.rate or 0.0) * self.n)


@dataclass(frozen=True)
class Video:
    """An episode's film. `data` is its content as a data URL, None where it is only linked."""

    path: str
    scene: str
    task: str
    seed: str
    outcome: str
    size: int
    data: str | None


def write_report(folder: Path) -> Path:
    """Read a run (results.json, train/, imagine/, eval/) and write `folder/report.html`.

    Raises ValueError, naming the file, on a part that is missing, damaged or lacks an entry.
    """
    page = Environment(
        loader=PackageLoader("actwam", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"percent": percent, "duration": duration, "plain": plain, "megabytes": megabytes}
    text = page.get_template("report.html.jinja").render(contents(folder))
    path = folder / "report.html"
    partial = path.with_name("report.html.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def contents(folder: Path) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template uses. Raises ValueError as
    `write_report`."""
    path = folder / "results.json"
    results = _read_json(path, _RESULTS)
    for scene, where in ((results, ""), (results["randomized"], "randomized.")):
        _require(scene["per_task"], dict.fromkeys(scene["per_task"], _SCORE), path, f"{where}per_task.")
    model = results["model"]
    if model["table"] not in TABLES:
        raise ValueError(f"{path}: model.table {model['table']!r} is none of {', '.join(TABLES)}")
    try:
        tokens = {Group(group): count for group, count in model["tokens"].items()}
    except ValueError as error:
        raise ValueError(f"{path}: model.tokens: {error}; groups are {', '.join(Group)}") from error
    names, stages = _read_stages(folder / "train")
    imagine = _read_json(folder / "imagine" / "imagine.json", _IMAGINE)
    strips = [
        {**strip, "data": _inline(folder / "imagine" / strip["file"], "image/png")} for strip in imagine["strips"]
    ]
    return {
        "results": results,
        "marks": _marks(results),
        "losses": list(zip(names, loss_panels(stages), strict=True)),
        "imagine": imagine,
        "strips": strips,
        "mask": mask_figure(TABLES[model["table"]], tokens),
        "tokens": tokens,
        "latency": results["latency_ms"],
        "speedup": results["latency_ms"]["joint"]["p50"] / results["latency_ms"]["action_only"]["p50"],
        "settings": list(_flat(results["settings"])),
        "videos": _read_videos(folder),
    }


def _read_stages(train: Path) -> tuple[list[str], list[Any]]:
    """Names and loss curves of the stages, in order."""
    folders = sorted(
        (path for path in train.glob("*-*") if re.fullmatch(r"\d+-.+", path.name)),
        key=lambda path: int(path.name.partition("-")[0]),
    )
    if not folders:
        raise ValueError(f"{train / '<n>-<stage>' / 'metrics.jsonl'}: missing; train the policy first")
    stages = []
    for stage in folders:
        path = stage / "metrics.jsonl"
        try:
            found = curves(read_metrics(path))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read: {error}; train this stage again") from error
        if not found:
            raise ValueError(f"{path}: holds no loss; train this stage again")
        stages.append(found)
    return [path.name.partition("-")[2] for path in folders], stages


def _read_videos(folder: Path) -> list[Video]:
    """Films of all scenes, by scene and name; as many inside the page as `VIDEO_BUDGET` allows."""
    paths = sorted((folder / "eval").glob("*/videos/*.mp4"))
    if not paths:
        wanted = folder / "eval" / "<scene>" / "videos" / "*.mp4"
        raise ValueError(f"{wanted}: missing; evaluate with videos first")
    budget, inside = VIDEO_BUDGET, set()
    for path in sorted(paths, key=lambda path: path.stat().st_size):
        budget -= path.stat().st_size
        if budget >= 0:
            inside.add(path)
    return [_video(folder, path, path in inside) for path in paths]


def _video(folder: Path, path: Path, inside: bool) -> Video:
    """Evaluation names a film task-seed-outcome; one with another name is shown under that name."""
    task, seed, outcome = (*path.stem.rsplit("-", 2), "", "")[:3]
    if not seed.isdigit():
        task, seed, outcome = path.stem, "", ""
    return Video(
        path=path.relative_to(folder).as_posix(),
        scene=path.parent.parent.name,
        task=task,
        seed=seed,
        outcome=outcome,
        size=path.stat().st_size,
        data=_inline(path, "video/mp4") if inside else None,
    )


def _marks(results: Mapping[str, Any]) -> list[list[Mark]]:
    """For all tasks together and then for each task: the marks of the scenes it was evaluated in."""
    scenes = {"clean": results, "randomized": results["randomized"]}
    rows = [[_mark("all tasks", scene, score) for scene, score in scenes.items()]]
    for task in dict.fromkeys(task for score in scenes.values() for task in score["per_task"]):
        scores = {scene: score["per_task"].get(task) for scene, score in scenes.items()}
        rows.append([_mark(task, scene, score) for scene, score in scores.items() if score is not None])
    return rows


def _mark(task: str, scene: str, score: Mapping[str, Any]) -> Mark:
    return Mark(
        task=task,
        scene=scene,
        rate=score["success_rate"],
        low=score["wilson_low"],
        high=score["wilson_high"],
        n=score["n_episodes"],
        crashes=score["n_crashes"],
    )


def _read_json(path: Path, schema: Mapping[str, Any]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; run the step that writes it again") from error
    _require(data, schema, path)
    return data


def _require(data: Any, schema: Mapping[str, Any], path: Path, where: str = "") -> None:
    """Every key of the schema, and those of the schemas inside it."""
    for key, inner in schema.items():
        if not isinstance(data, dict) or key not in data:
            raise ValueError(f"{path}: has no {where}{key}; run the step that writes it again")
        if inner:
            _require(data[key], inner, path, f"{where}{key}.")


def _inline(path: Path, kind: str) -> str:
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}; run the step that writes it again") from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of name and text."""
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}".replace("_", " "), plain(value)))
    return rows


def percent(share: float | None) -> str:
    """0.9333 -> "93.3%"; a rate that does not exist is a dash."""
    return NONE if share is None else f"{100 * share:.1f}".removesuffix(".0") + "%"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def plain(value: Any) -> str:
    """A value of JSON as a person writes it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
