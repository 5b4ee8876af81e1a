"""Figures of runs: files that show something, with labelled axes, for every kind of run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asyncdgl.report.figures import (
    COMPUTING,
    WAITING,
    draw_figures,
    draw_learning_curves,
    draw_staleness,
    draw_timeline,
)
from asyncdgl.report.style import COLUMN, line_style, our_style
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.records import EpochLine, Fault
from asyncdgl.rundir.trace import WAIT_REASONS, batches_unseen
from asyncdgl.rundir.writer import RunWriter

KINDS = {
    "async": {"delays": {"profile": "slow_stage2"}},
    "one-stage": {"stages": 1},
    "backprop": {"algorithm": "backprop"},
}
FILES = {
    "async": ["learning_curves.png", "timeline.png", "staleness.png"],
    "one-stage": ["learning_curves.png", "timeline.png"],
    "backprop": ["learning_curves.png", "timeline.png"],
}


@pytest.fixture(autouse=True)
def style():
    with our_style():
        yield


@pytest.fixture(scope="module")
def run_of(simulate, small_config, tmp_path_factory):
    """``run_of(kind)``: a run directory, written by a simulation once and read back."""
    runs: dict[str, Run] = {}

    def make(kind: str) -> Run:
        if kind not in runs:
            done = simulate(small_config(name=kind, **KINDS[kind]))
            writer = RunWriter(tmp_path_factory.mktemp(kind))
            writer.write_config(done.config)
            writer.passed(done.trace)
            for line in [*done.recorder.epochs, *done.recorder.evaluations]:
                (writer.epoch_completed if line.kind == "epoch" else writer.evaluated)(line)
            writer.close()
            runs[kind] = read_run(writer.path)
        return runs[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_all_figures_are_drawn(run_of, kind) -> None:
    run = run_of(kind)
    drawn = draw_figures(run)
    assert [path.name for path in drawn] == FILES[kind]
    assert sorted(path.name for path in (run.path / "figures").iterdir()) == sorted(FILES[kind])
    for path in drawn:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert (pixels < 250).mean() > 0.005, "nothing but background"


@pytest.mark.parametrize("kind", KINDS)
def test_learning_curves(run_of, kind) -> None:
    run = run_of(kind)
    figure = draw_learning_curves(run)
    loss, accuracy = figure.axes
    stages = run.config.trained_stages
    names = [f"stage {j}" for j in range(1, stages + 1)]
    assert [line.get_label() for line in loss.lines] == names
    heads = names + (["ensemble"] if stages > 1 else [])
    assert [line.get_label() for line in accuracy.lines] == heads
    assert [text.get_text() for text in figure.legends[0].get_texts()] == heads
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("own epochs of the stage", "training loss")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epochs of the slowest stage", "test accuracy")
    assert figure.get_suptitle() == ""  # a caption says more than the name of a run
    assert figure.get_size_inches()[0] == COLUMN
    for j, line in enumerate(loss.lines, 1):
        own = [(e.epoch, e.loss) for e in run.epochs if e.stage == j]
        assert list(zip(*line.get_data(), strict=True)) == own
        assert len(own) == run.config.epochs
    last = run.evaluations[-1].test_accuracy
    assert tuple(line.get_ydata()[-1] for line in accuracy.lines)[:stages] == last


def test_validation_accuracies_have_a_panel_of_their_own(hand_made, evaluation_of) -> None:
    held_out = {"validation_accuracy": (0.1, 0.2, 0.3), "validation_ensemble_accuracy": (0.1, 0.2, 0.4)}
    figure = draw_learning_curves(hand_made([], [evaluation_of([0.5, 0.6, 0.7], **held_out)]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "test accuracy", "validation accuracy"]
    assert [list(line.get_ydata()) for line in figure.axes[2].lines] == [[0.1], [0.2], [0.3], [0.4]]


@pytest.mark.parametrize(("losses", "scale"), [((2.0, 0.2), "log"), ((2.0, 0.3), "linear")])
def test_the_loss_is_logarithmic_where_it_spans_a_decade(hand_made, losses, scale) -> None:
    values = {"updates": 1, "accuracy": None, "lr": 0.1, "end_s": 1.0}
    lines = [EpochLine(stage=1, epoch=n, loss=loss, **values) for n, loss in enumerate(losses, 1)]
    assert draw_learning_curves(hand_made([], lines)).axes[0].get_yscale() == scale


def test_every_line_has_a_look_of_its_own() -> None:
    looks = [line_style(n) for n in range(16)]
    assert len({tuple(look.values()) for look in looks}) == 16
    assert len({(look["marker"], look["linestyle"]) for look in looks[:8]}) == 8  # without any colour


@pytest.mark.parametrize("kind", KINDS)
def test_the_timeline_names_every_stage_and_color(run_of, kind) -> None:
    run = run_of(kind)
    figure = draw_timeline(run)
    shares, window = figure.axes
    names = [f"stage {j}" for j in range(1, run.config.trained_stages + 1)]
    for axes in (shares, window):
        assert [label.get_text() for label in axes.get_yticklabels()] == names
        assert axes.get_xlabel()
        assert axes.patches
    assert "an update" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.get_size_inches()[0] == COLUMN


@pytest.mark.parametrize(
    ("tree", "blank"),
    [({}, "other stages' turns"), ({"runtime": "virtual"}, "stopped"), ({"runtime": "ray"}, "messages")],
)
def test_the_rest_of_the_time_is_called_by_what_it_is(hand_made, record, tree, blank) -> None:
    shares, _ = draw_timeline(hand_made([record(1, 0, 1.0)], **tree)).axes
    assert shares.get_xlabel() == f"share of the training time (blank: {blank})"


def test_what_stages_train_on_names_every_reader(run_of) -> None:
    run = run_of("async")
    figure = draw_staleness(run)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        *("staleness (updates)", "batch age (batches)", "times an entry was given", "batches never seen (%)"),
    ]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "3"]
        assert axes.get_ylim()[0] == 0
    heights = [bar.get_height() for bar in figure.axes[3].patches]
    assert heights == pytest.approx([100 * batches_unseen(run.passes[j]) for j in (2, 3)])


# --- The user's own settings of matplotlib ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"MPLBACKEND": "module://no_such_package.backend"},
        {"MPLBACKEND": "no such backend"},
        {"MATPLOTLIBRC": "font.size: 40\nlines.linewidth: 9\nbackend: TkAgg\nfigure.facecolor: red\n"},
    ],
    ids=["another-backend", "no-backend", "matplotlibrc"],
)
def test_a_figure_is_the_same_whatever_the_users_settings(run_of, tmp_path, settings) -> None:
    """In processes of their own: matplotlib reads its settings once."""
    run = run_of("one-stage")
    (tmp_path / "matplotlibrc").write_text(settings.get("MATPLOTLIBRC", ""))
    given = {**settings, **({"MATPLOTLIBRC": str(tmp_path)} if "MATPLOTLIBRC" in settings else {})}
    code = (
        "import hashlib, sys, pathlib\n"
        "from asyncdgl.report.figures import draw_figures\n"
        "from asyncdgl.rundir.reader import read_run\n"
        "paths = draw_figures(read_run(pathlib.Path(sys.argv[1])))\n"
        "print([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])\n"
    )
    said = []
    for over in ({}, given):
        environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "MATPLOTLIBRC")} | over
        done = subprocess.run(
            [sys.executable, "-c", code, str(run.path)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]


def test_the_users_settings_are_left_as_they_were(run_of) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 33}):
        before = dict(matplotlib.rcParams)
        draw_figures(run_of("one-stage"))
        assert dict(matplotlib.rcParams) == before


# --- Hand-made traces -------------------------------------------------------------------------------------------------


@pytest.fixture
def hand_made(tmp_path, small_config):
    """``hand_made(trace, lines)``: a run that holds just these."""

    def make(trace, lines=(), **over) -> Run:
        return Run(Path(tmp_path), small_config(**over), None, None, lines, trace)

    return make


def shares_of(axes) -> dict[tuple[float, str], float]:
    """Widths of the bars by (stage, color)."""
    from matplotlib.colors import to_hex

    bars = axes.patches
    return {
        (bar.get_y() + bar.get_height() / 2, to_hex(bar.get_facecolor()).upper()): bar.get_width()
        for bar in bars
        if bar.get_height() == pytest.approx(0.7)
    }


def test_the_timeline_shows_shares_of_computing_and_of_every_wait(hand_made, record) -> None:
    waits = dict.fromkeys(WAIT_REASONS, 0.25)
    trace = [
        record(1, 0, 1.0, start_s=0.0),
        record(1, 1, 10.0, start_s=9.0, kind="forward", loss=None),
        record(2, 0, 6.0, start_s=3.0, waits=waits),
    ]
    figure = draw_timeline(hand_made(trace))
    expected = {(1, COMPUTING["train"]): 0.1, (1, COMPUTING["forward"]): 0.1, (2, COMPUTING["train"]): 0.3}
    expected |= {(2, WAITING[reason]): 0.025 for reason in WAIT_REASONS}
    assert shares_of(figure.axes[0]) == pytest.approx(expected)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {
        *("an update", "a forward-only pass"),
        *(f"waits: {reason.replace('_', ' ')}" for reason in WAIT_REASONS),
    }


def test_the_timeline_marks_what_died_until_it_worked_again(hand_made, record, summary_of) -> None:
    run = hand_made([record(1, n, n + 1.0) for n in range(10)] + [record(2, n, n + 1.0) for n in range(10)])
    buffer, first = Fault(process="buffer 1", at_s=1.0, again_s=2.5), Fault(process="stage 2", at_s=3.0, again_s=5.0)
    run.summary = summary_of(faults=(buffer, first, Fault(process="stage 2", at_s=8.0)))
    figure = draw_timeline(run)
    _, faults, _ = figure.axes
    assert [label.get_text() for label in faults.get_yticklabels()] == ["stage 2", "buffer 1"]
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_x() + bar.get_width()) for bar in faults.patches]
    assert bars == [(0.0, 3.0, 5.0), (0.0, 8.0, 10.0), (1.0, 1.0, 2.5)]  # the last one was never replaced
    assert [list(line.get_xdata()) for line in faults.lines] == [[3.0, 8.0], [1.0]]
    assert faults.get_xlabel() == "faults: seconds since training began"
    assert "a process had died" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_every_reason_to_wait_has_a_color_of_its_own() -> None:
    assert list(WAITING) == list(WAIT_REASONS)
    assert len({*WAITING.values(), *COMPUTING.values()}) == len(WAITING) + len(COMPUTING)


def test_the_window_lies_where_all_stages_train(hand_made, record) -> None:
    trace = [record(1, n, n + 1.0) for n in range(500)]
    trace += [record(2, n, 100 + 2.0 * n) for n in range(100)]
    left, right = draw_timeline(hand_made(trace)).axes[1].get_xlim()
    assert 100 <= left < right <= 300
    assert right - left == pytest.approx(25, rel=0.05)  # passes of the faster stage, of a second each


def test_stages_that_trained_one_after_the_other_have_a_window_too(hand_made, record) -> None:
    trace = [record(1, n, n + 1.0) for n in range(5)] + [record(2, n, n + 10.0) for n in range(5)]
    left, right = draw_timeline(hand_made(trace)).axes[1].get_xlim()
    assert 0 <= left < right <= 14


def test_a_run_without_a_pass_has_empty_learning_curves_only(hand_made) -> None:
    run = hand_made([])
    assert [path.name for path in draw_figures(run)] == ["learning_curves.png"]


def test_a_reader_that_never_trained_has_an_empty_box(hand_made, record) -> None:
    trace = [record(1, 0, 1.0), record(2, 0, 2.0, kind="forward", loss=None)]
    figure = draw_staleness(hand_made(trace))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2"]


def test_no_figure_is_left_in_pyplot(run_of) -> None:
    draw_learning_curves(run_of("one-stage"))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
