"""Reports: the numbers of the files they are about, nothing that a browser would fetch, every way that a run ends."""

from __future__ import annotations

import base64
import csv
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asyncdgl.errors import DataError
from asyncdgl.report import write as report_module
from asyncdgl.report.figures import draw_figures
from asyncdgl.report.write import FORMATS, check_all, write_reports
from asyncdgl.rundir.environment import describe_environment
from asyncdgl.rundir.reader import read_run
from asyncdgl.rundir.records import Environment
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.writer import RunWriter
from asyncdgl.sweeps.execution import FAILED, RunStore
from asyncdgl.sweeps.grid import plan_sweep
from asyncdgl.sweeps.results import load_sweep, write_index

EVIL = "</pre><script>alert('x')</script> ``` <img src=http://example.org/x.png>"


class Page(HTMLParser):
    """What a browser finds in a report: tags with their attributes, tables as rows of cells, all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._in_cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._in_cell = tag in ("td", "th")

    def handle_endtag(self, tag) -> None:
        self._in_cell = False

    def handle_data(self, data) -> None:
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    @property
    def images(self) -> list[str]:
        return [str(attrs["src"]) for tag, attrs in self.tags if tag == "img"]


def report(folder: Path) -> Page:
    """Write the report of one folder and read it back."""
    [path] = list(write_reports([folder]))
    return Page(path)


@pytest.fixture
def write_run(simulate):
    """``write_run(path, config, status, error)``: the directory of a real run; without summary if status is None."""

    def write(path: Path, config, status: str | None = "completed", error: str | None = None) -> Path:
        path.mkdir(parents=True)
        done = simulate(config)
        writer = RunWriter(path)
        writer.write_config(done.config)
        environment = describe_environment(done.config, "abc", 2).model_dump()
        environment |= {"packages": {"torch": "9.8.7"}, "command": f"asyncdgl {EVIL}"}
        writer.write_environment(Environment.model_validate(environment))
        writer.passed(done.trace)
        for line in [*done.recorder.epochs, *done.recorder.evaluations]:
            (writer.epoch_completed if line.kind == "epoch" else writer.evaluated)(line)
        if status is not None:
            writer.write_summary(make_summary(done.config, writer, done.outcome, status, error, 1.5))
        writer.close()
        return path

    return write


@pytest.fixture
def make_run(write_run, small_config, tmp_path):
    """``make_run(status, error, ...)``: a run on the digits."""
    return lambda status="completed", error=None, **over: write_run(
        tmp_path / "run", small_config(**over), status, error
    )


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Reports without figures, for tests that look at the rest: drawing takes a second."""
    monkeypatch.setattr(report_module, "draw_figures", lambda run, formats: [])
    monkeypatch.setattr(report_module, "save_sweep_figure", lambda results: [])


# --- One run ----------------------------------------------------------------------------------------------------------


def test_what_died_has_a_table(make_run, undrawn) -> None:
    path = make_run()
    page = report(path)
    assert "Faults" not in page.text
    summary = json.loads((path / "summary.json").read_text())
    died = {"process": "stage 2", "at_s": 3.25, "again_s": 5.5, "passes_again": 7, "lost_passes": 0}
    for_good = {"process": EVIL, "at_s": 8.0, "again_s": None, "passes_again": 0, "lost_passes": 2}
    (path / "summary.json").write_text(json.dumps({**summary, "faults": [died, for_good]}))
    page = report(path)
    table = next(table for table in page.tables if "died at (s)" in table[0])
    assert table[1:] == [["stage 2", "3.2", "5.5", "7", "0"], [EVIL, "8.0", "-", "0", "2"]]


def test_the_numbers_are_those_of_the_summary(make_run, undrawn) -> None:
    path = make_run(delays={"profile": "slow_stage2"})
    page = report(path)
    summary = json.loads((path / "summary.json").read_text())
    stages, ages, buffers, evaluations, hashes = page.tables
    assert [row[:6] for row in stages[-3:]] == [
        [
            *(str(s[key]) for key in ("stage", "updates", "forward_passes", "epochs")),
            f"{s['test_accuracy']:.4f}",
            f"{s['busy_fraction']:.1%}",
        ]
        for s in summary["stages"]
    ]
    parts = [[s[name] for name in ("staleness", "batch_age", "times_sampled")] for s in summary["stages"][1:]]
    shown = [[float(cell) for cell in row[2:]] for row in ages[2:]]
    assert [row[1] for row in ages[2:]] == [f"{s['batches_unseen']:.1%}" for s in summary["stages"][1:]]
    assert shown == [
        pytest.approx([d[part] for d in row for part in ("mean", "p50", "p95", "max")], abs=0.005) for row in parts
    ]
    assert buffers[1:] == [
        [f"{value:.2f}" if isinstance(value, float) else str(value) for value in buffer.values()]
        for buffer in summary["buffers"]
    ]
    assert evaluations[-1][2:] == [
        *(f"{s['test_accuracy']:.4f}" for s in summary["stages"]),
        f"{summary['ensemble_test_accuracy']:.4f}",
    ]
    assert [row[1] for row in hashes[1:]] == [s["state_sha256"] for s in summary["stages"]]
    for number in (f"{summary['test_accuracy']:.4f}", f"{summary['ensemble_test_accuracy']:.4f}", "torch 9.8.7"):
        assert number in page.text
    with (path / "stages.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test_accuracy"]) for row in rows] == [s["test_accuracy"] for s in summary["stages"]]
    assert [row["staleness_p95"] for row in rows] == ["", *(str(s["staleness"]["p95"]) for s in summary["stages"][1:])]


def test_a_page_needs_nothing_else_and_figures_are_the_same_each_time(make_run) -> None:
    path = make_run()
    page = report(path)
    assert len(page.images) == 3
    for image in page.images:
        head, data = image.split(",", 1)
        assert head == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "a"}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onerror", "background"} & attributes.keys()
    source = (path / "report.html").read_text()
    assert "url(" not in source
    assert "@import" not in source
    drawn = {
        f"{name}.{form}" for name in ("learning_curves", "timeline", "staleness") for form in ("pdf", "svg", "png")
    }
    figures = {file.name: file.read_bytes() for file in (path / "figures").iterdir()}
    assert figures.keys() == drawn
    assert not list(path.rglob("*.part"))
    draw_figures(read_run(path), FORMATS)
    assert {file.name: file.read_bytes() for file in (path / "figures").iterdir()} == figures


def test_what_others_wrote_is_inert(make_run, undrawn) -> None:
    path = make_run("failed", error=EVIL)
    (path / "logs").mkdir()
    (path / "logs" / "stage-2.log").write_text(EVIL)
    page = report(path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("example.org" in image for image in page.images)
    assert page.text.count(EVIL) == 3  # the error, the log, the command line
    words = (path / "report.md").read_text()
    assert "````" in words
    assert "<script>" not in words.replace(f"````\n{EVIL}\n````", "")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("completed", "completed"),
        ("failed", "Error: stage 2 died"),
        ("diverged", "diverged: a loss was not finite"),
        ("interrupted", "stopped by Ctrl-C"),
        ("terminated", "stopped by SIGTERM"),
        (None, "There is no summary.json: the run was killed, or still goes on."),
    ],
)
def test_the_end_of_a_run_is_said_plainly(make_run, undrawn, status, words) -> None:
    path = make_run(status, error="stage 2 died" if status == "failed" else None)
    page = report(path)
    assert words in page.text
    assert words in (path / "report.md").read_text()
    warned = any(attributes.get("class") == "warning" for _, attributes in page.tags)
    assert warned == (status != "completed")


def test_a_killed_run_is_counted_from_its_trace(make_run, undrawn) -> None:
    path = make_run(None)
    lines = (path / "trace.jsonl").read_text().splitlines(keepends=True)[:20]
    (path / "trace.jsonl").write_text("".join(lines) + '{"stage": 1, "inc')
    (path / "metrics.jsonl").unlink()
    records = [json.loads(line) for line in lines]
    stages = report(path).tables[0]
    present = sorted({r["stage"] for r in records})
    assert [row[:2] for row in stages[-len(present) :]] == [
        [str(j), str(sum(r["stage"] == j and r["kind"] == "train" for r in records))] for j in present
    ]


@pytest.mark.parametrize("left", ["nothing", "forward passes", "stage 1"])
def test_a_run_that_hardly_began(make_run, left, monkeypatch) -> None:
    monkeypatch.setattr(report_module, "FORMATS", ("svg",))
    path = make_run(None)
    (path / "environment.json").unlink()
    (path / "metrics.jsonl").unlink()
    records = [json.loads(line) for line in (path / "trace.jsonl").read_text().splitlines()]
    kept = {
        "nothing": [],
        "forward passes": [{**r, "kind": "forward", "loss": None} for r in records[:3]],
        "stage 1": [r for r in records if r["stage"] == 1][:1],
    }[left]
    (path / "trace.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    page = report(path)
    assert ("No stage made a pass." in page.text) == (left == "nothing")
    assert len(page.images) >= (1 if left == "nothing" else 2)


def test_stages_that_trained_one_after_the_other(make_run, undrawn) -> None:
    path = make_run(algorithm="sequential-dgl")
    evaluations = next(table for table in report(path).tables if "training stage" in table[1])
    assert [row[0] for row in evaluations[2:]] == ["1", "1", "2", "2", "3", "3"]


# --- A sweep ----------------------------------------------------------------------------------------------------------

SWEEP = """\
# Does <b>M</b> matter?
config: {runtime: sim, stages: 2, epochs: 1, batch_size: 256, threads: 1, model: {blocks: 2, width: 2, downsample: [2]}}
grid: {buffer.size: [1, 5]}
seeds: 3
also:
  - grid: {algorithm: [sync-dgl]}
    seeds: 1
"""


@pytest.fixture
def make_sweep(write_run, tmp_path):
    """``make_sweep(missing)``: a sweep whose runs are there, but the last ones."""

    def make(missing: int = 0, text: str = SWEEP) -> Path:
        folder = tmp_path / "sweep"
        folder.mkdir()
        (folder / "sweep.yaml").write_text(text)
        sweep = plan_sweep(folder / "sweep.yaml")
        store = RunStore(folder / "runs")
        write_index(sweep, folder, store)
        for run in sweep.distinct[: len(sweep.distinct) - missing]:
            write_run(store.run_dir(run.key), run.config)
        return folder

    return make


def test_the_interval_is_students(make_sweep) -> None:
    from scipy import stats

    folder = make_sweep()
    page = report(folder)
    accuracies = [run.summary.test_accuracy for run in load_sweep(folder).runs if run.values["buffer.size"] == 5]
    assert len(accuracies) == 3
    low, high = stats.t.interval(0.95, 2, stats.tmean(accuracies), stats.sem(accuracies))
    [row] = [row for row in page.tables[0] if row[0] == "5"]
    assert (row[1], row[-1]) == ("async-dgl", "3")
    mean, half = (float(part) for part in row[2].split("\u00a0±\u00a0"))
    assert mean == pytest.approx(stats.tmean(accuracies), abs=0.005)
    assert half == pytest.approx((high - low) / 2, rel=0.05)
    assert {path.name for path in folder.iterdir()} >= {"table.md", "table.csv", "table.tex", "runs.csv", "report.md"}
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["sweep.pdf", "sweep.png", "sweep.svg"]
    assert [image.partition(",")[0] for image in page.images] == ["data:image/svg+xml;base64"]
    assert "Does <b>M</b> matter?" in page.text
    assert "b" not in {tag for tag, _ in page.tags}


def test_settings_and_paired_differences_are_in_the_report(make_sweep, undrawn) -> None:
    folder = make_sweep(text=SWEEP + "reference: {buffer.size: 5}\n")
    page = report(folder)
    words = (folder / "report.md").read_text()
    assert "- batch_size: 256" in words  # what all runs share, as the file says it
    assert "- model.width: 2" in words
    assert "less reference: test accuracy less that with buffer.size = 5, seed by seed" in page.text
    heading = page.tables[0][0]
    assert heading[2:4] == ["test accuracy (last head)", "less reference"]
    difference = load_sweep(folder).points[0].difference
    assert page.tables[0][1][3].startswith(f"{difference.mean:.2f}"[:4])


def test_diverged_runs_are_counted_in_the_report(make_sweep, undrawn) -> None:
    folder = make_sweep()
    run = load_sweep(folder).runs[0]
    summary = run.summary.model_copy(update={"status": "diverged"})
    (run.path / "summary.json").write_text(summary.model_dump_json())
    page = report(folder)
    assert [row[-1] for row in page.tables[0] if row[0] == "1"] == ["2 of 3 (1 diverged)"]
    assert "a mean is over the seeds that did not" in page.text


def test_a_broken_summary_of_a_sweeps_run_is_named_and_the_rest_shown(make_sweep, undrawn) -> None:
    folder = make_sweep()
    broken = load_sweep(folder).runs[0]
    (broken.path / "summary.json").write_text('{"status": "comp')
    page = report(folder)
    assert "1 of 7 runs are missing" in page.text
    [row] = page.tables[-1][1:]
    assert row[:3] == ["1", "async-dgl", "0"]
    assert row[3].startswith(f"broken, the same sweep makes it again: {broken.path / 'summary.json'}: not a summary")


def test_a_report_whose_figures_cannot_be_drawn_says_so(make_run, monkeypatch) -> None:
    def fail(*arguments: object) -> list[Path]:
        raise RuntimeError("no font")

    monkeypatch.setattr(report_module, "draw_figures", fail)
    page = report(make_run())
    assert "The figures can't be drawn: RuntimeError: no font" in page.text
    assert page.images == []
    assert page.tables


def test_missing_and_failed_runs_are_named(make_sweep, undrawn) -> None:
    folder = make_sweep(missing=2)
    failed = load_sweep(folder).runs[-1]
    kept = failed.path.parent / FAILED / failed.key
    kept.mkdir(parents=True)
    (kept / "output.log").write_text(f"start\n{EVIL}\n")
    page = report(folder)
    assert "2 of 7 runs are missing" in page.text
    assert [(row[0], row[-1]) for row in page.tables[0][1:]] == [("1", "3"), ("5", "2 of 3")]
    missing = page.tables[-1][1:]
    assert missing == [
        ["5", "async-dgl", "2", "not made yet"],
        ["-", "sync-dgl", "0", f"failed: {EVIL} (runs: failed/{failed.key})"],
    ]


def test_a_sweep_without_a_finished_run(make_sweep) -> None:
    page = report(make_sweep(missing=7))
    assert "No run is finished." in page.text
    assert page.images == []


def test_environments_that_differ_are_told_apart(make_sweep, undrawn) -> None:
    folder = make_sweep()
    page = report(folder)
    assert "The runs differ" not in page.text
    path = next((folder / "runs").glob("*/environment.json"))
    path.write_text(path.read_text().replace("9.8.7", "9.8.8"))
    page = report(folder)
    assert "The runs differ in: torch." in page.text
    assert "9.8.8 (1 run); 9.8.7 (6 runs)" in page.text or "9.8.7 (6 runs); 9.8.8 (1 run)" in page.text


# --- Broken files -----------------------------------------------------------------------------------------------------

BROKEN = ['{"a": [1', "[]", "\udcff", '{"kind": "evaluation"}', '{"status": 1}']


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["summary.json", "trace.jsonl", "metrics.jsonl", "config.yaml"])
def test_a_broken_file_of_a_run_is_named(tmp_path, small_config, name, content) -> None:
    writer = RunWriter(tmp_path)
    writer.write_config(small_config())
    writer.close()
    (tmp_path / name).write_text(content + "\n", errors="surrogateescape")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as error:
        check_all([tmp_path])
    assert str(error.value).startswith(str(tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content", [*BROKEN, '{"runs_in": "r", "name": "a", "columns": 1, "runs": [], "figure": null}']
)
def test_a_broken_index_of_a_sweep_is_named(tmp_path, content) -> None:
    (tmp_path / "sweep.json").write_text(content, errors="surrogateescape")
    with pytest.raises(DataError) as error:
        check_all([tmp_path])
    assert str(error.value).startswith(str(tmp_path / "sweep.json"))


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_run_of_a_sweep_is_a_missing_one(tmp_path, content) -> None:
    run = {"values": {}, "seed": 0, "key": "abc"}
    index = {"name": "a", "runs_in": "runs", "set": [], "columns": [], "reference": None, "figure": None, "runs": [run]}
    (tmp_path / "sweep.json").write_text(json.dumps(index))
    broken = tmp_path / "runs" / "abc" / "summary.json"
    broken.parent.mkdir(parents=True)
    broken.write_text(content, errors="surrogateescape")
    check_all([tmp_path])
    [result] = load_sweep(tmp_path).runs
    assert result.summary is None
    assert result.broken.startswith(str(broken))
