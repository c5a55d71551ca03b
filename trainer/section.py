"""The base of every config section: frozen, and strict about unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Part of a run's configuration, declared beside the code that reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
