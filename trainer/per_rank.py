"""What each rank has for itself: random states and memories of guards, kept in the one checkpoint of all.

The first rank's have their plain names, so that its checkpoint is that of a run of one process. A rank that
was not there when it was saved goes on with random states of its own, and remembers what the first one does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trainer.random_states import random_facts
from trainer.ranks import Ranks

Memory = Mapping[str, Any]
"""Of each guard, by its name."""


def random_of_all(ranks: Ranks, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The random states of all ranks, by name."""
    everyone = {name: ranks.gather(state) for name, state in own.items()}
    return {
        _name_of(rank, name): states[rank] for rank in range(ranks.world) for name, states in everyone.items()
    }


def own_random(ranks: Ranks, saved: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's of all that were saved; ``live`` are those that it has."""
    own = {name: saved.get(_name_of(ranks.number, name)) for name in live}
    is_new = not ranks.is_first and None in own.values()
    return dict(live) if is_new else {name: state for name, state in own.items() if state is not None}


def random_facts_of_all(ranks: Ranks) -> dict[str, Any]:
    """The random states that are no tensors."""
    first, *others = ranks.tell_all(random_facts())
    return {**first, "others": others} if others else first


def own_random_facts(ranks: Ranks, saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """This rank's of them."""
    if ranks.is_first:
        return saved
    own: Mapping[str, Any] | None = _of_other(ranks, saved.get("others", []))
    return random_facts() if own is None else own


def memory_of_all(ranks: Ranks, own: Memory) -> tuple[Memory, list[Memory]]:
    """The first rank's memory and, for each other, what differs from it."""
    first, *others = ranks.tell_all(own)
    return first, [{name: one for name, one in other.items() if one != first[name]} for other in others]


def own_memory(ranks: Ranks, first: Memory, others: Sequence[Memory]) -> Memory:
    """This rank's memory of what was saved."""
    return first if ranks.is_first else {**first, **(_of_other(ranks, others) or {})}


def _of_other(ranks: Ranks, others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return others[ranks.number - 1] if ranks.number <= len(others) else None


def _name_of(rank: int, name: str) -> str:
    return f"rank {rank} {name}" if rank else name
