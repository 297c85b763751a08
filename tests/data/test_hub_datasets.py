"""Datasets of the Hub, from a server of the tests: fetched file by file, read as a folder is, refused in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import v21_files
from hub_server import Hub, hub_here, point

from actwam.data.dataset import LeRobotDataset
from actwam.data.hub import AHEAD, Address, HubShelf, address_of, open_shelf, pin

REPO = "someone/arms"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_here(tmp_path / "cache", monkeypatch) as server:
        yield server


def opened(address: str, *cameras: str) -> LeRobotDataset:
    pinned = address_of(address)
    assert pinned is not None
    shelf = open_shelf(pin(pinned))
    return LeRobotDataset.open(shelf.folder, cameras=cameras or None, shelf=shelf)


def test_addresses() -> None:
    assert address_of("hub:a/b") == Address("a/b", None, keep=True)
    assert address_of(Path("stream:a/b.c@refs/pr-1")) == Address("a/b.c", "refs/pr-1", keep=False)
    assert [str(address_of(text)) for text in ("hub:a/b", "stream:a/b@v3.0")] == ["hub:a/b", "stream:a/b@v3.0"]
    assert address_of("a/b") is None
    assert address_of("/data/hub:x") is None
    for text in ("hub:", "hub:b", "hub:a/b/c", "hub:a/b@", "stream:../b", "hub:a/b@../c d"):
        with pytest.raises(ValueError, match="no dataset of the Hub: write hub:ORG/NAME"):
            address_of(text)


@pytest.mark.parametrize("version", ["v20", "v21", "v30"])
def test_it_is_the_dataset_that_was_published(hub: Hub, version: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(version)
    hub.publish(REPO, folder)
    here, there = LeRobotDataset.open(folder), opened(f"hub:{REPO}")
    assert hub.videos() == []
    assert np.array_equal(here.state, there.state)
    assert np.array_equal(here.action, there.action)
    assert [e.instruction for e in here.episodes] == [e.instruction for e in there.episodes]
    assert np.array_equal(here.frames("cam_high", 1, np.array([3, 0])), there.frames("cam_high", 1, np.array([3, 0])))
    assert len(hub.videos()) == 1
    for (a, mine), (b, theirs) in zip(here.videos("cam_high", 8), there.videos("cam_high", 8), strict=True):
        assert a == b
        assert np.array_equal(mine, theirs)
    assert len(hub.videos()) == len(set(hub.videos())) == 3
    assert all("cam_high" in path for path in hub.videos())


def test_the_library_reads_its_own_environment(hub: Hub, v21: Path, tmp_path: Path) -> None:
    """As on any machine: nothing is patched."""
    commit = hub.publish(REPO, v21)
    code = (
        "from actwam.data.hub import address_of, open_shelf, pin\n"
        f"shelf = open_shelf(pin(address_of('hub:{REPO}')))\n"
        f"shelf.bring(shelf.folder / {v21_files.video_file('cam_high', 0)!r})\n"
        "print(shelf.folder)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.name == commit
    assert folder.is_relative_to(tmp_path / "home")
    assert (folder / v21_files.video_file("cam_high", 0)).read_bytes()[4:8] == b"ftyp"


def test_a_revision_is_a_commit_and_stays_it(hub: Hub, v21: Path, v30: Path) -> None:
    old, new = hub.publish(REPO, v21), hub.publish(REPO, v30)
    assert pin(Address(REPO, None, True)).revision == new
    assert pin(Address(REPO, old, True)).revision == old
    first, second, third = opened(f"hub:{REPO}@{old}"), opened(f"hub:{REPO}"), opened(f"stream:{REPO}@{new}")
    assert first.digest != second.digest == third.digest
    assert hub.videos() == []  # a commit says what the videos are


def test_only_the_cameras_of_the_picture(hub: Hub, v21: Path) -> None:
    hub.publish(REPO, v21)
    dataset = opened(f"hub:{REPO}", "cam_left_wrist")
    assert [camera.name for camera in dataset.cameras] == ["cam_left_wrist"]
    assert sum(1 for _ in dataset.videos("cam_left_wrist")) == 3
    assert all("cam_left_wrist" in path for path in hub.videos())


def test_files_are_fetched_ahead_and_removed_behind(
    hub: Hub, v21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(REPO, v21)
    dataset = opened(f"stream:{REPO}", "cam_high")
    fetched = {number: Event() for number in range(3)}
    bring = HubShelf.bring

    def noted(shelf: HubShelf, path: Path) -> None:
        bring(shelf, path)
        fetched[int(path.stem.removeprefix("episode_"))].set()

    monkeypatch.setattr(HubShelf, "bring", noted)
    read = dataset.videos("cam_high", 8)
    next(read)
    assert all(fetched[number].wait(30) for number in range(AHEAD)), "the next one comes while this one is read"
    assert not fetched[2].is_set(), "and no more than that"
    assert [episode for episode, frames in read if len(frames) == 8][-1] == 2
    assert not list((tmp_path / "cache").rglob("*.mp4"))
    assert not [path for path in (tmp_path / "cache").rglob("blobs/*") if path.read_bytes()[4:8] == b"ftyp"]
    assert len(hub.videos()) == 3


def test_what_was_here_before_is_not_removed(hub: Hub, v21: Path, tmp_path: Path) -> None:
    hub.publish(REPO, v21)
    opened(f"hub:{REPO}").frames("cam_high", 0, np.array([0]))
    assert sum(1 for _ in opened(f"stream:{REPO}", "cam_high").videos("cam_high")) == 3
    assert [path.name for path in (tmp_path / "cache").rglob("*.mp4")] == ["episode_000000.mp4"]


def test_content_that_another_commit_brought_is_not_removed(hub: Hub, v21: Path, tmp_path: Path) -> None:
    old, _ = hub.publish(REPO, v21), hub.publish(REPO, v21)
    opened(f"hub:{REPO}@{old}").frames("cam_high", 0, np.array([0]))
    (kept,) = (tmp_path / "cache").rglob("*.mp4")
    os.utime(kept, (1e9, 1e9))
    assert sum(1 for _ in opened(f"stream:{REPO}", "cam_high").videos("cam_high")) == 3
    assert kept.is_file()
    assert len(opened(f"hub:{REPO}@{old}").frames("cam_high", 0, np.array([0]))) == 1
    assert len(hub.videos()) == 3


def test_time_stamps_that_have_drifted_are_settled_by_the_file(
    hub: Hub, written: Path, tmp_path: Path, rewrite
) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "drifted"))
    rewrite(folder, "episodes", "videos/observation.images.front/from_timestamp", lambda values: values + 0.2)
    hub.publish(REPO, folder)
    assert len(opened(f"hub:{REPO}", "front").episodes) == 4
    assert len(hub.videos()) == 1


def test_without_network_what_was_fetched_is_found(
    hub: Hub, v21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.publish(REPO, v21)
    online = opened(f"hub:{REPO}", "cam_high")
    assert sum(1 for _ in online.videos("cam_high")) == 3
    point("http://127.0.0.1:1", tmp_path / "cache", monkeypatch)
    offline = opened(f"hub:{REPO}", "cam_high")
    assert offline.digest == online.digest
    assert offline.shelf.identity == f"{REPO}@{commit}"
    with pytest.raises(ValueError, match="video file is missing; copy the file again"):
        opened(f"hub:{REPO}")


def test_what_cannot_be_had_is_one_line(hub: Hub, v21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(REPO, v21)
    hub.publish("someone/closed", v21)
    hub.gated.add("someone/closed")
    hub.hidden.add(v21_files.video_file("cam_high", 1))
    cases = {
        "hub:someone/nothing": "no such dataset on the Hub, or a private one; check the name",
        f"hub:{REPO}@v9": "has no such revision; look at https://huggingface.co/datasets/someone/arms",
        "hub:someone/closed": "is gated; accept its conditions at https://huggingface.co/datasets/someone/closed",
    }
    for address, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            opened(address)
        assert str(caught.value).startswith(address)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"hub:someone/arms@\w+: not to be had from the Hub .*; check the network"):
        list(opened(f"hub:{REPO}").videos("cam_high"))
    point("http://127.0.0.1:1", tmp_path / "empty", monkeypatch)
    with pytest.raises(ValueError, match=r"not to be had from the Hub .* check the network, or fetch it") as caught:
        opened(f"hub:{REPO}")
    assert "\n" not in str(caught.value)


def test_a_video_that_is_not_in_the_commit_is_refused_at_once(hub: Hub, v21: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(v21, tmp_path / "less"))
    (folder / v21_files.video_file("cam_high", 1)).unlink()
    hub.publish(REPO, folder)
    with pytest.raises(ValueError, match=r"episode_000001\.mp4: cam_high, episode 1: video file is missing"):
        opened(f"hub:{REPO}", "cam_high")
    assert len(opened(f"hub:{REPO}", "cam_left_wrist").episodes) == 3
    assert hub.videos() == []
