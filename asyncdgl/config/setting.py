"""A key of the configuration: all that is said of it stands once, in its field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from asyncdgl import registry
from asyncdgl.config.messages import FORM_TAGS, readable
from asyncdgl.errors import ConfigError


class Where(NamedTuple):
    """Where a key has an effect: in words that follow "it applies", and as a question about a run."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """What is said of a key beside its type, default, bounds and description.

    Attributes:
        flag: of the command line.
        label: what a figure calls it.
        symbol: the paper's letter for it.
        unit: of its values.
        where: where it has an effect: where all of these hold.
        decided: every run decides it and writes it down, whether it has an effect there or not.
        bits: whether it can decide what a run computes.
    """

    flag: str | None = None
    label: str | None = None
    symbol: str | None = None
    unit: str | None = None
    where: tuple[Where, ...] = ()
    decided: bool = False
    bits: bool = True


def setting(
    default: Any,
    description: str,
    *,
    flag: str | None = None,
    label: str | None = None,
    symbol: str | None = None,
    unit: str | None = None,
    where: tuple[Where, ...] = (),
    decided: bool = False,
    bits: bool = True,
    **bounds: Any,
) -> Any:
    """The field of a key. The arguments are those of `Setting`; ``bounds`` are pydantic's."""
    field = Field(default=default, description=description, **bounds)
    field.metadata.append(Setting(flag, label, symbol, unit, where, decided, bits))
    return field


def word_or_content(value: Any) -> str:
    """Which of two forms a value has: see `FORM_TAGS`."""
    return FORM_TAGS[0] if isinstance(value, str) else FORM_TAGS[1]


@dataclass(frozen=True)
class Named:
    """The type of a key that names a part: a registered word of this kind, or `package.module:attribute`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        words = list(registry.choices(self.kind))
        return {"type": "string", "anyOf": [{"enum": words}, {"pattern": f"^{registry.PATH.pattern}$"}]}

    def _checked(self, name: Any) -> str:
        try:
            registry.check(self.kind, name)
        except ConfigError as error:
            raise PydanticCustomError("part", "{problem}", {"problem": str(error)}) from None
        return str(name)


class Section(BaseModel):
    """What holds keys: a section of a configuration, or the whole. It never changes, and is checked when it is made."""

    # Validators are built when the first one is needed: help needs none.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    title: ClassVar[str] = ""
    """What help and documents call it."""

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise PydanticCustomError("int_type" if annotation is int else "float_type", "a number")
        if isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("nul", "no NUL character")
        return value

    @classmethod
    def checked(cls, tree: Any) -> Self:
        """One from nested plain data.

        Raises:
            ConfigError: with every problem found.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(readable(error, cls)) from None

    def replace(self, **changes: Any) -> Self:
        """The same with other values, checked as a whole.

        Args:
            changes: values by key; those of a section stand in a mapping of its own: ``replace(model={"cut": (2,)})``.

        Raises:
            ConfigError: the result would be wrong.
        """
        tree = self.model_dump()
        for key, value in changes.items():
            is_section = isinstance(getattr(self, key, None), Section)
            tree[key] = {**tree[key], **value} if is_section and isinstance(value, Mapping) else value
        return type(self).checked(tree)


class Key(NamedTuple):
    """A key of a configuration.

    Attributes:
        name: dotted, as `--set` takes it.
        section: the class that holds it.
        field: its type, default and description.
        setting: all else.
    """

    name: str
    section: type[Section]
    field: FieldInfo
    setting: Setting

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, where these are known."""
        return _words(self.field.annotation, self.field.metadata)

    @property
    def label(self) -> str:
        """What a figure calls it: words, symbol and unit."""
        words = self.setting.label or self.name.rpartition(".")[2].replace("_", " ")
        unit = f"({self.setting.unit})" if self.setting.unit else None
        return " ".join(part for part in (words, self.setting.symbol, unit) if part)


@cache
def keys(model: type[Section]) -> dict[str, Key]:
    """All keys of a configuration by their dotted names, in the order of the file."""
    found: dict[str, Key] = {}
    for name, field in model.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, Section):
            found |= {f"{name}.{key}": value._replace(name=f"{name}.{key}") for key, value in keys(below).items()}
        else:
            found[name] = Key(name, model, field, _setting_of(model, name))
    return found


def applies(config: Section, key: str) -> bool:
    """Whether a key has an effect on this run."""
    return obstacle(config, key) is None


def obstacle(config: Section, key: str) -> str | None:
    """Where a key applies, in words, if that is not here."""
    known = keys(type(config)).get(key)
    return next((place.words for place in known.setting.where if not place.holds(config)), None) if known else None


def value_of(config: Any, dotted: str) -> Any:
    """The value of a key."""
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def _setting_of(model: type[BaseModel], name: str) -> Setting:
    """What stands in the field, or in the one that it narrows."""
    for parent in model.__mro__:
        field = parent.model_fields.get(name) if issubclass(parent, BaseModel) and parent is not BaseModel else None
        for item in field.metadata if field is not None else ():
            if isinstance(item, Setting):
                return item
    return Setting()


def _words(annotation: Any, metadata: Any = ()) -> tuple[str, ...]:
    for item in metadata:
        if isinstance(item, Named):
            return registry.choices(item.kind)
    if annotation is bool:
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return tuple(word for word in get_args(annotation) if isinstance(word, str))
    return tuple(dict.fromkeys(word for kind in get_args(annotation) for word in _words(kind)))
