"""A report as data: sections of facts, tables, figures and code; and the same as HTML and as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from asyncdgl.report.style import COLUMN

LARGEST_VECTOR = 1_500_000
"""Bytes of an SVG that a browser still draws at once; of a larger one the report holds the PNG."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Column:
    """Of a table: numbers stand right, words left; columns of one group share a heading."""

    name: str
    group: str = ""
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, and rows of cells."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings of groups, and how many columns each spans; none where no column has a group."""
        spans = [(name, len(list(columns))) for name, columns in groupby(self.columns, lambda column: column.group)]
        return spans if any(name for name, _ in spans) else []


@dataclass(frozen=True)
class Picture:
    """A figure that lies beside the report, as SVG and PNG under one name."""

    kind: ClassVar[str] = "picture"
    folder: Path
    name: str
    title: str
    caption: str

    @property
    def inches(self) -> float:
        """How wide it was drawn for print."""
        with (self.folder / f"{self.name}.svg").open(encoding="utf-8") as file:
            found = re.search(r'width="([\d.]+)pt"', file.read(4000))
        return float(found[1]) / 72 if found else COLUMN

    @property
    def data_uri(self) -> str:
        """The image itself, for a page that needs no other file."""
        vector, raster = (self.folder / f"{self.name}.{form}" for form in ("svg", "png"))
        path, mime = (vector, "svg+xml") if vector.stat().st_size <= LARGEST_VECTOR else (raster, "png")
        return f"data:image/{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Code:
    """Text to copy, line by line."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


Block = Text | Facts | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title, subtitle: of the page.
        status: in a few words.
        well: whether that is what one hopes for.
        notes: what a reader must know first.
        headline: the main numbers.
        sections: the rest.
    """

    title: str
    subtitle: str
    status: str
    well: bool
    notes: Sequence[Text] = ()
    headline: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default=())


def document_html(document: Document) -> str:
    """One page with everything in it: no script, and nothing that a browser would have to fetch."""
    from jinja2 import Environment, StrictUndefined

    template = files("asyncdgl.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(document=document)


def document_markdown(document: Document) -> str:
    """The same for a repository or a notebook; figures are named, relative to the report."""
    parts = [f"# {_plain(document.title)}", f"{_plain(document.subtitle)}. **{_plain(document.status)}.**"]
    parts += [_block(note) for note in document.notes]
    if document.headline:
        parts.append(_block(Facts(document.headline)))
    for section in document.sections:
        parts += [f"## {_plain(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"**{_plain(block.text)}**" if block.warning else _plain(block.text)
    if isinstance(block, Facts):
        return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in block.rows)
    if isinstance(block, Table):
        names = [f"{column.group} {column.name}".strip() for column in block.columns]
        rules = [":--" if column.words else "--:" for column in block.columns]
        lines = [names, *block.rows]
        table = [f"| {' | '.join(map(_plain, line))} |" for line in lines]
        table.insert(1, f"| {' | '.join(rules)} |")
        return "\n".join(table) + (f"\n\n{_plain(block.note)}" if block.note else "")
    if isinstance(block, Picture):
        return f"![{_plain(block.title)}](figures/{block.name}.png)\n\n{_plain(block.caption)}"
    fence = "```"
    while fence in block.text:
        fence += "`"
    title = f"{_plain(block.title)}\n\n" if block.title else ""
    return f"{title}{fence}\n{block.text.rstrip()}\n{fence}"


def _plain(text: str) -> str:
    """Text that Markdown and the HTML in it leave as it is."""
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), ("\\", "\\\\"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        text = text.replace(sign, written)
    return " ".join(text.replace("*", "\\*").split())
