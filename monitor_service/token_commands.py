"""``token create``, ``list`` and ``revoke``: they work on the database, so the first needs no token."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from monitor_service import tokens
from monitor_service.opening import file_of, open_database
from monitor_service.store import open_engine, writing
from monitor_service.tokens import Scope
from shared.base import utc_now


@contextmanager
def _database(url: str) -> Iterator[Connection]:
    """A transaction on the database, which is created if it is not there."""
    open_database(url)
    engine = open_engine(url)
    try:
        with writing(engine) as connection, connection.begin():
            yield connection
    finally:
        engine.dispose()


def create(
    url: str, name: str, scopes: Sequence[Scope], project: str | None, days: float | None
) -> dict[str, Any]:
    """Make a token; its secret is in the answer, and nowhere else."""
    now = utc_now()
    ends = None if days is None else now + timedelta(days=days)
    with _database(url) as connection:
        token, secret = tokens.create(connection, name, scopes, now, project=project, expires_at=ends)
    return {**token.told(), "secret": secret}


def listed(url: str) -> list[dict[str, Any]]:
    """Every token that was ever made, oldest first."""
    with _database(url) as connection:
        return [token.told() for token in tokens.issued(connection)]


def revoke(url: str, id_: str) -> dict[str, Any]:
    """End a token, and the sessions that it opened.

    Raises:
        NotFound: there is none of this id.
    """
    with _database(url) as connection:
        return tokens.revoke(connection, id_, utc_now()).told()


def can_anybody_enter(url: str) -> bool:
    """Whether a good token exists. Asks only: a database that is not there is not created."""
    file = file_of(url)
    if file is not None and not file.exists():
        return False
    with _database(url) as connection:
        return bool(tokens.good(connection, utc_now()))


def in_words(token: dict[str, Any]) -> str:
    """One line about a token."""
    project = "" if token["project"] is None else f", project {token['project']}"
    end = "" if token["expires_at"] is None else f", until {token['expires_at']}"
    gone = "" if token["revoked_at"] is None else f", revoked {token['revoked_at']}"
    return f"{token['id']}  {token['name']}: {' '.join(token['scopes'])}{project}{end}{gone}"
