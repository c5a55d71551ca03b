"""Batch ``n`` of an endless stream: a function of data, seed, batch size and ``n``, and of nothing else."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import Dataset
from xxhash import xxh3_64_intdigest

from trainer.data.errors import DataError
from trainer.data.items import Batch, Item, collate
from trainer.section import Section

Inspect = Callable[[Item], str | None]
"""Answers why an item must not be trained on, or None; or what is odd about one that may be."""

_LEAST_TRIES = 100  # for one place of a batch: a stretch of bad items may be longer than a small data set
_SET_ASIDE = "it is in quarantine"


class LoadingConfig(Section):
    """How items become batches."""

    batch_size: int = Field(8, ge=1, description="Items per batch.")
    seed: int = Field(0, ge=0, description="Fixes order and augmentation.")
    num_workers: int = Field(0, ge=0, description="Loading processes; 0 loads in the trainer's own.")


class Share(NamedTuple):
    """Which part of each batch a process loads: the ``number``-th of ``world`` equal ones."""

    number: int = 0
    world: int = 1


class Source(Protocol):
    """What a loader needs of a data set."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal items in equal order."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Item:
        """Item ``index``; what is random about it comes from ``rng``."""


class Refusal(NamedTuple):
    """An item that was left out, and why."""

    id: str
    reason: str


class Loaded(NamedTuple):
    """A batch, and what was met on the way to it; ``print`` is equal for equal batches."""

    batch: Batch
    refused: list[Refusal]
    odd: list[Refusal]
    print: int


class Batches(Dataset[Loaded]):
    """Batch by number. For a refused item comes the one at its place in the next batch, and so on.

    So each place of a batch is filled without a look at the others, which other processes may have.
    """

    def __init__(
        self,
        source: Source,
        config: LoadingConfig,
        inspect: Inspect | None,
        share: Share,
        notice: Inspect | None,
    ) -> None:
        self._source, self._config = source, config
        self._inspect, self._notice = inspect, notice
        size = config.batch_size // share.world
        self._places = range(share.number * size, (share.number + 1) * size)
        self._quarantined: set[str] = set()

    def quarantine(self, ids: Iterable[str]) -> bool:
        """Add to those that are passed over; whether any is new."""
        before = len(self._quarantined)
        self._quarantined |= set(ids)
        return len(self._quarantined) > before

    def names(self, number: int) -> list[str]:
        """What the batch would hold, without loading it: ids where the data set tells them, or indices."""
        size = self._config.batch_size
        indices = [self._index_at(number * size + place)[1] for place in self._places]
        ids = getattr(self._source, "ids", None)
        return [f"item {index}" if ids is None else ids[index] for index in indices]

    def __getitem__(self, number: int) -> Loaded:
        refused: list[Refusal] = []
        items = [self._fill(number * self._config.batch_size + place, refused) for place in self._places]
        notice = self._notice
        odd = [Refusal(item["id"], words) for item in items if notice and (words := notice(item))]
        return Loaded(collate(items), refused, odd, _print_of(items) if self._config.num_workers else 0)

    def _fill(self, first: int, refused: list[Refusal]) -> Item:
        """The first item that is left in of those that may come at this place."""
        tries = max(len(self._source), _LEAST_TRIES)
        for place in range(first, first + tries * self._config.batch_size, self._config.batch_size):
            item = self._at(place)
            is_set_aside = item["id"] in self._quarantined
            reason = self._inspect(item) if self._inspect and not is_set_aside else None
            if reason is not None:
                refused.append(Refusal(item["id"], reason))
            elif not is_set_aside:
                return item
        raise DataError(
            f"{tries} items were refused in a row for one place of a batch, the last ({item['id']}) "
            f"because: {reason or _SET_ASIDE}; mend the data or the check"
        )

    def _at(self, place: int) -> Item:
        """The item at a place of the endless stream: one permutation of the data set after the other."""
        epoch, index = self._index_at(place)
        return self._source.example(index, np.random.default_rng([self._config.seed, epoch, index + 1]))

    def _index_at(self, place: int) -> tuple[int, int]:
        epoch, offset = divmod(place, len(self._source))
        return epoch, int(_order(self._config.seed, epoch, len(self._source))[offset])


def _print_of(items: Iterable[Item]) -> int:
    """Equal for equal values of equal items in equal order; 64 bits, made where the batch is."""
    print_ = 0
    for item in items:
        for tensor in (item["image"], item["cond"]):
            print_ = xxh3_64_intdigest(tensor.contiguous().numpy().data, print_)
    return print_


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, 0]).permutation(length)
