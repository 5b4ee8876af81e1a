"""Configurations from YAML files, ``--set`` and flags; every problem as one readable line; YAML out."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from asyncdgl.config.defaults import Tree, merged
from asyncdgl.config.effect import without_effect
from asyncdgl.config.model import RunConfig
from asyncdgl.errors import ConfigError, shown

MOST_BYTES = 256 * 1024
"""Of a file: some thousand stages fit, and it is read within seconds."""

MOST_TEXT = 200
"""Characters of a parser's own message."""


def parse_config(tree: Mapping[str, Any], given: Collection[str] = ()) -> RunConfig:
    """A checked configuration.

    Args:
        tree: nested settings; what is missing takes its default.
        given: dotted keys that the user typed on the command line: they must have an effect on this run.

    Raises:
        ConfigError: with every problem found.
    """
    tree = _with_profile_file(tree)
    config = RunConfig.checked(tree)
    problems = without_effect(config, tree, given)
    if problems:
        raise ConfigError(problems)
    return config


def load_yaml(path: Path, what: str = "config file") -> Tree:
    """The mapping in a YAML 1.2 file. Loads data only: tags that would make objects are refused.

    Raises:
        ConfigError: the file is missing, too large, broken, has a key twice, or holds no mapping.
    """
    name = str(path) if len(str(path)) <= 200 else shown(str(path))
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise ConfigError(f"{what} {name}: not a regular file: write its content into one")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{what} {name}: larger than {MOST_BYTES // 1024} KB: that is no {what}")
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{what} {name}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {name}: not a text file in UTF-8") from None
    except ValueError:
        raise ConfigError(f"{what} {shown(name)}: a file's name can't hold a NUL character") from None
    value = parse_yaml(text, f"{what} {name}")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{what} {name}: expected a mapping of keys to values, got {_kind(value)}")
    return value


def parse_yaml(text: str, where: str) -> Any:
    """One YAML value as plain Python data; ``where`` starts the error message."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{where}: {str(error.problem)[:MOST_TEXT]}, line {_line(error)}") from None
    except YAMLError as error:
        parts = (getattr(error, "context", None), getattr(error, "problem", None))
        problem = ", ".join(part for part in parts if part) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {problem[:MOST_TEXT]}, line {_line(error)}") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error)[:MOST_TEXT]}") from None
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
        raise ConfigError(f"--set {text[:MOST_TEXT]}: expected KEY=VALUE, for example buffer.size=30")
    return key.strip(), parse_yaml(value, f"--set {key.strip()}")


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML that ``parse_config`` reads back to an equal one."""
    return dump_tree(config.model_dump(mode="json"))


def dump_tree(tree: Mapping[str, Any]) -> str:
    """Plain data as YAML, in its order."""
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keep the order of the fields
    yaml.dump(tree, out)
    return out.getvalue()


def _with_profile_file(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A delay profile in a file becomes part of the configuration, so that the run's config says everything."""
    delays = tree.get("delays")
    profile = delays.get("profile") if isinstance(delays, Mapping) else None
    if not isinstance(profile, str) or not profile.endswith((".yaml", ".yml")):
        return tree
    content = load_yaml(Path(profile), "delay profile")
    if not content:
        raise ConfigError(
            f"delay profile {profile}: the file is empty (`asyncdgl profiles wan` prints one to start from; "
            "for no delay leave --delay-profile away)"
        )
    return merged(tree, {"delays": {"profile": {"name": Path(profile).stem, **content}}})


def _kind(value: Any) -> str:
    kinds = {"list": "a list", "str": "a text", "int": "a number", "float": "a number", "bool": "true or false"}
    return kinds.get(type(value).__name__, type(value).__name__)


def _line(error: Exception) -> int | str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return mark.line + 1 if mark is not None else "unknown"
