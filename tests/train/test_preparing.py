"""`actwam prepare`, by several processes at once, of which one is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from actwam.cli import main
from actwam.commands.training import prepare as command
from actwam.data import latents
from actwam.data.latents import Encoding
from actwam.train import codec, statistics
from actwam.train.datasets import open_datasets
from actwam.train.encode import mixture
from actwam.train.loop import Run, train
from actwam.train.prepare import initial

CODE = """
import sys, time
from pathlib import Path
from actwam.commands.training import prepare
from actwam.data import latents

latents.PIECE_ROWS = 30
real = latents.Encoding._encoded

def slowly(self, piece):
    for each in real(self, piece):
        print(piece, flush=True)
        time.sleep(float(sys.argv[3]))
        yield each

latents.Encoding._encoded = slowly
prepare("tiny:recipe", data={"squares": Path(sys.argv[1])}, cache=Path(sys.argv[2]))
"""


def worker(data: Path, cache: Path, pause: float) -> subprocess.Popen[str]:
    given = [sys.executable, "-c", CODE, str(data), str(cache), str(pause)]
    return subprocess.Popen(given, stdout=subprocess.PIPE, text=True, cwd=Path(tiny.__file__).parent)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("preparing") / "squares", tiny.robot(0), episodes=12)


def test_workers_share_what_there_is_to_do_and_one_that_is_killed_costs_its_piece(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    killed = worker(data, cache, 600)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "range(0, 3)\n"  # it is in the first piece, and stays there
    others = [worker(data, cache, 0.3) for _ in range(2)]
    while len(list(cache.glob("*/*-*/latents.json"))) < 2:  # they pass over what it is at
        assert all(other.poll() is None for other in others)
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    said = [other.communicate(timeout=120)[0] for other in others]
    assert [other.returncode for other in others] == [0, 0]
    pieces = [{line for line in text.splitlines() if line.startswith("range")} for text in said]
    assert not pieces[0] & pieces[1]
    assert "range(0, 3)" in pieces[0] | pieces[1]
    assert not list(cache.rglob("*.partial"))

    monkeypatch.setattr(latents, "PIECE_ROWS", 30)
    for module, name in ((codec, "_pictures"), (Encoding, "_encoded"), (statistics, "action_chunks")):
        monkeypatch.delattr(module, name)
    train(tiny.recipe(), {"squares": data}, Run(out=tmp_path / "run", cache=cache))


def test_a_cache_that_cannot_be_written_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    given = ["prepare", "tiny:recipe", "--data", "squares", str(data), "--cache", str(tmp_path / "file")]
    monkeypatch.setattr(sys, "argv", ["actwam", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("actwam: ")
    assert str(tmp_path / "file") in said


def test_what_is_prepared_is_what_training_alone_would_make(data: Path, tmp_path: Path) -> None:
    assert command("tiny:recipe", data={"squares": data}, cache=tmp_path / "prepared") == 0
    recipe = tiny.recipe()
    batches = []
    for cache in (tmp_path / "prepared", tmp_path / "other"):
        datasets = open_datasets(recipe, {"squares": data}, cache)
        silent = lambda *_: None  # noqa: E731
        made = initial(recipe, datasets, cache, silent)
        batches.append(mixture(recipe.stages[0], made, datasets, cache, silent).batch(0))
    for name, value in vars(batches[0]).items():
        assert np.array_equal(value, getattr(batches[1], name)), name
