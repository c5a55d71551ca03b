"""Data that somebody else serves: a loop of your own, or a framework's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class ForeignData:
    """Batches without a position that could be saved: after a rollback they go on from where they are."""

    refused: Sequence[tuple[str, str]] = ()

    def take_remarks(self) -> Sequence[tuple[str, str, int]]:
        return ()

    def next_batch(self) -> Mapping[str, Any]:
        raise NotImplementedError("whoever serves these batches takes them")

    def skip(self, num_batches: int) -> None:
        """Nothing: the data behind a fault have passed already."""

    def quarantine(self, ids: Iterable[str]) -> None:
        """Nothing: no samples are named."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was saved."""

    def close(self) -> None:
        """Nothing is held."""
