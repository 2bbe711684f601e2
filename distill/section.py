"""What every section of a recipe is: frozen, strict, and closed to keys it does not know."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section: frozen, unknown keys refused, values not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
