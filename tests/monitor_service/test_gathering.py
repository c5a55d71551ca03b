"""Gathering: small pieces leave together, large ones at once, and nothing is lost at the end."""

import asyncio
from typing import Any, cast

import pytest

from monitor_service.gathering import MOST_BYTES, Gathering


class Wire:
    """A transport that notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.sent.append(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


@pytest.fixture
def wire() -> Wire:
    return Wire()


def within_a_loop(wire: Wire, *steps: Any) -> None:
    """Each step gets the gathering transport; between two steps the loop turns."""

    async def go() -> None:
        gathering = Gathering(cast(asyncio.Transport, wire), asyncio.get_running_loop())
        for step in steps:
            step(gathering)
            await asyncio.sleep(0)

    asyncio.run(go())


def write(*pieces: bytes) -> Any:
    return lambda gathering: [gathering.write(piece) for piece in pieces]


def test_head_and_body_leave_together_and_the_next_answer_by_itself(wire: Wire) -> None:
    within_a_loop(wire, write(b"head", b"body"), write(b"next"))
    assert wire.sent == [b"headbody", b"next"]


def test_what_is_large_leaves_at_once_and_in_order(wire: Wire) -> None:
    large = bytes(MOST_BYTES)

    def check(gathering: Gathering) -> None:
        write(b"head", large, b"tail")(gathering)
        assert wire.sent == [b"head" + large]

    within_a_loop(wire, check)
    assert wire.sent == [b"head" + large, b"tail"]


def test_what_was_written_is_sent_before_the_end(wire: Wire) -> None:
    within_a_loop(wire, lambda gathering: (gathering.write(b"last"), gathering.close()))
    assert wire.sent == [b"last"]
    assert wire.is_closed


def test_nothing_goes_to_one_who_has_left(wire: Wire) -> None:
    within_a_loop(wire, lambda gathering: (gathering.write(b"late"), wire.close()))
    assert wire.sent == []


def test_it_is_the_transport_in_all_else(wire: Wire) -> None:
    within_a_loop(wire, lambda gathering: setattr(wire, "peer", gathering.get_extra_info("peername")))
    assert vars(wire)["peer"] == "the peername"
