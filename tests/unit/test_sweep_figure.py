"""The figure of a sweep: means, intervals and baselines where they belong, and axes that say what they show."""

from __future__ import annotations

import math

import pytest

from asyncdgl.errors import ConfigError
from asyncdgl.report.series import choose_figure
from asyncdgl.report.style import our_style
from asyncdgl.report.sweep_figure import draw_sweep, save_sweep_figure
from asyncdgl.sweeps.grid import FigureConfig
from asyncdgl.sweeps.measures import Estimate, estimate
from asyncdgl.sweeps.results import RunResult, SweepResults


@pytest.fixture
def results_of(tmp_path, summary_of):
    """``results_of([(values, accuracies), ...], figure)``: results of a sweep, made by hand."""

    def make(points, figure: FigureConfig | None = None, name: str = "made") -> SweepResults:
        runs = []
        for values, accuracies in points:
            for seed, accuracy in enumerate(accuracies):
                if accuracy is None:
                    kept = None
                elif accuracy == DIVERGED:
                    kept = summary_of(status="diverged", test_accuracy=0.1)
                else:
                    kept = summary_of(test_accuracy=accuracy)
                runs.append(RunResult(values, seed, str(len(runs)), tmp_path, kept))
        return SweepResults(name, tmp_path, list(runs[0].values), figure, runs, [])

    return make


DIVERGED = -1.0


@pytest.fixture(autouse=True)
def style():
    with our_style():
        yield


def at(size, slowdown, algorithm="async-dgl"):
    return {"buffer.size": size, "delays.slowdown": slowdown, "algorithm": algorithm}


TWO_LINES = [
    (at(1, 1.0), [0.5, 0.6, 0.7]),
    (at(10, 1.0), [0.6, 0.7, 0.8]),
    (at(1, 2.0), [0.55, 0.6, 0.65]),
    (at(10, 2.0), [0.6, 0.65, 0.75]),
    (at(None, None, "sync-dgl"), [0.8, 0.82, 0.84]),
    (at(None, None, "backprop"), [0.9]),
]


def test_lines_bars_and_baselines(results_of) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_hex

    figure = draw_sweep(results_of(TWO_LINES, FigureConfig(x="buffer.size", log_x=True)))
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("buffer size M (mini-batches)", "test accuracy (last head)")
    assert axes.get_xscale() == "log"
    [first, second] = [container.lines for container in axes.containers]
    assert list(first[0].get_ydata()) == pytest.approx([0.6, 0.7])
    [bars] = [part for part in first[2] if isinstance(part, LineCollection)]
    expected = estimate([0.5, 0.6, 0.7])
    assert [y for _, y in bars.get_segments()[0]] == pytest.approx([expected.low, expected.high])
    assert all(one < other for one, other in zip(first[0].get_xdata(), second[0].get_xdata(), strict=True))
    assert first[0].get_xdata()[0] == pytest.approx(1, rel=0.1)
    level = [line for line in axes.lines if len(set(line.get_ydata())) == 1 and list(line.get_xdata()) == [0, 1]]
    assert [line.get_ydata()[0] for line in level] == pytest.approx([0.82, 0.9])
    [band] = axes.patches  # of a single seed there is none
    known = estimate([0.8, 0.82, 0.84])
    assert (band.get_y(), band.get_height()) == pytest.approx((known.low, known.high - known.low))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["S = 1", "S = 2", "synchronous DGL", "backpropagation"]
    colors = {to_hex(line[0].get_color()) for line in (first, second)}
    assert len(colors) == len({line[0].get_marker() for line in (first, second)}) == 2
    low, high = axes.get_ylim()
    assert 0 <= low < high <= 1


def test_points_stand_at_their_place_where_no_bar_is_hidden(results_of) -> None:
    apart = [(at(1, 1.0), [0.5, 0.501]), (at(2, 1.0), [0.6, 0.601]), (at(1, 2.0), [0.7, 0.701]), (at(2, 2.0), [0.9])]
    [axes] = draw_sweep(results_of(apart, FigureConfig(x="buffer.size"))).axes
    assert [list(container.lines[0].get_xdata()) for container in axes.containers] == [[1, 2], [1, 2]]


def test_one_seed_has_no_bar(results_of) -> None:
    figure = draw_sweep(results_of([(at(1, 1.0), [0.5]), (at(2, 1.0), [0.6])]))
    [container] = figure.axes[0].containers
    assert list(container.lines[0].get_ydata()) == [0.5, 0.6]
    [bars] = container.lines[2]
    assert all(math.isnan(y) for segment in bars.get_segments() for _, y in segment)
    assert estimate([0.5]) == Estimate(0.5, None, None, None, 1)


def test_words_stand_side_by_side(results_of) -> None:
    points = [({"delays.profile": name}, [0.5, 0.6]) for name in ("none", "wan", "lossy")]
    [axes] = draw_sweep(results_of(points)).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "wan", "lossy"]
    assert axes.containers[0].lines[0].get_linestyle() == "None"


def test_the_axis_keeps_a_place_for_missing_runs(results_of) -> None:
    [axes] = draw_sweep(results_of([(at(1, 1.0), [0.5, None]), (at(9, 1.0), [None])])).axes
    assert axes.get_xlim()[1] > 9
    assert list(axes.containers[0].lines[0].get_xdata()) == [1]


def test_nothing_to_draw(results_of) -> None:
    assert save_sweep_figure(results_of([({}, [0.5, 0.6])])) == []
    assert save_sweep_figure(results_of([(at(1, 1.0), [None])])) == []


def test_names_are_files_in_the_folder_and_labels_are_words_with_equal_bytes_each_time(results_of, tmp_path) -> None:
    odd = FigureConfig(x="buffer.size", x_label="$\\frac{$ <M>")
    paths = save_sweep_figure(results_of(TWO_LINES, odd, name="../<a>"))
    assert [path.parent for path in paths] == [tmp_path / "figures"] * 3
    before = [path.read_bytes() for path in paths]
    assert before == [path.read_bytes() for path in save_sweep_figure(results_of(TWO_LINES, odd, name="../<a>"))]


def test_few_seeds_are_shown_each(results_of) -> None:
    seeds = [0.5, 0.6, 0.7]
    many = [0.5, 0.51, 0.52, 0.53, 0.54]
    [axes] = draw_sweep(results_of([(at(1, 1.0), seeds), (at(2, 1.0), many), (at(3, 1.0), [0.9])])).axes
    dots = [tuple(map(float, offset)) for part in axes.collections for offset in part.get_offsets() if len(offset)]
    assert [dot for dot in dots if dot[0] == 1.0] == [(1.0, value) for value in seeds]
    assert len([dot for dot in dots if dot[0] == 2.0 and dot[1] in many]) == 0


def test_a_point_with_a_diverged_seed_is_hollow(results_of) -> None:
    [axes] = draw_sweep(results_of([(at(1, 1.0), [0.5, 0.6, DIVERGED]), (at(2, 1.0), [0.6, 0.7, 0.8])])).axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[1]]
    assert list(axes.containers[0].lines[0].get_ydata()) == pytest.approx([0.55, 0.7])


@pytest.mark.parametrize(
    ("sizes", "log_x", "scale"),
    [([1, 10], None, "log"), ([1, 9], None, "linear"), ([0, 10], None, "linear"), ([1, 10], False, "linear")],
)
def test_the_axis_is_logarithmic_where_its_values_span_a_decade(results_of, sizes, log_x, scale) -> None:
    found = results_of([(at(size, 1.0), [0.5, 0.6]) for size in sizes], FigureConfig(x="buffer.size", log_x=log_x))
    assert draw_sweep(found).axes[0].get_xscale() == scale


def test_facets_are_panels_with_one_vertical_axis(results_of) -> None:
    chosen = FigureConfig(x="buffer.size", facets="delays.slowdown", title="A title", size=(6, 2))
    figure = draw_sweep(results_of(TWO_LINES, chosen))
    assert [axes.get_title() for axes in figure.axes] == ["S = 1", "S = 2"]
    assert [list(axes.containers[0].lines[0].get_ydata()) for axes in figure.axes] == [
        pytest.approx([0.6, 0.7]),
        pytest.approx([0.6, 2 / 3]),
    ]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert figure.get_suptitle() == "A title"
    assert tuple(figure.get_size_inches()) == (6, 2)
    level = [[line for line in axes.lines if list(line.get_xdata()) == [0, 1]] for axes in figure.axes]
    assert [len(lines) for lines in level] == [2, 2]  # baselines stand in every panel


@pytest.mark.parametrize(("size", "width"), [("column", 3.5), ("page", 7.0), (None, 3.5)])
def test_sizes_are_those_of_print(results_of, size, width) -> None:
    found = results_of([(at(1, 1.0), [0.5]), (at(2, 1.0), [0.6])], FigureConfig(x="buffer.size", size=size))
    assert draw_sweep(found).get_size_inches()[0] == width


VALUES = [{"model.aux": "mlp", "buffer.size": 1, "epochs": 3}, {"model.aux": "cnn", "buffer.size": 5, "epochs": 3}]


def test_the_first_number_is_the_axis_by_default() -> None:
    assert choose_figure(None, VALUES).x == "buffer.size"
    assert choose_figure(None, [{"model.aux": "mlp"}, {"model.aux": "cnn"}]).x == "model.aux"
    assert choose_figure(None, [{}]) is None


@pytest.mark.parametrize(
    ("figure", "problem"),
    [
        ({"x": "buffer.sizes"}, "no key that differs between the runs: choose one of model.aux, buffer.size, epochs"),
        ({"x": "model.aux", "log_x": True}, "model.aux has values without a logarithm"),
        ({"x": "buffer.size", "y": "accuracy"}, "figure.y must be one of test_accuracy"),
        ({"x": "buffer.size", "facets": "buffer.sizes"}, "figure.facets: buffer.sizes is no key that differs"),
        ({"x": "buffer.size", "facets": "buffer.size"}, "figure.facets must be another key than figure.x"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(figure, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        choose_figure(FigureConfig(**figure), VALUES)
