"""The report of a run: everything on it, nothing outside it, and a clear word where a part is missing."""

from __future__ import annotations

import base64
import copy
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actwam.data.video import write_video
from actwam.report import page
from actwam.report.figures import LEAST_SIDE, MASK_SIDE, curves, loss_panels, mask_figure
from actwam.report.page import NONE, duration, percent, plain, write_report
from actwam.tokens import ACTION_CENTERED, JOINT, TABLES
from actwam.types import Group

TOKENS = {Group.OBSERVATION: 24, Group.STATE: 1, Group.ACTION: 16, Group.FUTURE: 48}
HOSTILE = "<script>alert('door')</script>"


def score(rate: float | None, n: int, low: float, high: float, crashes: int = 0) -> dict[str, Any]:
    keys = ("success_rate", "n_episodes", "wilson_low", "wilson_high", "n_crashes")
    return dict(zip(keys, (rate, n, low, high, crashes), strict=True))


def case(p50: float, tokens: int) -> dict[str, Any]:
    return {
        "p50": p50,
        "p95": 1.5 * p50,
        "p99": 2 * p50,
        "mean": 1.1 * p50,
        "n": 200,
        "tokens_denoised": tokens,
    }


RESULTS: dict[str, Any] = {
    **score(56 / 60, 60, 0.841, 0.974, 2),
    "per_task": {"door-open-v3": score(0.9, 20, 0.699, 0.972), HOSTILE: score(None, 0, 0.0, 1.0, 20)},
    "randomized": {
        **score(0.42, 59, 0.3, 0.55, 1),
        "per_task": {"door-open-v3": score(0.2, 20, 0.08, 0.416)},
    },
    "psnr": 24.5,
    "ssim": 0.9,
    "imagine": {},
    "latency_ms": {"action_only": case(8.0, 16), "joint": case(28.0, 64)},
    "seconds": {"collect": 63.2, "train 1-general": 125.0},
    "settings": {"recipe": "metaworld.laptop", "tasks": ["door-open-v3"], "seeds": {"first": 1000000}},
    "model": {"parameters": 1_960_000, "table": "ACTION_CENTERED", "tokens": dict(TOKENS)},
    "provenance": {
        "commit": "c0ffee",
        "dirty": True,
        "versions": {"torch": "2.13.0"},
        "python": "3.11.7",
        "machine": {"cpu": "A Processor", "cores": 2, "memory_gb": 24.1, "gpu": None, "system": "Linux"},
        "date": "2026-11-21T08:05:43+00:00",
    },
}


def quality(psnr: float, moved: float | None) -> dict[str, Any]:
    one = {"psnr": psnr, "ssim": 0.9, "psnr_moved": moved}
    return {**one, "per_offset": [one, one]}


IMAGINE: dict[str, Any] = {
    "n": 64,
    "offsets": [8, 16],
    "fps": 80,
    "ssim_window": 7,
    "moved_threshold": 16,
    "moved_share": 0.13,
    "imagined": quality(24.51, 17.77),
    "persistence": quality(22.29, 13.04),
    "codec": quality(28.5, None),
    "strips": [{"file": "strip_00.png", "instruction": HOSTILE, "episode": 3, "start": 5}],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as `actwam demo` leaves it."""
    stages = {
        "1-general": ("loss_future",),
        "2-adapt": ("loss_future",),
        "10-align": ("loss_future", "loss_action"),
    }
    for stage, losses in stages.items():
        (tmp_path / "train" / stage).mkdir(parents=True)
        rows = [{"step": 10 * i + 9, "loss": 1.0, **dict.fromkeys(losses, 1 / (i + 1))} for i in range(20)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "train" / stage / "metrics.jsonl").write_text(lines)
    (tmp_path / "imagine").mkdir()
    (tmp_path / "imagine" / "imagine.json").write_text(json.dumps(IMAGINE))
    Image.new("RGB", (8, 4), "red").save(tmp_path / "imagine" / "strip_00.png")
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    write_video(tmp_path / "eval" / "clean" / "videos" / "door-open-v3-1000000-success.mp4", frames, fps=10)
    write_video(tmp_path / "eval" / "randomized" / "videos" / "a_film.mp4", frames, fps=10)
    write_results(tmp_path, lambda results: None)
    return tmp_path


def write_results(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    results = copy.deepcopy(RESULTS)
    change(results)
    (folder / "results.json").write_text(json.dumps(results))


class Reader(HTMLParser):
    """Text, links and tags of a page; fails on a tag that is closed but was not opened last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.sources, self.tags, self.open = "", [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.text += " "
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def read(folder: Path) -> Reader:
    reader = Reader(write_report(folder).read_text(encoding="utf-8"))
    reader.text = re.sub(r"\s+", " ", reader.text)
    return reader


def test_the_page_says_what_was_measured(run: Path) -> None:
    text = read(run).text
    expected = (
        "93.3%",
        "95% interval 84.1% to 97.4% (Wilson) · clean scene · 2 tasks, one policy · 2 crashes",
        "30% to 55%, n = 59",
        "3.5 times faster than joint decoding",
        "2.0 M",
        "imagined 24.51 0.900 17.77",
        "present repeated 22.29 0.900 13.04",
        "PSNR of moved pixels, dB +0.1 s +0.2 s",
        "16 tokens denoised at every step · 200 calls",
        "c0ffee, with uncommitted changes",
        "A Processor · 2 cores · 24.1 GB memory · no GPU · Linux",
        "seeds first 1000000",
        "3 min 08 s in all",
        "door-open-v3 · success clean · seed 1000000",
        "a_film",
    )
    for words in expected:
        assert words in text


def test_sections_stand_in_order(run: Path) -> None:
    html = write_report(run).read_text()
    titles = (
        "Success by task and scene", "Training, stage by stage", "Real and imagined futures",
        "Who may look at whom", "Time to act", "What was run", "Episodes",
    )  # fmt: skip
    places = [html.index(f"<h2>{title}</h2>") for title in titles]
    assert places == sorted(places)
    stages = [html.index(title) for title in ("1 · general", "2 · adapt", "3 · align")]
    assert stages == sorted(stages)


def test_crashes_stand_beside_and_a_rate_of_nothing_is_a_dash(run: Path) -> None:
    text = read(run).text
    assert f"{HOSTILE} clean 0 0 {NONE} 0% to 100% 20" in text


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    found = read(run)
    assert len(found.sources) == 3
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    assert "script" not in found.tags
    assert "link" not in found.tags
    html = (run / "report.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\((?!#)", html)


def test_text_from_outside_is_escaped(run: Path) -> None:
    html = write_report(run).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;door&#39;)") >= 2


def test_pictures_and_films_are_inside_unchanged(run: Path) -> None:
    sources = read(run).sources
    for path, kind in (
        ("imagine/strip_00.png", "image/png"),
        ("eval/clean/videos/door-open-v3-1000000-success.mp4", "video/mp4"),
    ):
        data = base64.b64encode((run / path).read_bytes()).decode()
        assert f"data:{kind};base64,{data}" in sources


def test_films_beyond_the_budget_are_linked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = run / "eval" / "randomized" / "videos" / "a_film.mp4"
    large = run / "eval" / "clean" / "videos" / "door-open-v3-1000000-success.mp4"
    large.write_bytes(large.read_bytes() + bytes(10_000))
    monkeypatch.setattr(page, "VIDEO_BUDGET", small.stat().st_size)
    found = read(run)
    assert sum(source.startswith("data:video") for source in found.sources) == 1
    assert large.relative_to(run).as_posix() in found.sources


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("results.json", "results.json: cannot be read"),
        ("train", "train/<n>-<stage>/metrics.jsonl: missing"),
        ("train/2-adapt/metrics.jsonl", "2-adapt/metrics.jsonl: cannot be read"),
        ("imagine/imagine.json", "imagine.json: cannot be read"),
        ("imagine/strip_00.png", "strip_00.png: cannot be read"),
        ("eval", r"eval/<scene>/videos/\*.mp4: missing"),
    ],
)
def test_a_missing_part_is_named_and_no_page_is_written(run: Path, path: str, words: str) -> None:
    target = run / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(ValueError, match=words):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda results: results.pop("latency_ms"), "results.json: has no latency_ms"),
        (lambda results: results["latency_ms"]["joint"].pop("p99"), "has no latency_ms.joint.p99"),
        (
            lambda results: results["per_task"]["door-open-v3"].pop("n_crashes"),
            "per_task.door-open-v3.n_crashes",
        ),
        (lambda results: results["provenance"]["machine"].pop("gpu"), "has no provenance.machine.gpu"),
        (lambda results: results["model"].update(table="SIDEWAYS"), "'SIDEWAYS' is none of ACTION_CENTERED"),
        (lambda results: results["model"]["tokens"].update(smell=3), "model.tokens: 'smell'"),
    ],
)
def test_an_incomplete_results_file_is_refused(run: Path, change: Callable, words: str) -> None:
    write_results(run, change)
    with pytest.raises(ValueError, match=re.escape(words)):
        write_report(run)


@pytest.mark.parametrize("content", ["{not json\n", '{"step": 1, "loss": 2.0}\n', '{"loss_future": 2.0}\n'])
def test_damaged_metrics_are_refused(run: Path, content: str) -> None:
    (run / "train" / "1-general" / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"1-general/metrics\.jsonl"):
        write_report(run)


def test_curves_are_means_of_bins() -> None:
    rows = [{"step": i, "loss_action": float(i), "grad_norm": 1.0} for i in range(1200)]
    (curve,) = curves(rows)
    assert curve.name == "action"
    assert len(curve.values) == 120
    assert curve.values[0] == curve.steps[0] == 4.5


def test_loss_panels_take_the_colours_of_the_page_and_share_an_axis() -> None:
    high = curves([{"step": i, "loss_future": 8.0} for i in range(5)])
    low = curves([{"step": i, "loss_future": 0.1, "loss_action": 1.0} for i in range(5)])
    first, second = loss_panels([high, low])
    assert "var(--video)" in first
    assert "var(--action)" not in first
    assert "var(--action)" in second
    labels = [re.findall(r">([0-9.]+)</text>", panel) for panel in (first, second)]
    assert {"0.1", "1", "5"} <= set(labels[0]) & set(labels[1])
    assert loss_panels([high, low]) == [first, second]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_mask_is_drawn_from_the_table(table) -> None:
    figure = mask_figure(table, TOKENS)
    groups = [group for group in table.groups if group in TOKENS]
    assert figure.count('class="x"') == sum(key in table.sees[query] for query in groups for key in groups)
    assert [group for group in TOKENS if f">{group}</text>" in figure] == groups
    Reader(figure)


def test_a_change_of_the_table_changes_the_picture() -> None:
    def area(figure: str) -> float:
        path = re.search(r'class="may" d="([^"]*)"', figure)[1]
        cells = re.findall(r"M([\d.]+) [\d.]+H([\d.]+)v([\d.]+)", path)
        return sum((float(right) - float(left)) * float(height) for left, right, height in cells)

    extra = area(mask_figure(JOINT, TOKENS)) - area(mask_figure(ACTION_CENTERED, TOKENS))
    free = MASK_SIDE - 4 * LEAST_SIDE
    action, future = (LEAST_SIDE + free * TOKENS[group] / 89 for group in (Group.ACTION, Group.FUTURE))
    assert extra == pytest.approx(action * future, rel=0.2)


def test_numbers_read_as_a_person_writes_them() -> None:
    assert [percent(x) for x in (None, 0.0, 0.9333, 1.0)] == [NONE, "0%", "93.3%", "100%"]
    assert [duration(x) for x in (3.21, 59.7, 75.0)] == ["3.2 s", "1 min 00 s", "1 min 15 s"]
    assert [plain(x) for x in (None, True, [1, 2.50], "text")] == [NONE, "yes", "1, 2.5", "text"]
