"""A mixture of many small datasets, and one of many rows: how long opening takes, and how much memory it needs.

Each is opened in a process of its own, first when nothing is known of it and then again. The datasets are copies of
one, with their own places and times; the rows are of a dataset without pictures.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from actwam.data.dataset import LeRobotDataset
from actwam.data.episode import Episode
from actwam.data.latents import Latents
from actwam.data.loader import Mixture, Source
from actwam.data.normalize import Normalizer
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import RobotTransform
from actwam.data.writer import DatasetWriter
from actwam.recipes.metaworld import laptop
from actwam.sim.robot import metaworld_embodiment
from actwam.train.config import Recipe, SourceConfig
from actwam.train.datasets import open_datasets
from actwam.train.mixtures import resolve
from actwam.types import Mode
from benchmarks.stress.host import figure

ROBOT = metaworld_embodiment((32, 32))
EPISODES, LENGTH = 3, 60
"""Of each of the small datasets."""
ROWS_OF_EACH, WIDTH = 2000, 14
"""Rows of an episode of the one of many rows, and its dimensions of state and of action."""


def run(*, n: int, seed: int) -> dict[str, Any]:
    """`n` small datasets, and 2,000 rows more for each in the other one: 2 million for 1,000."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        _write_small(root / "one", seed)
        for number in range(n):
            shutil.copytree(root / "one", root / "many" / f"{number:05d}")
        (root / "mixture.yaml").write_text(yaml.safe_dump({"members": {"many": {"data": "many/*", "weight": 1}}}))
        _write_rows(root / "rows", n, seed)
        small, again = (_measured("datasets", root) for _ in range(2))
        rows, mapped = (_measured("rows", root) for _ in range(2))
    megabytes = 2 * WIDTH * 4 * ROWS_OF_EACH * n / 1e6
    return {
        "figures": {
            "datasets": figure(small["count"], at_least=n),
            "seconds to open them, first": figure(small["seconds"], at_most=10),
            "seconds to open them, again": figure(again["seconds"], at_most=10),
            "peak resident memory, first, MB": figure(small["peak_mb"], at_most=2000),
            "peak resident memory, again, MB": figure(again["peak_mb"], at_most=2000),
            "batches that differ between the two": figure(int(small["batch"] != again["batch"]), at_most=0),
            "memory that many rows take, opened again, share of their size": figure(
                mapped["own_mb"] / megabytes, at_most=0.1
            ),
        },
        "many rows": {"rows": ROWS_OF_EACH * n, "size_mb": megabytes, "first": rows, "again": mapped},
        "first": small,
        "again": again,
    }


def _measured(what: str, root: Path) -> dict[str, Any]:
    """What a new process finds."""
    command = [sys.executable, "-m", "benchmarks.stress.mixture", what, str(root)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _datasets(root: Path) -> dict[str, Any]:
    made, transform = laptop(), _transform()
    stage = replace(made.stages[-1], sources=(SourceConfig(dataset="many", mode=Mode.POLICY),))
    recipe: Recipe = replace(made, robots=(ROBOT,), stages=(stage,))
    start, used = time.perf_counter(), time.process_time()
    one, places = resolve(recipe, {"many": root / "mixture.yaml"}, lambda text: None)
    datasets = open_datasets(one, places, root / "cache")
    weights = {source.dataset: source.weight for source in one.stages[0].sources}
    blank = np.broadcast_to(np.float16(0), (EPISODES * LENGTH, 1, 1, 1, 1))
    sources = [
        Source(dataset, Latents(dataset.folder, [blank]), transform, recipe.window, Mode.POLICY, weights[name])
        for name, dataset in datasets.items()
    ]
    batch = Mixture(sources, 64, 0).batch(7)
    seconds = time.perf_counter() - start
    return {
        "count": len(datasets),
        "seconds": seconds,
        "processor_seconds": time.process_time() - used,
        "peak_mb": _memory_mb("VmHWM"),
        "batch": batch.action.double().sum().item(),
    }


def _rows(root: Path) -> dict[str, Any]:
    before, start = _memory_mb("RssAnon"), time.perf_counter()
    dataset = LeRobotDataset.open(root / "rows", cache=root / "cache")
    drawn = np.random.default_rng(0).integers(len(dataset.state), size=256)
    total = float(dataset.action[drawn].sum())
    return {"seconds": time.perf_counter() - start, "own_mb": _memory_mb("RssAnon") - before, "sum": total}


def _memory_mb(what: str) -> float:
    """Of this process: VmHWM is its peak so far, RssAnon what is resident and no part of a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def _transform() -> RobotTransform:
    layout = laptop().layouts[0]

    def unit(names: tuple[str, ...]) -> Normalizer:
        return Normalizer(compute_stats(np.array([[-1.0] * len(names), [1.0] * len(names)]), names))

    return RobotTransform(ROBOT, layout, unit(ROBOT.state_names), unit(ROBOT.action_names), 4, 4)


def _write_small(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    with DatasetWriter(folder, ROBOT) as writer:
        for number in range(EPISODES):
            picture = random.integers(0, 255, (1, *ROBOT.image_size, 3), np.uint8)
            images = {camera: np.repeat(picture, LENGTH, 0) for camera in ROBOT.cameras.values()}
            state, action = (
                random.normal(size=(LENGTH, len(names))).astype(np.float32)
                for names in (ROBOT.state_names, ROBOT.action_names)
            )
            writer.add_episode(Episode(images, state, action, f"do task {number}", seed=number))


def _write_rows(folder: Path, episodes: int, seed: int) -> None:
    """LeRobot v3.0 without cameras; a hundred episodes in a file."""
    random, files = np.random.default_rng(seed), range(0, episodes, 100)
    names = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    for number, first in enumerate(files):
        count = min(100, episodes - first)
        steps, which = np.tile(np.arange(ROWS_OF_EACH), count), np.repeat(np.arange(first, first + count), ROWS_OF_EACH)
        index = which * ROWS_OF_EACH + steps
        columns: dict[str, Any] = dict(zip(names, (steps / 30, steps, which, index, 0 * index), strict=True))
        for key in ("observation.state", "action"):
            values = random.normal(size=(len(index), WIDTH)).astype(np.float32)
            columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH)
        _table(folder / f"data/chunk-000/file-{number:03d}.parquet", columns)
    every = np.arange(episodes)
    listed = {"episode_index": every, "length": 0 * every + ROWS_OF_EACH, "dataset_from_index": every * ROWS_OF_EACH}
    listed |= {"data/chunk_index": 0 * every, "data/file_index": every // 100}
    _table(folder / "meta/episodes/chunk-000/file-000.parquet", listed)
    _table(folder / "meta/tasks.parquet", {"task_index": [0], "task": ["do it"]})
    vector = {"dtype": "float32", "shape": [WIDTH], "names": None}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "rows",
        "fps": 30,
        "total_episodes": episodes,
        "total_frames": episodes * ROWS_OF_EACH,
        "features": {"observation.state": vector, "action": vector},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
    }
    (folder / "meta/info.json").write_text(json.dumps(info))


def _table(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


if __name__ == "__main__":
    print(json.dumps({"datasets": _datasets, "rows": _rows}[sys.argv[1]](Path(sys.argv[2]))))
