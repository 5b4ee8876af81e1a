"""What can be said of all keys from their fields alone: the JSON schema, and docs/configuration.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from asyncdgl import registry
from asyncdgl.config.defaults import lookup
from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import Key, Named, keys
from asyncdgl.delays.laws import Law
from asyncdgl.delays.profiles import DelayProfile, LinkDelay, Pause, StageDelay

SCHEMA = "https://json-schema.org/draft/2020-12/schema"

INTRODUCTION = """\
<!-- Made by `asyncdgl schema --markdown > docs/configuration.md`; a test compares it. -->

# Configuration

Every key of a run, for `--config FILE` (YAML), `--set KEY=VALUE`, and where it has one its flag. A flag beats `--set`,
which beats the file, which beats the default. Defaults are those of the digits; where another data set has one of its
own it stands beside it. A setting that has no effect on a run is an error that says where it applies.
`asyncdgl run --dry-run` prints the whole configuration of a run; every run keeps it in its `config.yaml`, with all that
was decided.

A type `word` is a registered word, or a part of one's own as `package.module:attribute`.

## In an editor

`asyncdgl schema > asyncdgl.schema.json` writes a JSON schema. An editor with the YAML language server completes the
keys and checks the values of a file that begins with

```yaml
# yaml-language-server: $schema=asyncdgl.schema.json
```

## In a shell

One line switches completion on: commands, flags, the words that a flag takes, keys and values of `--set`, delay
profiles, files.

```bash
eval "$(_ASYNCDGL_COMPLETE=bash_source asyncdgl)"   # in ~/.bashrc
eval "$(_ASYNCDGL_COMPLETE=zsh_source asyncdgl)"    # in ~/.zshrc
_ASYNCDGL_COMPLETE=fish_source asyncdgl | source    # in ~/.config/fish/completions/asyncdgl.fish
```
"""

PROFILE = """\
A delay profile in a YAML file (`--delay-profile FILE.yaml`), or in place of its name. `asyncdgl profiles NAME` prints a
built-in one to start from.
"""

MODELS_OF_PROFILE: dict[str, type[BaseModel]] = {
    "The profile": DelayProfile,
    "A stage: `every_stage`, `stages.<j>`": StageDelay,
    "A pause of a stage: `pause`": Pause,
    "A link: `every_link`, `links.<j>`": LinkDelay,
    "A latency: `latency`": Law,
}


LARGE = {10**9: "10^9", 2**63: "2^63"}
"""Bounds as people write them."""


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file."""
    tree = _without_titles(RunConfig.model_json_schema())
    del tree["properties"]["name"]["default"]  # it is made from the settings
    for name, field in RunConfig.model_fields.items():
        if _is_model(field.annotation):  # defaults stand with the keys, not twice
            tree["properties"][name] = {"$ref": tree["properties"][name]["$ref"]}
    return {"$schema": SCHEMA, "title": "asyncdgl run", **tree}


def _without_titles(node: Any) -> Any:
    """Without pydantic's titles, which repeat the names of the keys."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _without_titles(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}


def markdown_of_keys() -> str:
    """docs/configuration.md."""
    groups: dict[str, list[Key]] = {}
    for key in keys(RunConfig).values():
        groups.setdefault(key.section.title, []).append(key)
    parts = [INTRODUCTION]
    defaults = {dataset: _defaults_of(dataset) for dataset in registry.choices("data")}
    for title, group in groups.items():
        rows = [
            [
                f"`{key.name}`",
                f"`{key.setting.flag}`" if key.setting.flag else "",
                str(key.field.description),
                _type(key.field.annotation, key.field.metadata),
                key.setting.unit or "",
                _default(key, defaults),
                "; ".join(place.words.removeprefix("to ") for place in key.setting.where) or "every run",
            ]
            for key in group
        ]
        heads = ["key", "flag", "what it is", "type", "unit", "default", "applies to"]
        parts.append(f"## {title}\n\n{_table(heads, rows)}")
    parts.append(f"## A delay profile\n\n{PROFILE}")
    for title, model in MODELS_OF_PROFILE.items():
        rows = [
            [
                f"`{name}`",
                str(field.description),
                _type(field.annotation, field.metadata),
                "required" if field.is_required() else _short(field.default),
            ]
            for name, field in model.model_fields.items()
        ]
        parts.append(f"{title}\n\n{_table(['key', 'what it is', 'type', 'default'], rows)}")
    return "\n".join(parts).rstrip("\n")


def _defaults_of(dataset: str) -> dict[str, Any]:
    """Of a run on this data set, as plain data."""
    folder = {"data_dir": "."} if dataset == "image-folder" else {}
    tree = RunConfig.model_validate({"data": {"dataset": dataset, **folder}}).model_dump(mode="json")
    tree["data"]["data_dir"] = None
    return tree


def _default(key: Key, defaults: dict[str, dict[str, Any]]) -> str:
    """Of the digits, and of the data sets that have another."""
    if key.name == "name":
        return "made from the settings"
    first, *others = (_short(lookup(tree, key.name, None)) for tree in defaults.values())
    if key.name == "data.dataset":
        return first
    groups: dict[str, list[str]] = {}
    for dataset, value in zip(list(defaults)[1:], others, strict=True):
        if value != first:
            groups.setdefault(value, []).append(dataset)
    return "; ".join([first, *(f"{', '.join(names)}: {value}" for value, names in groups.items())])


def _short(value: Any) -> str:
    """A value as one writes it in YAML."""
    if isinstance(value, BaseModel):
        return "as below"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`"


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, with its bounds or its choices."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0], [*_flat(inside[1:]), *metadata])
    named = next((item for item in metadata if isinstance(item, Named)), None)
    if named is not None:
        return f"word: {', '.join(f'`{word}`' for word in registry.choices(named.kind))}"
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in inside)
    if origin is tuple:
        return f"list of {_type(inside[0])}" if inside[-1] is Ellipsis else f"{len(inside)} of {_type(inside[0])}"
    if origin is dict or annotation is dict:
        return "mapping" if inside[1] is Any else f"mapping of number to {_type(inside[1])}"
    if inside:
        return " or ".join(_type(kind, () if kind is type(None) else metadata) for kind in inside)
    if annotation is type(None):
        return "null"
    if _is_model(annotation):
        model: type[BaseModel] = annotation
        return "as below" if model in MODELS_OF_PROFILE.values() else f"{{{', '.join(model.model_fields)}}}"
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return f"{words.get(annotation, 'value')}{_bounds(metadata)}"


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _bounds(metadata: Sequence[Any]) -> str:
    """What a number must be."""
    found: dict[str, str] = {}
    for item in metadata:
        for kind, words in ((Ge, "from"), (Gt, "above"), (Le, "to"), (Lt, "below")):
            if isinstance(item, kind):
                number = getattr(item, kind.__name__.lower())
                found[words] = LARGE.get(number) or f"{number:,}".replace(",", " ")
    return "".join(f" {words} {found[words]}" for words in ("from", "above", "to", "below") if words in found)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('<', '&lt;') for cell in line)} |" for line in lines) + "\n"
