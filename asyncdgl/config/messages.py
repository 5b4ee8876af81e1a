"""pydantic's errors as sentences, in the words of the file."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asyncdgl.errors import shown

FORM_TAGS = ("<name>", "<inline>")
"""Which of two forms a value has, a word or its content: pydantic puts the tag into the place that an error names."""

_NUMBER_KINDS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


MOST_EXPLAINED = 100
"""Problems that are put into words; the rest are only named."""


def readable(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """What pydantic found wrong with a ``model``, a line each, in the words of the file."""
    found = error.errors(include_url=False)
    lines = [line for details in found[:MOST_EXPLAINED] for line in _lines_of(details, model)]
    return lines + [f"{_place(details)} is wrong" for details in found[MOST_EXPLAINED:]]


def _place(details: ErrorDetails) -> str:
    """The dotted key."""
    path = [part for part in details["loc"] if part not in FORM_TAGS]
    where = ".".join(part if isinstance(part, str) and len(part) <= 60 else shown(part) for part in path)
    return where or "the configuration"


def _lines_of(details: ErrorDetails, model: type[BaseModel]) -> list[str]:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = [part for part in details["loc"] if part not in FORM_TAGS]
    where = _place(details)
    if kind == "asyncdgl":
        return list(context["problems"])
    if kind == "part":
        return [f"{where} {context['problem']}"]
    if kind == "nul":
        return [f"{where} must hold no NUL character, got {shown(value)}"]
    if kind == "extra_forbidden":
        *sections, last = path
        return [f"{where}: unknown key{_suggestion(last if isinstance(last, str) else shown(last), sections, model)}"]
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in str(context["expected"]).replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(value[:80] if isinstance(value, str) else shown(value), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return [f"{where} must be one of {', '.join(choices)}; got {shown(value)}{hint}"]
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        number = f"{bound:g}" if bound < 1e6 else f"{bound:,}".replace(",", " ") if bound < 1e12 else str(bound)
        return [f"{where} must be {words} {number}, got {shown(value) if isinstance(value, int) else _plain(value)}"]
    if kind in _NUMBER_KINDS:
        return [f"{where} must be {_NUMBER_KINDS[kind]}, got {shown(value)}"]
    if kind == "missing":
        return [f"{where} is missing"]
    if kind == "string_pattern_mismatch":
        return [
            f"{where} may hold letters, digits and . _ + - only, and begins with a letter or digit; got {shown(value)}"
        ]
    message = details["msg"].removeprefix("Value error, ")
    return [f"{where}: {message[0].lower()}{message[1:]}, got {shown(value)}"]


def _plain(value: Any) -> str:
    """A number as it was written."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(model: type[BaseModel], sections: Collection[Any]) -> list[str]:
    for section in sections:
        if str(section).isdigit():  # of an item of a list, or of a stage
            continue
        field = model.model_fields.get(str(section))
        below = None if field is None else _model_in(field.annotation)
        if below is None:
            return []
        model = below
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The part that a value of this type is or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for kind in get_args(annotation) if (found := _model_in(kind)) is not None), None)


def _suggestion(word: str, sections: Collection[Any], model: type[BaseModel]) -> str:
    """What an unknown key may have meant. Outside all sections that is any key, or one under another name of it."""
    known = _keys(model, sections)
    others = {} if sections else other_names(model)
    near = difflib.get_close_matches(word[:80].replace("-", "_"), [*known, *others], n=1)
    if near:
        return f"; did you mean {others.get(near[0], near[0])}?"
    return f"; known keys: {', '.join(known)}" if known and len(known) < 14 else ""


@cache
def other_names(model: type[BaseModel]) -> dict[str, str]:
    """What people call the keys of sections: without its section, with both joined, as its flag or label says."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        below = field.annotation
        if not (isinstance(below, type) and issubclass(below, BaseModel)):
            continue
        for key, inner in below.model_fields.items():
            also = [getattr(item, what, None) for item in inner.metadata for what in ("flag", "label")]
            for other in (f"{name}_{key}", key, *(text for text in also if isinstance(text, str))):
                found.setdefault(other.lstrip("-").replace("-", "_").replace(" ", "_"), f"{name}.{key}")
    return {other: key for other, key in found.items() if other not in model.model_fields}
