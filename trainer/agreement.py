"""How all ranks come to know at a step boundary what one of them knows, and do the same in the same step."""

from collections.abc import Sequence

from shared.commands import Asked
from shared.events import Finding
from trainer.news import News, merged
from trainer.recovery import Recovery
from trainer.reporting import Reporter
from trainer.state import TrainState


class Agreement:
    """Pools what each rank has met since the last step. One process agrees with itself.

    ``stop_reason`` is what all have agreed to stop for.
    """

    def __init__(self, state: TrainState, recovery: Recovery, reporter: Reporter) -> None:
        self._state, self._recovery, self._reporter = state, recovery, reporter
        self._findings: list[Finding] = []
        self.stop_reason: str | None = None
        self._wish: str | None = None
        self._num_left_out = 0

    def stop(self, reason: str) -> None:
        """Ask for the end; safe to call from a signal handler."""
        self._wish = reason
        if not self._state.ranks.are_many:
            self.stop_reason = reason

    def hear(self, findings: Sequence[Finding]) -> None:
        """What this rank has found, to be told with the next agreement."""
        self._findings += findings

    def tell_left_out(self, step: int) -> None:
        """Samples that were left out of a batch, where no other rank has to hear of them first."""
        if not self._state.ranks.are_many:
            self._reporter.left_out(self._newly_left_out(), step)

    def reach(self, step: int) -> list[Asked]:
        """Let all ranks know what one of them does, and answer the commands to be carried out."""
        due = self._recovery.save_due_at
        self._recovery.collect()
        own = News(
            stop=self._wish if self.stop_reason is None else None,
            commands=self._reporter.link.commands() if self._state.ranks.is_first else [],
            left_out=self._newly_left_out(),
            findings=self._findings,
            save_due_at=self._recovery.save_due_at if self._recovery.save_due_at != due else None,
        )
        self._findings = []
        said = self._state.ranks.pool([own] if own.is_any else [])
        everyone = [one for news in said for one in news]
        self._reporter.left_out([one for news in everyone for one in news.left_out], step)
        for finding in merged([[one for news in rank for one in news.findings] for rank in said]):
            self._reporter.finding(finding)
        for news in everyone:
            self.stop_reason = self.stop_reason or news.stop
            self._recovery.save_due_at = news.save_due_at or self._recovery.save_due_at
        return [command for news in everyone for command in news.commands]

    def _newly_left_out(self) -> Sequence[tuple[str, str]]:
        refused = self._state.loader.refused
        new, self._num_left_out = refused[self._num_left_out :], len(refused)
        return new
