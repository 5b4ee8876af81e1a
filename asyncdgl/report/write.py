"""`asyncdgl report`: a page, a Markdown file, a table and figures beside what they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from asyncdgl.errors import DataError
from asyncdgl.report.document import Document, Text, document_html, document_markdown
from asyncdgl.report.figures import draw_figures
from asyncdgl.report.run_page import run_document
from asyncdgl.report.subjects import read_subject
from asyncdgl.report.sweep_figure import FORMATS, save_sweep_figure
from asyncdgl.report.sweep_page import sweep_document
from asyncdgl.report.tables import stages_csv
from asyncdgl.rundir.reader import Run
from asyncdgl.sweeps.results import SweepResults
from asyncdgl.sweeps.tables import write_tables

PAGE, NOTES, STAGES = "report.html", "report.md", "stages.csv"


def check_all(folders: Sequence[Path]) -> None:
    """Read every folder before the first report is written.

    Raises:
        DataError: one of them holds neither a run nor a sweep, or a broken one.
    """
    for folder in folders:
        read_subject(folder)  # and let go of it: the traces of many runs together may not fit into memory


def write_reports(folders: Sequence[Path]) -> Iterator[Path]:
    """Write the report of each folder into it; yields the path of each page.

    Raises:
        DataError: as ``check_all``, or a report can't be written.
    """
    for folder in folders:
        try:
            yield _write(read_subject(folder))
        except OSError as error:
            raise DataError(f"{folder}: the report can't be written: {error.strerror or error}") from None


def _write(subject: Run | SweepResults) -> Path:
    if isinstance(subject, SweepResults):
        write_tables(subject)
        figures, notes = _drawn(lambda: save_sweep_figure(subject))
        document = sweep_document(subject, bool(figures), notes)
    else:
        figures, notes = _drawn(lambda: draw_figures(subject, FORMATS))
        document = run_document(subject, figures, notes)
        _replace(subject.path / STAGES, stages_csv(subject))
    return _write_document(document, subject.path)


def _drawn(draw: Callable[[], list[Path]]) -> tuple[list[Path], list[Text]]:
    """The figures, or what went wrong: the numbers are worth a report without them."""
    try:
        return draw(), []
    except Exception as error:  # whatever a drawing library or a font comes up with
        return [], [Text(f"The figures can't be drawn: {type(error).__name__}: {error}", warning=True)]


def _write_document(document: Document, folder: Path) -> Path:
    _replace(folder / NOTES, document_markdown(document))
    return _replace(folder / PAGE, document_html(document))


def _replace(path: Path, text: str) -> Path:
    """Whole or not at all: a browser never meets half a page."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    return part.replace(path)
