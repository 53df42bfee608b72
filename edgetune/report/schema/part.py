"""What all parts of a report share: frozen, strict types, finite numbers, more keys kept."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


def having(*names: str) -> AfterValidator:
    """The keys that a mapping must have unless it is empty."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in names if value and name not in value]
        if missing:
            msg = f"{', '.join(missing)} missing"
            raise ValueError(msg)
        return value

    return AfterValidator(check)


class Part(BaseModel):
    """The settings that all parts share: frozen, strict types, finite numbers, more keys."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class Interval(Part):
    """An estimate with its bounds."""

    value: float
    low: float
    high: float
