"""Everything an operator can choose, read once from the environment (``TRAINHEALTH_…``)."""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

MIB = 1024 * 1024


class PolicyMode(StrEnum):
    """What the monitor does about a run that has diverged."""

    OFF = "off"
    SUGGEST = "suggest"
    ACT = "act"


class HealthConfig(BaseModel):
    """When a run counts as lost, stalled, diverged, recovering or suspect."""

    lost_after_s: float = Field(45.0, gt=0, description="Nothing heard for this long: lost, seconds.")
    stalled_after_s: float = Field(
        120.0, gt=0, description="Heard, but no new step for this long: stalled, seconds."
    )
    stalled_after_step_times: float = Field(
        20.0, gt=0, description="A slow run stalls only after this many of its own step times."
    )
    diverged_after_steps: int = Field(
        5, ge=1, description="So many non-finite losses in a row of applied steps: diverged."
    )
    recovering_for_steps: int = Field(20, ge=0, description="Steps after a rollback until it is over.")
    suspect_for_steps: int = Field(50, ge=0, description="Steps after an error finding until it is closed.")


class PolicyConfig(BaseModel):
    """What follows from a diverged run, and how often at most."""

    policy: PolicyMode = Field(PolicyMode.SUGGEST, description="off, suggest (in words) or act (order).")
    policy_cooldown_s: float = Field(600.0, ge=0, description="Pause between own rollback orders, seconds.")
    policy_budget: int = Field(3, ge=0, description="Own rollback orders for one run at most.")


class Settings(BaseSettings, HealthConfig, PolicyConfig):
    """The monitor's settings; tests pass values, everything else comes from the environment."""

    model_config = SettingsConfigDict(env_prefix="TRAINHEALTH_", frozen=True)

    database_url: str = Field("sqlite:///trainhealth.db", description="SQLAlchemy URL of the database.")
    host: str = "127.0.0.1"
    port: int = Field(8321, ge=0, le=65_535)
    max_body_bytes: int = Field(8 * MIB, ge=1024, description="A request as it travels.")
    max_unpacked_bytes: int = Field(32 * MIB, ge=1024, description="The same after gzip.")
    max_hold_s: float = Field(
        10.0, ge=0, le=30, description="A reply waits this long for a command at most, seconds."
    )
    watchdog_interval_s: float = Field(2.0, gt=0, description="Pause between looks at silent runs, seconds.")
    command_poll_s: float = Field(
        0.1, gt=0, description="Pause between looks for commands that another process ordered, seconds."
    )
    write_queue: int = Field(1024, ge=1, description="Requests that may wait for the writer; then 503.")
    metrics_max_runs: int = Field(500, ge=0, description="Runs with series of their own in /metrics.")
    metrics_linger_s: float = Field(
        900.0, ge=0, description="A run leaves /metrics this long after its end, seconds."
    )

    @model_validator(mode="after")
    def _database_is_a_file_or_a_server(self) -> Self:
        try:
            url = make_url(self.database_url)
        except ArgumentError as error:
            raise ValueError(f"database_url {self.database_url!r} is no URL: {error}") from error
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise ValueError(
                "an SQLite database in memory is lost and not shared; name a file: sqlite:///x.db"
            )
        return self
