"""What follows a refused step: it is replayed once, and who is to blame decides the rest.

    replay applied        transient: a flipped bit, a race. The run is as if nothing had happened
    bad again, data       the bad samples are named and set aside; the run goes on
    bad again, weights    back to an earlier state
    a spike again         a hard batch; the second time its sample is set aside
    bad again, unknown    counted by the ladder, like a hard batch: the third within 100 steps goes back

On a GPU the numbers come a step or two late, so there the replay runs with weights that are as much newer.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from shared.events import Finding, Severity
from trainer.guards.base import Verdict, Vitals, verdict_on
from trainer.guards.culprit import Accusation, Culprit
from trainer.guards.panel import Judgement
from trainer.incident import Evidence, Incidents
from trainer.pictures import picture, tiles_of_sample
from trainer.recovery import Recovery
from trainer.reporting import Reporter
from trainer.sharding import is_sharded, whole
from trainer.taken import Taken
from trainer.watchdog import Hung

if TYPE_CHECKING:
    from trainer.loop import Loop

log = logging.getLogger(__name__)

_SUSPECT_DEVICE = 3
_MOST_SHOWN = 2
_DAY_S = 86_400.0


class Refusals:
    """Hears how each step was judged, and takes up the refused ones at the step boundary."""

    def __init__(self, recovery: Recovery, reporter: Reporter, incidents: Incidents, *, replay: bool) -> None:
        self._recovery, self._reporter, self.incidents = recovery, reporter, incidents
        self._replays = replay
        self._waiting: deque[tuple[Taken, list[Finding]]] = deque()
        self._in_spikes, self._shows = False, True

    def judged(self, loop: Loop, taken: Taken, judgement: Judgement, seconds: float) -> None:
        """Hear what the guards said of a step, before anything follows from it."""
        vitals, verdict, findings = taken.vitals[0], judgement.verdict, judgement.findings
        if verdict >= Verdict.ROLL_BACK:
            evidence = self._evidence(loop, taken)
            self._alarm(taken, list(findings), Verdict.ROLL_BACK, evidence=evidence)
        elif vitals.refused and self._replays and vitals.reason in _REPLAYED:
            self._waiting.append((taken, list(findings)))
        elif not vitals.refused:
            self._in_spikes = self._in_spikes and taken.is_replay
            if verdict is Verdict.PROCEED:
                self.incidents.healthy(taken.vitals, seconds)

    def forget(self) -> None:
        """The run goes back: what waits is of a lost stretch."""
        self._waiting.clear()

    def take_up(self, loop: Loop) -> None:
        """Replay what was refused, at a step boundary. Costs a look at an empty list."""
        while self._waiting:
            loop.hear_all()
            if self._waiting:
                self._again(loop, *self._waiting.popleft())

    def _again(self, loop: Loop, taken: Taken, findings: list[Finding]) -> None:
        begun, attempt = time.perf_counter(), self._reporter.record.attempt
        evidence = self._evidence(loop, taken)
        replayed = loop.replay(taken)
        if self._reporter.record.attempt != attempt:
            return
        if not replayed.vitals[0].refused:
            name = self._alarm(taken, findings, evidence=evidence, kind="transient")
            seconds = time.perf_counter() - begun
            self.incidents.note(name, action="replayed, clean, and applied", seconds=seconds)
            self._count_transient(loop)
        elif replayed.vitals[0].reason == "spike":
            self._hard(loop, taken, findings, evidence)
        else:
            self._accuse(loop, taken, findings, evidence, begun)

    def _accuse(
        self, loop: Loop, taken: Taken, findings: list[Finding], evidence: Evidence, begun: float
    ) -> None:
        name = self._alarm(taken, findings, evidence=evidence)
        losses_of = partial(loop.passes.losses_of, number=loop.number)
        culprit = Culprit(loop.state.model, losses_of, taken.random, loop.passes.micro_batches)
        # a sharded model computes on all ranks together, and each search takes as many passes as it needs
        is_split = is_sharded(loop.state.model)
        earlier = self._recovery.earlier_weights()
        own = Accusation("unknown", None) if is_split else culprit.accuse(taken.batch, earlier)
        names: Sequence[str] = taken.batch["ids"]
        places = own.places if len(names) else ()
        accused, ids = _of_all(loop.state.ranks.tell_all((own, tuple(names[place] for place in places))))
        clean = (
            "the weights are sharded, so nobody searched" if is_split else "the replay with hooks was clean"
        )
        words = accused.suspect.in_words() if accused.suspect else clean
        self._reporter.finding(_as_finding(taken.vitals[0], accused, words, ids))
        self.incidents.note(
            name,
            kind=accused.kind,
            module=accused.suspect.module if accused.suspect else None,
            sample_ids=ids,
            seconds=time.perf_counter() - begun,
        )
        if accused.kind == "weights":
            loop.go_back(f"the weights are at fault: {words}", "guard")
        elif ids:
            self._set_aside(loop, taken, ids, f"not finite by itself; {words}", name)
        else:
            module = accused.suspect.module if accused.suspect else None
            self._unexplained(loop, taken, words, module or None)

    def _hard(self, loop: Loop, taken: Taken, findings: list[Finding], evidence: Evidence) -> None:
        times = sum(one.sample_ids == taken.sample_ids for one in self._reporter.record.skips)
        if times >= 2 and taken.sample_ids:
            worst = [str(one.reading["worst_sample"]) for one in findings if "worst_sample" in one.reading]
            name = self._alarm(taken, findings, evidence=evidence, kind="data")
            self._set_aside(loop, taken, worst or taken.sample_ids, f"refused {times} times", name)
        elif not self._in_spikes:  # a row of spikes is one occurrence: it may be a new level of loss
            self._in_spikes = True
            self._unexplained(loop, taken, "a spike that its replay repeats", None, findings, evidence)

    def _set_aside(self, loop: Loop, taken: Taken, ids: Sequence[str], reason: str, name: str) -> None:
        self._recovery.remedies.quarantine(ids, reason, name)
        self._show(loop, taken, ids, name)
        action = f"set aside {', '.join(ids[:3])}{' and more' if len(ids) > 3 else ''}"
        self.incidents.note(name, sample_ids=ids, action=action, steps_lost=1)

    def _show(self, loop: Loop, taken: Taken, ids: Sequence[str], incident: str) -> None:
        """Send a picture of the first bad samples that this rank has."""
        if not self._shows:
            return
        try:
            self._send_pictures(taken, ids, incident, loop.state.step)
        except Hung:  # the loop's to answer
            raise
        except Exception as error:  # whatever a sample is, that is bad
            self._shows = False
            self._reporter.shows_no_more(loop.state.step, "pictures of samples", error)

    def _send_pictures(self, taken: Taken, ids: Sequence[str], incident: str, step: int) -> None:
        own: Sequence[str] = taken.batch["ids"]
        found = [(own.index(one), one) for one in ids if one in own][:_MOST_SHOWN]
        for number, (place, sample) in enumerate(found):
            name, title = f"sample-{incident}-{number}"[-100:], f"sample {sample}"
            tiles = tiles_of_sample(taken.batch, place)
            event = picture(name, "sample", step, title, tiles, incident=incident) if tiles else None
            if event is not None:
                self._reporter.picture(event)

    def _unexplained(
        self,
        loop: Loop,
        taken: Taken,
        words: str,
        module: str | None,
        findings: list[Finding] | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        rung = self._recovery.unexplained(loop.state.step, taken.iteration)
        if rung is None:
            return
        if findings is not None:
            self._alarm(taken, findings, evidence=evidence)
        reason = f"3 refused steps that a replay repeats: {words}"
        loop.go_back(reason, "guard", rung=rung, forget=module)

    def _count_transient(self, loop: Loop) -> None:
        """Three within a day are no chance: say so, once for each."""
        now = time.time()
        recent = [at for at in self._reporter.record.transients if now - at < _DAY_S] + [now]
        self._reporter.record.transients = recent
        if len(recent) >= _SUSPECT_DEVICE:
            message = (
                f"{len(recent)} faults within 24 h that a replay on {loop.device} did not repeat: suspect "
                f"hardware; test the memory and the device, and move the run if you can"
            )
            self._reporter.finding(
                Finding(
                    step=loop.state.step,
                    guard="culprit",
                    severity=Severity.WARNING,
                    message=message,
                    reading={"transients": float(len(recent)), "device": str(loop.device)},
                )
            )

    def _alarm(
        self,
        taken: Taken,
        findings: list[Finding],
        least: Verdict = Verdict.SKIP_STEP,
        *,
        evidence: Evidence | None = None,
        kind: Any = None,
    ) -> str:
        """Open or join the incident of a step, told by its gravest finding."""
        vitals = taken.vitals[0]
        gravest = max(findings, key=verdict_on, default=None)
        message = gravest.message if gravest else f"refused ({vitals.reason})"
        onset = None
        if least >= Verdict.ROLL_BACK:
            first = str(gravest.reading.get("first", "")) if gravest else ""
            in_state = first.startswith("EMA ") or " optimizer " in first
            kind = kind or ("state" if in_state else "weights")
            onset = None if vitals.refused else self._recovery.kept_at
        return self.incidents.alarm(
            vitals.step,
            gravest.guard if gravest else "meter",
            message,
            kind=kind or "unknown",
            onset=onset,
            evidence=evidence,
            reading=gravest.reading if gravest else None,
        )

    def _evidence(self, loop: Loop, taken: Taken) -> Evidence:
        model = loop.state.model.state_dict()
        return Evidence(
            objective=loop.objectives[0].name,
            number=loop.number,
            batch=taken.batch,
            random=taken.random.tensors(),
            model=self.incidents.copy_of({name: whole(one) for name, one in model.items()}),
            precision=loop.passes.precision,
            micro_batches=loop.passes.micro_batches,
        )


def _of_all(ranks: Sequence[tuple[Accusation, tuple[str, ...]]]) -> tuple[Accusation, tuple[str, ...]]:
    """The gravest of what each rank says of its part of the batch, and the bad samples of all parts."""
    gravest = max((accused for accused, _ in ranks), key=lambda one: _GRAVITY.index(one.kind))
    return gravest, tuple(name for _, ids in ranks for name in ids)


_GRAVITY = ("unknown", "data", "weights")
_REPLAYED = ("nonfinite_loss", "nonfinite_grad", "spike")


def _as_finding(vitals: Vitals, accused: Accusation, words: str, ids: Sequence[str]) -> Finding:
    named = f"; bad by itself: {', '.join(ids[:3])}" if ids else ""
    return Finding(
        step=vitals.step,
        guard="culprit",
        severity=Severity.WARNING,
        message=f"{vitals.objective}: the replay is bad again, {accused.kind} at fault; {words}{named}",
        reading={"kind": accused.kind, "module": accused.suspect.module if accused.suspect else ""},
    )
