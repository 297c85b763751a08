"""Faults of datasets: `check` names each with its file, episode and frame, and a repaired copy is good again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from actwam.data.check import Report, check
from actwam.data.info import read_info
from actwam.data.repair import repair
from actwam.recipes.metaworld import compare
from actwam.sim.collect import collect
from actwam.sim.robot import metaworld_embodiment
from actwam.train.loop import Run, train
from benchmarks.stress.dataset_kinds import KINDS, Good, Injected, read_good
from benchmarks.stress.host import figure

TASKS = ("drawer-open-v3", "door-open-v3")
"""The gripper stays open in one, and is closed in the other."""
EPISODES = 4
IMAGE_SIZE = (64, 64)
FAST = {"finite", "time", "format", "statistics", "outlier", "idle", "gripper", "units", "duplicate"}
"""Kinds that are told without decoding a picture, as training asks for them."""
REFUSED = {"finite", "time", "format"}
"""Kinds that training refuses."""
GOOD = "good"
ASKED = ("named", "fast", "refused", "repaired", "trained", "untouched")
"""What a trial tells: True, False, or None for what was not asked."""
SEVERITIES = ("PASS", "WARN", "FAIL")


def run(
    n: int, seed: int, kinds: Sequence[str] = tuple(KINDS), good: Path | None = None, trains: bool = True
) -> dict[str, Any]:
    """`n` faults of each kind, by turns in a dataset with one file for each episode and in one with all in a file, and
    each time elsewhere. The copy of one of each kind trains a step. `good` is a dataset of MetaWorld's robot; without
    it one is collected.
    """
    outcomes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if good is None:
            collect(base / "good", tasks=TASKS, episodes_per_task=EPISODES, image_size=IMAGE_SIZE)
        goods = [read_good(good or base / "good", single) for single in (True, False)]
        alarms = [str(each) for good in goods for each in check(good.write(base / f"good{good.single}")).problems]
        usual = doctor(base / "goodTrue")
        for name in kinds:
            for number in range(n):
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    rng = np.random.default_rng([seed, number, *name.encode()])
                    outcomes.append(trial(name, goods[number % 2], Path(place), rng, trains=trains and number == 0))
                    print(f"{name} {number + 1}/{n}: {outcomes[-1]['copy']}", file=sys.stderr, flush=True)
    copies = [each for each in outcomes if each["copy"] == GOOD]
    worse = [each for each in copies if SEVERITIES.index(each["doctor"]) > SEVERITIES.index(usual)]
    return {
        "n": n,
        "seed": seed,
        "copies": dict(Counter(f"{each['fault']}: {each['copy']}" for each in outcomes)),
        "good dataset, lerobot-doctor": usual,
        "false alarms": alarms,
        "failed": [each for each in outcomes if any(each[what] is False for what in ASKED)],
        "figures": {
            "faults": figure(len(outcomes), at_least=n * len(kinds)),
            "not named with file, episode and frame": figure(_count(outcomes, "named"), at_most=0),
            "not named without decoding, of those that can be": figure(_count(outcomes, "fast"), at_most=0),
            "not refused by training, of those that must be": figure(_count(outcomes, "refused"), at_most=0),
            "not repaired, of those that can be": figure(_count(outcomes, "repaired"), at_most=0),
            "copies of which lerobot-doctor thinks less than of the good dataset": figure(len(worse), at_most=0),
            "copies that did not train a step": figure(_count(outcomes, "trained"), at_most=0),
            "originals that were changed": figure(_count(outcomes, "untouched"), at_most=0),
            "false alarms on the good dataset": figure(len(alarms), at_most=0),
        },
    }


def _count(outcomes: Sequence[dict[str, Any]], what: str) -> int:
    """How many failed in it."""
    return sum(each[what] is False for each in outcomes)


def trial(name: str, good: Good, place: Path, rng: np.random.Generator, *, trains: bool) -> dict[str, Any]:
    """Put a fault into a dataset, let it be named, refused and repaired."""
    injected = KINDS[name](good, place / "bad", rng)
    before, start = _digest(place / "bad"), time.perf_counter()
    fast = check(place / "bad", decode="none")
    seconds = time.perf_counter() - start
    report = check(place / "bad")
    refused = None
    if trains and injected.kind in REFUSED:
        refused = _refusal(place / "bad", place / "refused")
    doctored, trained, left = None, None, ""
    try:
        made = repair(place / "bad", place / "copy")
        copy, left = "left" if made.copy.problems else GOOD, "".join(map(str, made.copy.problems[:1]))
    except ValueError as error:
        copy, left = "refused", str(error)
    if copy == GOOD:
        doctored = doctor(place / "copy")
        trained = _trains(place / "copy", place / "run") if trains else None
    return {
        "fault": name,
        "single": good.single,  # a file for each episode
        "injected": asdict(injected),
        "named": named(report, place / "bad", injected),
        "fast": named(fast, place / "bad", injected) if injected.kind in FAST else None,
        "fast_s": round(seconds, 3),
        "refused": refused,
        "repaired": copy == GOOD if injected.repaired else None,
        "copy": copy,
        "left": left,
        "doctor": doctored,
        "trained": trained,
        "untouched": _digest(place / "bad") == before,
        "problems": [str(each) for each in report.problems][:5],
    }


def named(report: Report, folder: Path, injected: Injected) -> bool:
    """Whether a report names the fault, at the right place."""
    return any(
        problem.kind == injected.kind
        and problem.file == folder / injected.file
        and injected.episode in (None, problem.episode)
        and injected.key in (None, problem.key)
        and (
            injected.frame is None
            or (problem.frame is not None and abs(problem.frame - injected.frame) <= injected.slack)
        )
        for problem in report.problems
    )


def doctor(folder: Path) -> str:
    """What lerobot-doctor says of a dataset: PASS, WARN or FAIL."""
    command = [sys.executable, "-m", "lerobot_doctor.cli", "check", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return str(json.loads(done.stdout)["overall_severity"])


def _train(folder: Path, out: Path) -> None:
    """One step of a small model."""
    camera = read_info(folder).cameras[0]
    recipe = compare(align_steps=1, visual_width=32, action_width=32, precision="fp32")
    recipe = replace(recipe, robots=(metaworld_embodiment((camera.height, camera.width)),))
    train(recipe, {"general": folder, "demos": folder}, Run(out=out, cache=out / "cache"))


def _refusal(folder: Path, out: Path) -> bool:
    try:
        _train(folder, out)
    except ValueError as error:
        return str(folder) in str(error)
    return False


def _trains(folder: Path, out: Path) -> bool:
    _train(folder, out)
    return True


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
