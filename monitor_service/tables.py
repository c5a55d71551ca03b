"""The tables, as SQLAlchemy Core sees them; the same on SQLite and PostgreSQL.

Measured numbers never stand in a float column: SQLite turns NaN into NULL. They are in payloads and headers
(IEEE bytes) or in JSON text written by pydantic, where NaN is ``"NaN"``.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

LARGEST_INTEGER = 2**63 - 1
"""What an integer column holds; larger numbers are refused at the door."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC; SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Word(TypeDecorator[str]):
    """One of few words; a member of a ``StrEnum`` is stored as its plain value by every driver."""

    impl = String(30)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)


Id = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column called INTEGER."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _of_run(*, is_key: bool = False) -> Column[int]:
    return Column("run_id", Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=is_key, nullable=False)


runs = Table(
    "runs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("project", String(100), nullable=False, index=True),
    Column("config", Text, nullable=False),
    Column("total_steps", BigInteger),
    Column("checkpoint_interval_steps", BigInteger),
    Column("started_at", UtcDateTime, nullable=False),
    Column("status", Word, nullable=False, index=True),
    Column("status_since", UtcDateTime, nullable=False),
    Column("reasons", Text, nullable=False),  # JSON list of sentences behind the status
    Column("facts", Text, nullable=False),  # JSON of facts.Facts: what the status follows from
    Column("series_names", Text, nullable=False),  # JSON list, sorted
    Column("compactions", BigInteger, nullable=False, server_default="0"),  # compare and set by each
    Column("identity", String(64)),  # of the training's folder; NULL while nobody has told one
    Column("rules", Text),  # JSON: what differs from the settings for this run, of it and its project
)

attempts = Table(
    "attempts",
    metadata,
    _of_run(is_key=True),
    Column("attempt", BigInteger, primary_key=True, autoincrement=False),
    Column("start_step", BigInteger, nullable=False),
    Column("is_announced", Boolean, nullable=False),  # else start_step is the least step seen so far
    Column("reason", Word),
    Column("checkpoint", String(100)),
    Column("started_at", UtcDateTime, nullable=False),
    Column("session", String(64)),  # whose attempt it is; NULL: anybody's
)

batches = Table(
    "batches",
    metadata,
    Column("id", Id, primary_key=True),
    _of_run(),
    Column("session", String(64), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("digest", LargeBinary(16), nullable=False),
    Column("outbox", Text, nullable=False),  # JSON of shared.exchange.OutboxCounts
    Column("num_steps", Integer, nullable=False),
    Column("first_step", BigInteger),
    Column("last_step", BigInteger),
    Column("codec", SmallInteger),
    Column("payload", LargeBinary),  # series.encode; NULL in a batch without steps
    UniqueConstraint("run_id", "session", "seq"),
    Index(None, "run_id", "attempt", "first_step"),
    Index(None, "run_id", "attempt", "num_steps"),  # what waits for compaction, without the payloads
)
"""Batches as they came, until they are compacted into blocks and written down in the ledger."""

ledger = Table(
    "ledger",
    metadata,
    _of_run(is_key=True),
    Column("session", String(64), primary_key=True),
    Column("first_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("digests", LargeBinary, nullable=False),  # 16 bytes for each seq from first to last
    Column("outbox", Text, nullable=False),  # of the last seq
    Column("received_at", UtcDateTime, nullable=False),  # of the batch received last
)

series = Table(
    "series",
    metadata,
    Column("id", Id, primary_key=True),
    _of_run(),
    Column("name", String(200), nullable=False),
    UniqueConstraint("run_id", "name"),
)

blocks = Table(
    "blocks",
    metadata,
    Column("id", Id, primary_key=True),
    _of_run(),
    Column("attempt", BigInteger, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("num_rows", Integer, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),  # of the batch received last
    Column("codec", SmallInteger, nullable=False),
    Column("axis", LargeBinary),  # blocks.pack_axis; NULL once only headers are kept
    Index(None, "run_id", "attempt", "first_step"),
)

chunks = Table(
    "chunks",
    metadata,
    Column(
        "block_id",
        Id,
        ForeignKey("blocks.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column(
        "series_id",
        Id,
        ForeignKey("series.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
        index=True,
    ),
    Column("header", LargeBinary, nullable=False),  # blocks.HEADER
    Column("payload", LargeBinary),  # blocks.pack_values; NULL once only headers are kept
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("holder", String(100), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True),
    _of_run(),
    Column("session", String(64), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("idx", Integer, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("type", String(100), nullable=False),
    Column("severity", Word),
    Column("data", Text, nullable=False),  # the event's own JSON
    UniqueConstraint("run_id", "session", "seq", "idx"),
    Index(None, "run_id", "type", "id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _of_run(is_key=True),
    Column("checkpoint", String(100), primary_key=True),
    Column("attempt", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("state", Word, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("details", Text, nullable=False),  # JSON of checkpoints.Details
)

transitions = Table(
    "transitions",
    metadata,
    Column("id", Id, primary_key=True),
    _of_run(),
    Column("from_status", Word, nullable=False),
    Column("to_status", Word, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("step", BigInteger),
    Column("reasons", Text, nullable=False),
    Index(None, "run_id", "id"),
)

commands = Table(
    "commands",
    metadata,
    Column("id", String(64), primary_key=True),
    _of_run(),
    Column("kind", Word, nullable=False),
    Column("reason", String(500), nullable=False),
    Column("issued_by", String(100), nullable=False),
    Column("issued_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("to_step", BigInteger),
    Column("state", Word, nullable=False, index=True),
    Column("order_key", String(200)),  # the Idempotency-Key that it was ordered with
    Column("order_digest", LargeBinary(16)),  # of what was asked with that key
    Index(None, "run_id", "issued_at"),
    Index(None, "run_id", "order_key", unique=True),
)

command_history = Table(
    "command_history",
    metadata,
    Column("id", Id, primary_key=True),
    Column(
        "command_id", String(64), ForeignKey("commands.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("state", Word, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("message", Text, nullable=False),
)

command_tallies = Table(
    "command_tallies",
    metadata,
    Column("kind", Word, primary_key=True),
    Column("state", Word, primary_key=True),
    Column("count", BigInteger, nullable=False),
)
"""How often commands of runs that are here no more came to each end: what was counted stays counted."""

rule_changes = Table(
    "rule_changes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("run_id", Id, ForeignKey("runs.id", ondelete="CASCADE"), index=True),
    Column("project", String(100), index=True),  # one of the two is set
    Column("chosen", Text, nullable=False),  # JSON: all that differs from then on
    Column("reason", String(500), nullable=False),
    Column("changed_by", String(100), nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)
"""Who changed the rules for a project or a run, when and why; the newest row of each is what holds."""

alerts = Table(
    "alerts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", String(100), nullable=False, server_default=""),  # of the sender's token; "": all
    Column("fingerprint", String(64), nullable=False),
    Column("starts_at", UtcDateTime, nullable=False),
    Column("ends_at", UtcDateTime),
    Column("status", Word, nullable=False),
    Column("run", String(100), index=True),  # as the alert names it; there need not be such a run
    Column("labels", Text, nullable=False),  # JSON
    Column("annotations", Text, nullable=False),  # JSON
    Column("result", Word, nullable=False),
    Column("detail", Text, nullable=False),
    Column("command_id", String(64)),
    Column("first_received_at", UtcDateTime, nullable=False),
    Column("last_received_at", UtcDateTime, nullable=False, index=True),
    Column("times", BigInteger, nullable=False),
    UniqueConstraint("project", "fingerprint", "starts_at"),
)
"""Alerts that others sent; not part of a run, so that one about an unknown run is on record, too."""

pictures = Table(
    "pictures",
    metadata,
    _of_run(is_key=True),
    Column("picture", String(100), primary_key=True),
    Column("attempt", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("kind", Word, nullable=False),
    Column("incident", String(100)),
    Column("details", Text, nullable=False),  # JSON of pictures.Details
    Column("png", LargeBinary, nullable=False),
    Index(None, "run_id", "kind", "step"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),  # SHA-256 of the secret
    Column("scopes", String(100), nullable=False),  # separated by blanks
    Column("project", String(100)),  # NULL: all
    Column("parent", String(16), index=True),  # the token that opened this session
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)
