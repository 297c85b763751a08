"""Which commit a number is said to come from, and when none."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from actwam.provenance import commit, provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package folder that a repository tracks."""
    folder = tmp_path / "checkout" / "src" / "thing"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    git(tmp_path / "checkout", "init", "-q")
    git(tmp_path / "checkout", "add", "-A")
    git(tmp_path / "checkout", "commit", "-q", "-m", "first")
    return folder


def test_provenance_says_what_ran_and_where() -> None:
    found = json.loads(json.dumps(provenance()))
    assert set(found) == {"commit", "dirty", "versions", "python", "machine", "date"}
    assert found["versions"]["torch"] == version("torch")
    assert found["machine"]["cores"] >= 1
    assert datetime.fromisoformat(found["date"]).utcoffset() == timedelta(0)


def test_a_checkout_has_a_commit_and_a_change_makes_it_dirty(package: Path) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert commit(package) == {"commit": head, "dirty": False}
    (package / "new.py").touch()
    assert commit(package) == {"commit": head, "dirty": True}


def test_a_package_that_the_repository_does_not_track_has_none(package: Path) -> None:
    installed = package.parents[1] / ".venv" / "thing"
    shutil.copytree(package, installed)
    assert commit(installed) == {"commit": None, "dirty": None}


def test_no_repository_and_no_git_give_none(tmp_path: Path, package: Path, monkeypatch) -> None:
    (tmp_path / "__init__.py").touch()
    assert commit(tmp_path) == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(package) == {"commit": None, "dirty": None}


def test_a_git_hook_does_not_lend_its_repository(package: Path, tmp_path: Path, monkeypatch) -> None:
    head = git(package, "rev-parse", "HEAD")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert commit(package)["commit"] == head
