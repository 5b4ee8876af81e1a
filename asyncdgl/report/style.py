"""How all figures look: sizes of print, colours and markers that everybody can tell apart, none of the user's settings.

Figures are matplotlib's own objects, not pyplot's state: nothing is shown, and nothing stays behind.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.5, 7.0
"""Widths in inches of one column and of a page of most journals."""

DPI = 300
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito: told apart by every kind of colour vision."""

MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")

_SETTINGS: dict[str, Any] = {
    "font.size": 8,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "hatch.linewidth": 0.4,
    "text.parse_math": False,  # a name with dollar signs is a name
    "svg.hashsalt": "asyncdgl",  # equal bytes each time
    "pdf.fonttype": 42,  # text that other programs can edit
}


@contextlib.contextmanager
def our_style() -> Iterator[None]:
    """Within it, figures are drawn and written as matplotlib ships, with our settings over that.

    A matplotlibrc or MPLBACKEND of the user's changes nothing, and is left as it was.
    """
    matplotlib = _import_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _import_matplotlib() -> Any:
    """Matplotlib reads the user's settings when it is imported, and fails where they name what is not installed."""
    if "matplotlib" not in sys.modules:
        given = os.environ.get("MPLBACKEND")
        os.environ["MPLBACKEND"] = "agg"
        try:
            import matplotlib
        finally:
            if given is None:
                del os.environ["MPLBACKEND"]
            else:
                os.environ["MPLBACKEND"] = given
    import matplotlib

    return matplotlib


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the so-manieth line, from 0: no two of the first 28 look alike, in grey neither."""
    turn = number // len(COLORS)
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[turn % len(DASHES)],
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def spans_a_decade(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows more than a linear one."""
    return bool(values) and min(values) > 0 and max(values) >= 10 * min(values)


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Write a figure in each format, whole or not at all; returns the paths. Call it within ``our_style``."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in formats]
    for form, path in zip(formats, paths, strict=True):
        part = folder / f".{path.name}.part"
        figure.savefig(part, format=form, dpi=DPI, metadata=undated.get(form))
        part.replace(path)
    return paths
