"""What one rank alone knows at a step boundary, and how all of them come to know it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.commands import Asked
from shared.events import Finding, Severity


@dataclass(frozen=True)
class News:
    """To be pooled; most of the time there is nothing."""

    stop: str | None = None
    commands: Sequence[Asked] = ()
    left_out: Sequence[tuple[str, str]] = ()
    findings: Sequence[Finding] = ()
    save_due_at: int | None = None

    @property
    def is_any(self) -> bool:
        """Whether it is worth telling."""
        return bool(self.stop or self.commands or self.left_out or self.findings or self.save_due_at)


def remarks(step: int, odd: Iterable[tuple[str, str, int]]) -> list[Finding]:
    """What was odd about the data, as warnings: of an item by its name, or of the loader."""
    told = []
    for name, words, number in odd:
        message = f"sample {name} is odd, and trained on: {words}; number {number}" if name else words
        guard, about = ("data", {"sample": name}) if name else ("loader", {})
        reading = {**about, "count": float(number)}
        told.append(
            Finding(step=step, guard=guard, severity=Severity.WARNING, message=message, reading=reading)
        )
    return told


def mended(step: int, guard: str, objective: str, changed: Sequence[str]) -> list[Finding]:
    """What was found changed and put back, as one warning; nothing if nothing was."""
    if not changed:
        return []
    message = f"{objective}: {'; '.join(changed)}; put back before it was used"
    return [Finding(step=step, guard=guard, severity=Severity.WARNING, message=message)]


def merged(said: Sequence[Sequence[Finding]]) -> list[Finding]:
    """What all ranks have found, each thing once, with the rank that alone has seen it."""
    findings: list[Finding] = []
    for rank, own in enumerate(said):
        known = {(one.guard, one.message) for one in findings}
        for one in own:
            if (one.guard, one.message) not in known:
                words = f"rank {rank}: {one.message}" if rank else one.message
                findings.append(one.model_copy(update={"message": words}))
    return findings
