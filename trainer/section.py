"""The base of every config section: frozen, strict about unknown keys, and finite."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Part of a run's configuration, declared beside the code that reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
