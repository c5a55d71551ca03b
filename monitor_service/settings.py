"""Everything an operator can choose, read once from the environment (``TRAINHEALTH_…``).

Every setting may come from a file instead: ``TRAINHEALTH_DATABASE_URL_FILE`` names a file that holds the URL.
"""

import os
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

MIB = 1024 * 1024
MAX_S = 1e9
"""Of a duration: longer ones are beyond the calendar."""

PREFIX = "TRAINHEALTH_"
FROM_FILE = "_FILE"


class _Files(PydanticBaseSettingsSource):
    """Settings whose variable ends in ``_FILE``: the text of that file, without blanks at its ends."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        variables = {name.upper(): value for name, value in os.environ.items()}
        variable = f"{PREFIX}{field_name.upper()}"
        file = variables.get(f"{variable}{FROM_FILE}")
        if file is None:
            return None, field_name, False
        if variable in variables:
            raise SettingsError(f"{variable} and {variable}{FROM_FILE} are both set; keep one")
        try:
            return Path(file).read_text(encoding="utf-8").strip(), field_name, False
        except (OSError, ValueError) as error:
            raise SettingsError(f"{variable}{FROM_FILE}: {file!r} cannot be read: {error}") from error

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value is not None}


class FromEnvironment(BaseSettings):
    """Base of what is read from ``TRAINHEALTH_…`` and ``TRAINHEALTH_…_FILE``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _Files(settings_cls)

    @classmethod
    def variables(cls) -> list[str]:
        """The names of all variables that are read here."""
        plain = [f"{PREFIX}{name.upper()}" for name in cls.model_fields]
        return [*plain, *(f"{name}{FROM_FILE}" for name in plain)]


class ClientSettings(FromEnvironment):
    """What the commands that ask a running monitor need to know."""

    url: str = Field("", description="The monitor's address; empty: from host and port.")
    token: str = Field("", repr=False, description="The secret of an access token.")
    ca_file: Path | None = Field(None, description="Certificates to trust besides the system's, PEM.")


class Durability(StrEnum):
    """What an answer of 2xx outlives: the end of the process, or that of the machine as well."""

    NORMAL = "normal"
    FULL = "full"


class PolicyMode(StrEnum):
    """What the monitor does about a run that has diverged."""

    OFF = "off"
    SUGGEST = "suggest"
    ACT = "act"


class HealthConfig(BaseModel):
    """When a run counts as lost, stalled, diverged, recovering or suspect."""

    lost_after_s: float = Field(
        45.0, gt=0, le=MAX_S, description="Nothing heard for this long: lost, seconds."
    )
    stalled_after_s: float = Field(
        120.0, ge=0, le=MAX_S, description="Heard, but no new step for this long: stalled, seconds. 0: never."
    )
    stalled_after_step_times: float = Field(
        20.0, gt=0, description="A slow run stalls only after this many of its own step times."
    )
    diverged_after_steps: int = Field(
        5, ge=0, description="So many non-finite losses in a row of applied steps: diverged. 0: never."
    )
    recovering_for_steps: int = Field(20, ge=0, description="Steps after a rollback until it is over.")
    suspect_for_steps: int = Field(50, ge=0, description="Steps after an error finding until it is closed.")


class RuleConfig(BaseModel):
    """What the monitor looks out for in every run by itself. A limit of 0 switches its rule off."""

    loss_risen_factor: float = Field(
        2.0, ge=0, description="The smoothed loss is this many times its low of the attempt: risen."
    )
    loss_risen_for_s: float = Field(
        300.0, ge=0, le=MAX_S, description="And stays there for so long, seconds."
    )
    loss_diverged_factor: float = Field(10.0, ge=0, description="The same, and the run counts as diverged.")
    loss_diverged_for_s: float = Field(
        60.0, ge=0, le=MAX_S, description="And stays there for so long, seconds."
    )
    no_checkpoint_intervals: float = Field(
        3.0, ge=0, description="No checkpoint passed its checks for so many of its intervals."
    )
    rollback_loop_count: int = Field(
        3, ge=0, le=20, description="So many rollbacks were carried out in an hour."
    )
    spool_growing_batches: int = Field(
        100, ge=0, description="So many batches wait with the trainer and become more."
    )
    spool_growing_for_s: float = Field(600.0, ge=0, le=MAX_S, description="For so long, seconds.")
    reports_dropped_for_s: float = Field(
        3600.0, ge=0, le=MAX_S, description="What the trainer had to drop is told for so long after, seconds."
    )
    sequence_gap_after_s: float = Field(
        60.0,
        ge=0,
        le=MAX_S,
        description="A batch is missing while later ones are here, for so long, seconds.",
    )
    command_unanswered_after_s: float = Field(
        60.0, ge=0, le=MAX_S, description="The trainer says nothing about a command for so long, seconds."
    )

    @field_validator("loss_risen_factor", "loss_diverged_factor")
    @classmethod
    def _factors_are_above_1(cls, factor: float) -> float:
        if 0 < factor <= 1:
            raise ValueError("a factor is above 1; or 0, which switches the rule off")
        return factor


class PolicyConfig(BaseModel):
    """What follows from a diverged run, and how often at most."""

    policy: PolicyMode = Field(PolicyMode.SUGGEST, description="off, suggest (in words) or act (order).")
    policy_cooldown_s: float = Field(
        600.0, ge=0, le=MAX_S, description="Pause between automatic rollback orders for one run, seconds."
    )
    policy_budget: int = Field(
        3, ge=0, description="Automatic rollback orders for one run in an hour at most."
    )


class RunRules(HealthConfig, RuleConfig, PolicyConfig):
    """All that may be chosen for a project or a run as well, while the monitor runs."""


class AccessConfig(BaseModel):
    """Who reaches the monitor, by which names, how often, and what is written down about it."""

    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs a token.")
    port: int = Field(8321, ge=0, le=65_535, description="Port to listen on; 0: any free one.")
    allowed_hosts: str = Field(
        "", description="Names that requests may be for, separated by commas, besides addresses; * is any."
    )
    trusted_proxies: str = Field(
        "", description="Addresses whose X-Forwarded-For and -Proto are believed, separated by commas."
    )
    tls_certificate: Path | None = Field(None, description="Certificate chain, PEM; with tls_key: HTTPS.")
    tls_key: Path | None = Field(None, description="The certificate's private key, PEM.")
    rate_limit_per_s: float = Field(
        2_000.0, ge=1, description="Questions of one client in a second; a burst may have as many again."
    )
    rate_limit_ingest_per_s: float = Field(10_000.0, ge=1, description="The same for batches of trainers.")
    max_streams: int = Field(64, ge=0, description="Live streams that may be open at once; then 503.")
    session_hours: float = Field(12.0, gt=0, le=8760, description="A browser is signed in this long, hours.")
    access_log: str = Field("", description="File for one JSON line a request; - is standard error.")

    @model_validator(mode="after")
    def _certificate_and_key_go_together(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; set both, or neither")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the monitor: its address is loopback, and no proxy passes on."""
        if self.trusted_proxies:
            return False
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class StorageConfig(BaseModel):
    """How long what was received is kept, and when it is packed."""

    durable: Durability = Field(
        Durability.NORMAL,
        description="SQLite only. normal: a power cut may take the last commits. full: each is on the disk.",
    )
    compact_interval_s: float = Field(
        5.0, gt=0, description="Pause between looks for batches to compact, seconds."
    )
    compact_idle_s: float = Field(
        60.0, ge=0, description="A run silent for this long has its last batches compacted, seconds."
    )
    keep_points_days: float | None = Field(
        None,
        gt=0,
        description="Points older than this leave; headers stay, one for 1,000 points. None: never.",
    )
    keep_alerts_days: float = Field(
        90.0, gt=0, description="Alerts that others sent leave so long after they came last."
    )
    keep_runs_days: float | None = Field(
        None, gt=0, description="Runs that ended before this leave, with all that they sent. None: never."
    )


class Settings(FromEnvironment, RunRules, AccessConfig, StorageConfig):
    """The monitor's settings; tests pass values, everything else comes from the environment."""

    database_url: str = Field("sqlite:///trainhealth.db", description="SQLAlchemy URL of the database.")
    max_body_bytes: int = Field(8 * MIB, ge=1024, description="A request as it travels.")
    max_unpacked_bytes: int = Field(32 * MIB, ge=1024, description="The same after gzip.")
    max_import_bytes: int = Field(1024 * MIB, ge=1024, description="The file of an exported run.")
    max_hold_s: float = Field(
        10.0, ge=0, le=30, description="A reply waits this long for a command at most, seconds."
    )
    watchdog_interval_s: float = Field(2.0, gt=0, description="Pause between looks at silent runs, seconds.")
    command_poll_s: float = Field(
        0.1,
        gt=0,
        description="Pause between looks for commands that another process ordered, seconds; ten times "
        "as long while PostgreSQL tells of them.",
    )
    alertmanager_url: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Address of an Alertmanager that is told of sick runs; empty: none.",
    )
    write_queue: int = Field(1024, ge=1, description="Requests that may wait for the writer; then 503.")
    metrics_max_runs: int = Field(500, ge=0, description="Runs with series of their own in /metrics.")
    metrics_lease_s: float = Field(
        6.0,
        gt=0,
        description="Of several monitors on one database one tells the runs' series; unless "
        "it is silent for this long, seconds.",
    )
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
