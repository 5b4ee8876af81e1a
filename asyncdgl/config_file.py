"""Configurations from YAML files, ``--set`` and flags; every problem as one readable line; YAML out."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asyncdgl.config import FORM_TAGS, DelaysConfig, RunConfig
from asyncdgl.defaults import PIXELS, Tree, merged
from asyncdgl.delays.profile import DelayProfile, LinkDelay, StageDelay, is_slow_stage
from asyncdgl.errors import ConfigError


def parse_config(tree: Mapping[str, Any], given: Collection[str] = ()) -> RunConfig:
    """A checked configuration.

    Args:
        tree: nested settings; what is missing takes its default.
        given: dotted keys that the user typed on the command line: they must have an effect on this run.

    Raises:
        ConfigError: with every problem found.
    """
    tree = _with_profile_file(tree)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(readable(error, RunConfig)) from None
    problems = _without_effect(config, tree, given)
    if problems:
        raise ConfigError(problems)
    return config


def load_yaml(path: Path, what: str = "config file") -> Tree:
    """The mapping in a YAML 1.2 file. Loads data only: tags that would make objects are refused.

    Raises:
        ConfigError: the file is missing, broken, has a key twice, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path}: not a text file in UTF-8") from None
    value = parse_yaml(text, f"{what} {path}")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{what} {path}: expected a mapping of keys to values, got {_kind(value)}")
    return value


def parse_yaml(text: str, where: str) -> Any:
    """One YAML value as plain Python data; ``where`` starts the error message."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{where}: {error.problem}, line {_line(error)}") from None
    except YAMLError as error:
        parts = (getattr(error, "context", None), getattr(error, "problem", None))
        problem = ", ".join(part for part in parts if part) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {problem}, line {_line(error)}") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None
    return value


def set_key(tree: Tree, dotted: str, value: Any) -> None:
    """Put ``value`` at ``a.b`` of a nested tree, making sections on the way.

    Raises:
        ConfigError: a part of the key holds a value, not a section.
    """
    *sections, last = dotted.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{dotted}: {section} is a value, not a section")
        tree = below
    tree[last] = value


def parse_assignment(text: str) -> tuple[str, Any]:
    """``a.b=value`` of ``--set``, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, for example buffer.size=30")
    return key.strip(), parse_yaml(value, f"--set {key.strip()}")


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML that ``parse_config`` reads back to an equal one."""
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keep the order of the fields
    yaml.dump(config.model_dump(mode="json"), out)
    return out.getvalue()


def _with_profile_file(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A delay profile in a file becomes part of the configuration, so that the run's config says everything."""
    delays = tree.get("delays")
    profile = delays.get("profile") if isinstance(delays, Mapping) else None
    if not isinstance(profile, str) or not profile.endswith((".yaml", ".yml")):
        return tree
    content = load_yaml(Path(profile), "delay profile")
    return merged(tree, {"delays": {"profile": {"name": Path(profile).stem, **content}}})


# --- Settings without effect ------------------------------------------------------------------------------------------


def _asynchronous(config: RunConfig) -> bool:
    return config.algorithm == "async-dgl" and config.stages > 1


_APPLIES: dict[str, tuple[Callable[[RunConfig], bool], str]] = {
    "pace": (lambda c: c.runtime != "sim", "to --runtime ray or virtual"),
    "buffer.size": (
        lambda c: _asynchronous(c) or (c.algorithm == "sync-dgl" and c.runtime == "ray" and c.stages > 1),
        "to runs with replay buffers: at least two stages, --algorithm async-dgl or sync-dgl with --runtime ray",
    ),
    "buffer.codec": (lambda c: c.algorithm != "backprop" and c.stages > 1, "to at least two stages, not to backprop"),
    "buffer.prefetch": (
        lambda c: c.runtime != "sim" and c.stages > 1,
        "to --runtime ray or virtual with at least two stages",
    ),
    **{
        f"buffer.{key}": (_asynchronous, "to --algorithm async-dgl with at least two stages")
        for key in ("sampler", "max_reuse", "on_full", "min_size", "max_age")
    },
    "delays.profile": (
        lambda c: c.algorithm == "async-dgl" or c.runtime == "ray",
        "to --algorithm async-dgl or --runtime ray",
    ),
    "delays.slowdown": (
        lambda c: isinstance(c.delays.profile, str) and is_slow_stage(c.delays.profile),
        "to the delay profiles slow_stage<N>",
    ),
    "model.aux": (
        lambda c: (c.algorithm != "backprop" and c.stages > 1) or c.model.head == "aux",
        "to at least two stages, not to backprop; or with model.head aux",
    ),
    "model.balance": (lambda c: c.stages > 1 and c.has_tensors, "to at least two stages that compute"),
    "virtual.step_times": (lambda c: c.runtime == "virtual", "to --runtime virtual"),
    "virtual.train": (lambda c: c.runtime == "virtual", "to --runtime virtual"),
    "virtual.batches": (lambda c: not c.has_tensors, "to --runtime virtual with virtual.train false"),
    **{f"ray.{key}": (lambda c: c.runtime == "ray", "to --runtime ray") for key in ("address", "threads")},
    "data.data_dir": (lambda c: c.data.dataset not in ("digits", "synthetic"), "to data sets that are read from files"),
    "data.image_size": (lambda c: c.data.dataset not in PIXELS, "to the data sets image-folder and synthetic"),
}


def applies(config: RunConfig, key: str) -> bool:
    """Whether a key has an effect on this run."""
    return key not in _APPLIES or _APPLIES[key][0](config)


def _without_effect(config: RunConfig, tree: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Settings that this run would silently ignore: typed ones always, those of a file where they differ."""
    dataset = config.data.dataset
    data = {"dataset": dataset, "data_dir": config.data.data_dir or "." if dataset == "image-folder" else None}
    neutral = RunConfig.model_validate({"data": data, "runtime": config.runtime})
    found = []
    for key, (_, where) in _APPLIES.items():
        if applies(config, key):
            continue
        in_file = lookup(tree, key, None) is not None and _get(config, key) != _get(neutral, key)
        # The image size of a data set that has only one is checked against that one, not against the default.
        if key in given or (in_file and key != "data.image_size"):
            found.append(f"{key} has no effect here: it applies {where}")
    return found


def lookup(tree: Any, dotted: str, default: Any) -> Any:
    """The value at ``a.b`` of nested mappings."""
    for part in dotted.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return tree


def _get(config: BaseModel, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


# --- Readable messages ------------------------------------------------------------------------------------------------

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


def _kind(value: Any) -> str:
    kinds = {"list": "a list", "str": "a text", "int": "a number", "float": "a number", "bool": "true or false"}
    return kinds.get(type(value).__name__, type(value).__name__)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(error: Exception) -> int | str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return mark.line + 1 if mark is not None else "unknown"
