"""Faults of the monitor: it dies and returns, lies, floods, orders twice or at a bad moment."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from trainer.drill.faults import Fault, Ground
from trainer.drill.judge import Sighting
from trainer.drill.liar import Liar, Words, alive, order, reply
from trainer.loop import Loop
from trainer.passes import Phase

_QUICK = {"flush_s": 0.05, "hold_s": 0.05, "answer_timeout_s": 1.0, "back_off_first_s": 0.05}
_FOR_STEPS = 15
_PATIENCE_S = 10.0
_FLOOD = 1_000
"""Events after which the flood ends: what became of some 500 orders."""

Play = Callable[["MonitorFault", Liar, Loop], None]


@dataclass
class MonitorFault:
    """F42, R24: a monitor that is honest until ``begin`` and again after ``end``, if there is one.

    ``judge`` looks at what it heard in the end: a sighting, and what did not hold.
    """

    at_step: int
    begin: Play
    judge: Callable[["MonitorFault", Liar], Iterator[str]]
    end: Play | None = None
    struck_at: int | None = field(default=None, init=False)
    sighted: Sighting | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Train under the eyes of that monitor."""
        with alive() as liar:
            link = {**ground.config.link.model_dump(), **_QUICK, "back_off_max_s": 0.1, "url": liar.url}
            section = type(ground.config.link).model_validate(link)
            ground.config = ground.config.model_copy(update={"link": section})
            faults = [Fault(self.at_step, Phase.FETCH, lambda loop: self._strike(liar, loop))]
            if (end := self.end) is not None:
                back = self.at_step + _FOR_STEPS
                faults.append(Fault(back, Phase.FETCH, lambda loop: end(self, liar, loop)))
            ground.train(faults)
            self.broke += self.judge(self, liar)

    def see(self, by: str, words: str) -> None:
        """Someone has spoken of it."""
        if self.sighted is None and self.struck_at is not None:
            self.sighted = Sighting("M", by, self.struck_at, words)

    def _strike(self, liar: Liar, loop: Loop) -> None:
        self.struck_at = loop.number
        self.begin(self, liar, loop)


def dying(at_step: int) -> MonitorFault:
    """F42: the connection is refused for some steps; afterwards nothing is missing."""

    def judge(fault: MonitorFault, liar: Liar) -> Iterator[str]:
        fault.see("link", f"{liar.most_spooled} batches waited in the spool")
        begun = fault.struck_at or 0
        missing = set(range(begun, max(liar.steps, default=0) + 1)) - liar.steps
        if not liar.most_spooled:
            yield "no batch is known to have waited"
        if missing:
            yield f"steps {sorted(missing)[:5]} never reached the monitor"
        if not any(one["type"] == "run_ended" for one in liar.events):
            yield "the end of the run never reached the monitor"

    def die(fault: MonitorFault, liar: Liar, loop: Loop) -> None:
        liar.die()

    def live(fault: MonitorFault, liar: Liar, loop: Loop) -> None:
        liar.live()

    return MonitorFault(at_step, die, judge, live)


def lying(at_step: int) -> MonitorFault:
    """F42: answers that are none, and orders that can't be carried out."""

    def judge(fault: MonitorFault, liar: Liar) -> Iterator[str]:
        said = {one["command"]: one for one in liar.updates() if one["state"] not in ("accepted",)}
        fault.see("orders", "; ".join(f"{name} {one['state']}" for name, one in said.items()))
        for name, state in (("no-such-checkpoint", "failed"), ("other-attempt", "refused")):
            if said.get(name, {}).get("state") != state:
                yield f"the order {name!r} was not told as {state}"
        if odd := said.keys() - {"no-such-checkpoint", "other-attempt"}:
            yield f"orders that make no sense were taken up: {sorted(odd)}"

    def lie(fault: MonitorFault, liar: Liar, loop: Loop) -> None:
        number, attempt = count(), loop.reporter.record.attempt

        def answer(batch: dict[str, Any]) -> Words:
            told = next(number)
            lies = _lies(batch["seq"], attempt)
            return lies[told] if told < len(lies) else liar.truth(batch)

        liar.answer = answer

    return MonitorFault(at_step, lie, judge)


def _lies(seq: int, attempt: int) -> list[Words]:
    long_ago = {"expires_at": "2001-01-01T00:00:00Z"}
    return [
        reply(seq, [order("no-such-checkpoint", "roll_back", attempt, to_step=0)]),
        reply(seq, [order("other-attempt", "stop", attempt + 90)]),
        b"<html>502</html>",
        b"[1, 2",
        b"x" * (10 << 20),
        reply(seq + 7),
        None,
        reply(seq, [{"id": "nonsense", "kind": "format_disk"}, 17, None]),
        reply(seq, [order("too-late", "stop", attempt) | long_ago]),
        b'{"seq": "' + b"9" * 5000 + b'"}',
    ]


def flooding(at_step: int) -> MonitorFault:
    """F42: a hundred orders in each reply, half of them to save a checkpoint, now."""

    def judge(fault: MonitorFault, liar: Liar) -> Iterator[str]:
        said = [one["state"] for one in liar.updates()]
        fault.see("orders", f"{said.count('succeeded')} carried out, {said.count('refused')} refused")
        if not said:
            yield "no order was answered"

    def flood(fault: MonitorFault, liar: Liar, loop: Loop) -> None:
        number, attempt = count(), loop.reporter.record.attempt
        kinds = (("save_checkpoint", 0), ("roll_back", 90))

        def answer(batch: dict[str, Any]) -> Words:
            if len(liar.events) > _FLOOD:
                return liar.truth(batch)
            orders = [order(f"{next(number)}", kind, attempt + far) for _ in range(50) for kind, far in kinds]
            return reply(batch["seq"], orders)

        liar.answer = answer

    return MonitorFault(at_step, flood, judge)


def two_in_a_row(at_step: int) -> MonitorFault:
    """R24: two rollbacks at once; the second was meant for an attempt that is over by then."""

    def judge(fault: MonitorFault, liar: Liar) -> Iterator[str]:
        said = {one["command"]: one["state"] for one in liar.updates()}
        fault.see("orders", f"the first {said.get('first')}, the second {said.get('second')}")
        if said != {"first": "succeeded", "second": "refused"}:
            yield f"the orders ended as {said}"

    def begin(fault: MonitorFault, liar: Liar, loop: Loop) -> None:
        attempt = loop.reporter.record.attempt
        liar.order(*(order(name, "roll_back", attempt) for name in ("first", "second")))
        _until_it_is_here(liar, loop)

    return MonitorFault(at_step, begin, judge)


def during_a_save(at_step: int) -> MonitorFault:
    """R24: a rollback while a checkpoint is being written."""

    def judge(fault: MonitorFault, liar: Liar) -> Iterator[str]:
        said = {one["command"]: one["state"] for one in liar.updates()}
        fault.see("orders", f"the rollback {said.get('now')}")
        if said != {"now": "succeeded"}:
            yield f"the order ended as {said}"

    def begin(fault: MonitorFault, liar: Liar, loop: Loop) -> None:
        liar.order(order("now", "roll_back", loop.reporter.record.attempt))
        _until_it_is_here(liar, loop)
        loop.recovery.save()

    return MonitorFault(at_step, begin, judge)


def _until_it_is_here(liar: Liar, loop: Loop) -> None:
    """Wait until the order lies where the loop will find it at the end of this step."""
    inbox: Any = loop.reporter.link._inbox
    deadline = time.monotonic() + _PATIENCE_S
    while not (liar.told.is_set() and inbox._waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
