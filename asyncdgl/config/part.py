"""What every part of a configuration can do: it never changes, knows its keys, and is checked whenever it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from asyncdgl.config.messages import readable
from asyncdgl.errors import ConfigError


class Part(BaseModel):
    """A section of a configuration, or the whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise PydanticCustomError("int_type" if annotation is int else "float_type", "a number")
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
            is_section = isinstance(getattr(self, key, None), Part)
            tree[key] = {**tree[key], **value} if is_section and isinstance(value, Mapping) else value
        return type(self).checked(tree)
