"""What training asks of its data before the first step: errors refuse, suspicions are said once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

from actwam.data.writer import DatasetWriter
from actwam.train.config import Recipe, SourceConfig
from actwam.train.datasets import open_datasets
from actwam.train.loop import Run, train
from actwam.train.sound import require_sound
from actwam.types import Mode

DATA = "data/chunk-000/file-000.parquet"


def write(folder: Path, *numbers: int) -> Path:
    with DatasetWriter(folder, tiny.robot()) as writer:
        for number in numbers:
            writer.add_episode(tiny.episode(number, tiny.robot()))
    return folder


def delay(folder: Path) -> None:
    """From its ninth row on the clock of the first episode is a second late."""
    table = pq.read_table(folder / DATA)
    time = np.array(table.column("timestamp"))
    time[8:14] += 1
    place = table.schema.names.index("timestamp")
    pq.write_table(table.set_column(place, "timestamp", [time]), folder / DATA)


def watched() -> Recipe:
    return tiny.recipe(tiny.stage(sources=(SourceConfig(dataset="squares", mode=Mode.VIDEO),)))


def test_an_error_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", 0, 1)
    delay(folder)
    with pytest.raises(ValueError, match=rf"{DATA}: timestamp, episode 0, frame 8: .* time jumps by 1.1 s at frame 8"):
        train(tiny.recipe(), {"squares": folder}, Run(out=tmp_path / "run", cache=tmp_path / "cache"))
    assert not (tmp_path / "run").exists()


def test_video_alone_does_not_ask_what_it_does_not_learn_from(tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", 0, 1)
    delay(folder)
    said: list[str] = []
    require_sound(watched(), open_datasets(watched(), {"squares": folder}), tmp_path, said.append)
    assert said == []


def test_of_every_kind_of_suspicion_the_first_is_said_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", 0, 1, 0, 1, 2)
    (folder / "meta/stats.json").unlink()
    said: list[str] = []
    run = Run(out=tmp_path / "run", cache=tmp_path / "cache", say=said.append)
    train(tiny.recipe(), {"squares": folder}, run)
    told = [line for line in said if line.startswith("dataset squares: ")]
    assert len(told) == 2
    assert "episode 2: state and action are those of episode 0" in told[0]
    assert told[0].endswith(f"(1 more of this kind: actwam check {folder})")
    assert "stats.json: file is missing" in told[1]


def test_a_damaged_end_of_a_video_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", 0, 1)
    path = folder / "videos/observation.images.front/chunk-000/file-000.mp4"
    datasets = open_datasets(watched(), {"squares": folder})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"front, episode 0: (not a complete video|video is damaged)"):
        require_sound(watched(), datasets, tmp_path, lambda text: None)
