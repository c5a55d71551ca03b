"""Orders that may be sent again: with the same ``Idempotency-Key`` the same command, and no second one.

A key belongs to a run and is kept as long as its command, so as long as the run. An order that was refused
leaves nothing behind: sent again, it is judged anew. The semantics are ours; the header's name is that of
draft-ietf-httpapi-idempotency-key-header, which has lapsed.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from monitor_service import runs, tables
from monitor_service.errors import InvalidMessage, KeyReused, Violation
from shared.base import Message

_SOUND = re.compile(r'("?)([A-Za-z0-9_.:/+=-]{1,200})\1')


@dataclass(frozen=True)
class OrderKey:
    """What a client calls an order, and a digest of what it asks for."""

    text: str
    digest: bytes

    @classmethod
    def read(cls, header: str | None, wish: Message) -> "OrderKey | None":
        """The key of a request; ``None`` without one.

        Args:
            wish: what the client sent, before a token's name is put to it. Only the fields it named count:
                neither a new token nor a new default makes a repeat another order.

        Raises:
            InvalidMessage: the header is no key.
        """
        if header is None:
            return None
        found = _SOUND.fullmatch(header)
        if found is None:
            problem = "send 1 to 200 letters, digits and _ . : / + = -, for example a UUID"
            raise InvalidMessage([Violation("header.Idempotency-Key", repr(header[:80]), problem)])
        asked = f"{type(wish).__name__} {wish.model_dump_json(exclude_unset=True)}"
        return cls(found[2], hashlib.blake2b(asked.encode(), digest_size=16).digest())


def once(
    connection: Connection, run: str, key: OrderKey | None, order: Callable[[], str]
) -> tuple[str, bool]:
    """Order, unless that was done with this key before; the command's id, and whether it is new.

    Raises:
        NotFound: the run is not registered.
        KeyReused: another order came with this key.
    """
    if key is None:
        return order(), True
    known = tables.commands.c
    run_id = runs.hold(connection, run).id  # from here on nobody else orders for this run
    query = select(known.id, known.kind, known.issued_by, known.order_digest)
    before = connection.execute(query.where(known.run_id == run_id, known.order_key == key.text)).first()
    if before is None:
        command = order()
        named = {"order_key": key.text, "order_digest": key.digest}
        connection.execute(update(tables.commands).where(known.id == command).values(named))
        return command, True
    if bytes(before.order_digest) != key.digest:
        raise KeyReused(key.text, before.id, f"{before.kind}, by {before.issued_by}")
    return before.id, False
