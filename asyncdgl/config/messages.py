"""pydantic's errors as sentences, in the words of the file."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asyncdgl.config.model import FORM_TAGS, DelaysConfig, RunConfig
from asyncdgl.delays.profiles import DelayProfile, LinkDelay, StageDelay

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


def readable(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """What pydantic found wrong with a ``model``, a line each, in the words of the file."""
    lines: list[str] = []
    for details in error.errors():
        lines.extend(_lines_of(details, model))
    return lines


def _lines_of(details: ErrorDetails, model: type[BaseModel]) -> list[str]:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = [part for part in details["loc"] if part not in FORM_TAGS]
    where = ".".join(str(part) for part in path) or "the configuration"
    if kind == "asyncdgl":
        return list(context["problems"])
    if kind == "extra_forbidden":
        *sections, last = path
        return [f"{where}: unknown key{_section_of(path) or _suggestion(str(last), _keys(model, sections))}"]
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in str(context["expected"]).replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return [f"{where} must be one of {', '.join(choices)}; got {value!r}{hint}"]
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return [
            f"{where} must be {words} {bound:g}, got {value}"
            if bound < 1e6
            else f"{where} must be {words} {bound}, got {value}"
        ]
    if kind in _NUMBER_KINDS:
        return [f"{where} must be {_NUMBER_KINDS[kind]}, got {_shown(value)}"]
    if kind == "part":
        return [f"{where} {context['problem']}"]
    if kind == "missing":
        return [f"{where} is missing"]
    if kind == "string_pattern_mismatch":
        return [f"{where} may hold letters, digits and . _ + - only, and begins with a letter or digit; got {value!r}"]
    message = details["msg"].removeprefix("Value error, ")
    return [f"{where}: {message[0].lower()}{message[1:]}, got {_shown(value)}"]


def _section_of(path: list[Any]) -> str:
    """For a key without its section: where it belongs."""
    for name, field in RunConfig.model_fields.items():
        part = field.annotation
        if len(path) == 1 and isinstance(part, type) and issubclass(part, BaseModel) and path[0] in part.model_fields:
            return f"; did you mean {name}.{path[0]}?"
    return ""


def _keys(model: type[BaseModel], sections: Collection[Any]) -> list[str]:
    for section in sections:
        if model is DelaysConfig and section == "profile":
            model = DelayProfile
            continue
        if str(section).isdigit():
            continue
        if model is DelayProfile and section in ("stages", "links"):
            model = StageDelay if section == "stages" else LinkDelay
            continue
        field = model.model_fields.get(str(section))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        parts = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not parts:
            return []
        model = parts[0]
    return list(model.model_fields)


def _suggestion(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known keys: {', '.join(known)}" if known and word not in known and len(known) < 14 else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
