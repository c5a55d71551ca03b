"""Access tokens: made of 32 random bytes, kept as hashes, with scopes, a project, and an end.

A secret reads ``th_ID_RANDOM``. ``ID`` finds the row, and a constant-time compare of SHA-256 hashes decides.
A plain hash is enough: nobody guesses 256 random bits, so there is nothing for a slow hash to slow down.
A session of a browser is a token as well, with the token that opened it as its ``parent``.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from monitor_service import tables
from monitor_service.errors import NotFound

SECRET_BYTES = 32
_SECRET = re.compile(r"th_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


class Scope(StrEnum):
    """What a token may do."""

    INGEST = "ingest"
    READ = "read"
    CONTROL = "control"
    HOOK = "hook"


@dataclass(frozen=True)
class Token:
    """A token as it is kept. Nothing here leads back to the secret."""

    id: str
    name: str
    hash: bytes
    scopes: frozenset[Scope]
    project: str | None
    parent: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def is_good(self, now: datetime) -> bool:
        """Whether it opens anything at ``now``; a session also needs its parent to be good."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def told(self) -> dict[str, Any]:
        """For an operator: everything but the hash, as JSON."""
        moments = {name: getattr(self, name) for name in ("created_at", "expires_at", "revoked_at")}
        return {
            "id": self.id,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "project": self.project,
            **{name: None if at is None else at.isoformat() for name, at in moments.items()},
        }


def create(
    connection: Connection,
    name: str,
    scopes: Collection[Scope],
    now: datetime,
    *,
    project: str | None = None,
    expires_at: datetime | None = None,
    parent: str | None = None,
) -> tuple[Token, str]:
    """Make a token; the secret is told here and never again."""
    id_ = secrets.token_hex(6)
    secret = f"th_{id_}_{secrets.token_urlsafe(SECRET_BYTES)}"
    token = Token(
        id_, name, hash_of(secret), frozenset(scopes), project, parent, now, expires_at, revoked_at=None
    )
    row = {**vars(token), "scopes": " ".join(sorted(token.scopes))}
    connection.execute(insert(tables.tokens).values(row))
    return token, secret


def revoke(connection: Connection, id_: str, now: datetime) -> Token:
    """Let a token open nothing from now on, nor the sessions that it opened.

    Raises:
        NotFound: there is none of this id.
    """
    known = tables.tokens.c
    connection.execute(
        update(tables.tokens)
        .where((known.id == id_) | (known.parent == id_), known.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    row = connection.execute(select(tables.tokens).where(known.id == id_)).first()
    if row is None:
        raise NotFound(f"no token {id_!r}; see: python -m monitor_service token list")
    return _token(row)


def issued(connection: Connection) -> list[Token]:
    """Every token that was ever made, sessions left out, oldest first."""
    known = tables.tokens.c
    rows = connection.execute(
        select(tables.tokens).where(known.parent.is_(None)).order_by(known.created_at, known.id)
    )
    return [_token(row) for row in rows]


def good(connection: Connection, now: datetime) -> list[Token]:
    """Tokens and sessions that open something at ``now``."""
    rows = connection.execute(select(tables.tokens).where(tables.tokens.c.revoked_at.is_(None)))
    alive = {token.id: token for token in map(_token, rows) if token.is_good(now)}
    roots = {id_ for id_, token in alive.items() if token.parent is None}  # a session opens no other
    return [token for token in alive.values() if token.parent is None or token.parent in roots]


def exist(connection: Connection) -> bool:
    """Whether a token was ever made: one that ended does not open the door again."""
    return connection.scalar(select(tables.tokens.c.id).limit(1)) is not None


def forget_ended_sessions(connection: Connection, now: datetime) -> None:
    """Delete the sessions whose time is over."""
    known = tables.tokens.c
    connection.execute(delete(tables.tokens).where(known.parent.is_not(None), known.expires_at <= now))


def id_of(secret: str) -> str | None:
    """The id in a secret; ``None`` if it has not the form of one."""
    found = _SECRET.fullmatch(secret)
    return found[1] if found else None


def hash_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def opens(secret: str, token: Token) -> bool:
    """Whether ``secret`` is the token's, compared in constant time."""
    return hmac.compare_digest(hash_of(secret), token.hash)


def _token(row: Row[Any]) -> Token:
    known = dict(row._mapping)
    return Token(**{**known, "scopes": frozenset(map(Scope, row.scopes.split()))})
