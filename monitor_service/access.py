"""Who asks, and what they may: tokens known by heart, read again every few seconds."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from monitor_service import tables, tokens
from monitor_service.errors import Forbidden, NotAuthenticated, NotFound, StoreUnavailable
from monitor_service.limits import Buckets
from monitor_service.store import Store
from monitor_service.tokens import Scope, Token

log = logging.getLogger(__name__)

RELOAD_S = 2.0
"""A token that was revoked opens nothing after this time, in every worker."""

MISS_RELOAD_S = 0.2
"""An unknown token may be new; but guesses must not keep the database busy."""

WRONG_PER_S = 1.0
WRONG_BURST = 20.0
"""Tokens that are none, from one address; a good one always passes."""


@dataclass(frozen=True)
class Principal:
    """Who asks: a token's holder, or anybody where no token is needed."""

    name: str
    scopes: frozenset[Scope]
    project: str | None = None
    token: str | None = None
    is_session: bool = False

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def sees(self, project: str) -> bool:
        return self.project is None or self.project == project

    def signature(self, issuer: str) -> str:
        """Who orders something: the name that it gives itself, and the token behind it."""
        return issuer if self.token is None else f"{issuer[:40]} (token {self.name[:40]})"


ANYBODY = Principal("anybody", frozenset(Scope))
"""On an address that only this machine reaches, as long as no token was ever made."""


class Door:
    """Lets in whoever shows a good token.

    Args:
        is_loopback: whether only this machine reaches the monitor. Then nobody needs a token until the
            first one is made; from then on everybody does, also when all of them have ended.
    """

    def __init__(self, store: Store, clock: Callable[[], datetime], *, is_loopback: bool) -> None:
        self._store, self._clock, self._is_loopback = store, clock, is_loopback
        self._known: Mapping[str, Token] = {}
        self._is_open = False
        self._loaded_at = -RELOAD_S
        self._loading = asyncio.Lock()
        self._wrong = Buckets(WRONG_PER_S, WRONG_BURST)

    async def admit(self, secret: str | None, address: str) -> Principal:
        """Who shows ``secret``.

        Raises:
            NotAuthenticated: nobody that is known.
            TooManyRequests: the same, and ``address`` has sent too many such secrets.
            StoreUnavailable: the tokens were never read, and cannot be now.
        """
        await self._refresh(RELOAD_S)
        if self._is_open:
            return ANYBODY
        if secret is None:
            raise NotAuthenticated(
                "no token was sent; send Authorization: Bearer TOKEN, or sign in at /login"
            )
        id_ = tokens.id_of(secret)
        if id_ is not None and id_ not in self._known:
            await self._refresh(MISS_RELOAD_S)
        token = self._known.get(id_ or "")
        if token is None or not tokens.opens(secret, token) or not token.is_good(self._clock()):
            self._wrong.take(address)
            raise NotAuthenticated("the token is unknown, has ended or was revoked; send another")
        return Principal(token.name, token.scopes, token.project, token.id, token.parent is not None)

    def forget(self) -> None:
        """Read the tokens again before the next answer: one was made or revoked here."""
        self._loaded_at = -RELOAD_S

    async def _refresh(self, after_s: float) -> None:
        if time.monotonic() - self._loaded_at < after_s:
            return
        async with self._loading:
            if time.monotonic() - self._loaded_at >= after_s:
                await self._load()

    async def _load(self) -> None:
        try:
            is_open, known = await asyncio.to_thread(self._read)
        except SQLAlchemyError as error:
            log.error("the access tokens cannot be read: %s", error)
            if not self._known and not self._is_open:
                raise StoreUnavailable("the access tokens cannot be read now") from error
        else:
            self._is_open, self._known = is_open, {token.id: token for token in known}
        self._loaded_at = time.monotonic()

    def _read(self) -> tuple[bool, list[Token]]:
        with self._store.reading() as connection:
            good = tokens.good(connection, self._clock())
            return self._is_loopback and not good and not tokens.exist(connection), good


def project_of(connection: Connection, run: str) -> str | None:
    """The project of a run; ``None`` if there is no such run."""
    return connection.scalar(select(tables.runs.c.project).where(tables.runs.c.name == run))


def refuse_foreign(connection: Connection, principal: Principal, run: str) -> None:
    """Let pass who may see the run, and every run that is not here yet.

    Raises:
        NotFound: it belongs to another project; to the reader that is as if it were not there.
        Forbidden: the same for a trainer that would write into it.
    """
    project = None if principal.project is None else project_of(connection, run)
    if project is None or principal.sees(project):
        return
    if principal.may(Scope.INGEST):
        raise Forbidden(f"run {run!r} belongs to another project than token {principal.name!r}; rename yours")
    raise NotFound.run(run)
