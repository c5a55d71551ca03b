"""The table of a round of drills, for people."""

from collections.abc import Sequence

from trainer.drill.exercise import Drill
from trainer.drill.judge import Judgement

_HEAD = ("id", "drill", "seen", "late", "healed by", "lost", "loss", "s", "verdict")


def as_table(rows: Sequence[Judgement]) -> str:
    """One line a drill, and what it came to."""
    cells = [_HEAD, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(
        [*(line.rstrip() for line in lines), "", *map(_shortcoming, _short(rows)), summary(rows)]
    )


def as_list(drills: Sequence[Drill]) -> str:
    """What can be drilled."""
    return "\n".join(f"{one.id}  {one.name:<24}{one.what}{_aside(one)}" for one in drills)


def _aside(one: Drill) -> str:
    if one.awaits:
        return f" (awaits {one.awaits})"
    return f" (not run: {one.idle})" if one.idle else ""


def summary(rows: Sequence[Judgement]) -> str:
    """Counts, by fault and not by drill: a fault counts if each of its drills does. A line for each kind."""
    kinds = (("faults", "F"), ("causes", "R"))
    of_kind = {words: [row for row in rows if row.id.startswith(letter)] for words, letter in kinds}
    return "\n".join(_counts(words, found) for words, found in of_kind.items() if found)


def _counts(words: str, rows: Sequence[Judgement]) -> str:
    faults = {row.id for row in rows}
    undetected = {row.id for row in rows if not row.is_detected}
    unhealed = {row.id for row in rows if not (row.is_healed or _stopped(row))}
    stops = {row.id for row in rows if row.stops_by_design}
    waiting = sorted({row.id for row in rows if row.awaits})
    said = f"{len(faults - undetected)} of {len(faults)} {words} detected, "
    said += f"{len(faults - unhealed - stops)} healed, {len(stops - unhealed)} stopped by design"
    return said + (f"; awaiting: {', '.join(waiting)}" if waiting else "")


def _stopped(row: Judgement) -> bool:
    return row.stops_by_design and not row.fell_short


def _short(rows: Sequence[Judgement]) -> list[Judgement]:
    return [row for row in rows if row.fell_short]


def _shortcoming(row: Judgement) -> str:
    return f"{row.id} {row.name} fell short: {'; '.join(row.fell_short)}"


def _cells(row: Judgement) -> tuple[str, ...]:
    if row.awaits:
        return (row.id, row.name, "", "", "", "", "", "", f"awaits {row.awaits}")
    seen = f"{row.place} {row.by}".strip() or "-"
    late = "-" if row.steps_late is None else str(row.steps_late)
    return (
        row.id,
        row.name,
        seen,
        late,
        row.healed_by,
        str(row.steps_lost),
        _loss(row),
        f"{row.seconds:.0f}",
        _verdict(row),
    )


def _loss(row: Judgement) -> str:
    if row.is_equal_to_twin:
        return "= twin"
    return f"{row.loss_difference:+.1%}" if row.final_loss == row.final_loss else "-"


def _verdict(row: Judgement) -> str:
    if row.fell_short:
        return "FELL SHORT"
    return "stops by design" if row.stops_by_design else row.means or "healed"
