"""Base class and number types of configuration sections."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Section(BaseModel):
    """A frozen section of the configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1, which in a YAML file is a mistake
        if isinstance(value, bool) and not _accepts_bool(cls.model_fields[info.field_name].annotation):
            raise ValueError("true and false are not allowed here")
        return value


def _accepts_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or isinstance(annotation, bool) or any(map(_accepts_bool, get_args(annotation)))


PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
AdamBeta = Annotated[float, Field(ge=0, lt=1)]
Url = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.:-]*://")]
