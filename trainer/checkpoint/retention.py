"""Which checkpoints of a ring stay, and which go."""

from collections.abc import Iterable

from pydantic import Field

from trainer.checkpoint.record import Record, State
from trainer.section import Section


class RingConfig(Section):
    """How many checkpoints stay, and when one is trusted."""

    keep_sealed: int = Field(
        2, ge=1, description="Newest sealed checkpoints kept, besides the next to be good."
    )
    keep_good: int = Field(
        3, ge=2, description="Newest good checkpoints kept; one that turns out damaged needs one behind it."
    )
    keep_bad: int = Field(1, ge=0, description="Newest bad checkpoints kept, to see what happened.")
    promote_after: int = Field(
        50,
        ge=1,
        description="Healthy steps after which a sealed checkpoint is good; twice the slowest guard's delay.",
    )


def surplus(records: Iterable[Record], config: RingConfig) -> list[Record]:
    """What retention lets go, of records newest first.

    The newest good ones stay, so none goes before a newer one is good. Besides the newest sealed ones the
    oldest stays too: it is the next to be good, and with saves closer together than ``promote_after`` none
    would ever get there.
    """
    by_state: dict[State, list[Record]] = {state: [] for state in State}
    for record in records:
        by_state[record.state].append(record)
    sealed = by_state[State.SEALED]
    return [
        *by_state[State.GOOD][config.keep_good :],
        *sealed[config.keep_sealed : len(sealed) - 1],
        *by_state[State.BAD][config.keep_bad :],
    ]
