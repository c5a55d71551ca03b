"""What the link needs to know: where the monitor is, how often to talk, and how much may wait."""

from pathlib import Path

import httpx
from pydantic import Field, field_validator

from shared.exchange import MAX_HOLD_S
from trainer.section import Section


class LinkConfig(Section):
    """The connection to the monitor. All of it may stay at its defaults, apart from ``url``."""

    url: str = Field("", description="Where the monitor listens (http://127.0.0.1:8321). Empty: no monitor.")
    token_file: Path | None = Field(
        None,
        description="File with the ingest token; read again when the monitor refuses it. None: what the "
        "environment says (TRAINHEALTH_TOKEN_FILE, TRAINHEALTH_TOKEN), else no token.",
    )
    ca_file: Path | None = Field(
        None, description="Certificates to trust for an https address besides the system's, PEM."
    )
    flush_s: float = Field(
        1.0, gt=0, le=60, description="Pause between batches, seconds: how old the newest point on a page is."
    )
    hold_s: float = Field(
        1.0,
        ge=0,
        le=MAX_HOLD_S,
        description="How long the monitor may hold a reply, seconds. Equal to flush_s a command never waits.",
    )
    max_steps: int = Field(
        10_000, ge=1, description="Steps kept in memory, about 1 KiB each; more are dropped and counted."
    )
    max_events: int = Field(2_000, ge=1, description="Events kept in memory; more are dropped and counted.")
    spool_limit_bytes: int = Field(
        256 << 20,
        ge=16 << 10,
        description="Disk for waiting batches, bytes. Steps may use 7/8 of it: findings outlive them.",
    )
    answer_timeout_s: float = Field(
        10.0,
        gt=0,
        le=300,
        description="Seconds beyond the hold until an unanswered batch counts as lost and is sent again.",
    )
    back_off_first_s: float = Field(
        0.5,
        gt=0,
        le=60,
        description="Longest pause after the first failure, seconds; doubles with each next.",
    )
    back_off_max_s: float = Field(
        15.0,
        gt=0,
        le=3600,
        description="No pause is longer, seconds: a monitor that is back is found by then.",
    )

    @field_validator("url")
    @classmethod
    def _is_a_web_address(cls, url: str) -> str:
        if not url:
            return url
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"{url!r} is no address ({error}); write http://HOST:PORT") from error
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            raise ValueError(f"{url!r} is no address of a monitor; write http://HOST:PORT")
        return url.rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """Whether the monitor runs on this machine."""
        return httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")
