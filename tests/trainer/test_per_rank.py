"""What each rank has for itself, in the one checkpoint of all."""

from typing import Any

import pytest
import torch

from trainer.per_rank import memory_of_all, own_memory, own_random, own_random_facts, random_of_all
from trainer.ranks import Ranks

FIRST = {"spike": {"window": [1, 2]}, "streams": {"last": 11}}
SECOND = {"spike": {"window": [1, 2]}, "streams": {"last": 22}}


class Two(Ranks):
    """A rank of two, of which the test says what they have."""

    def __init__(self, number: int, have: Any) -> None:
        super().__init__(number, 2)
        self.have = have

    def tell_all(self, mine: Any) -> Any:
        return self.have

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.have)


@pytest.mark.parametrize(("number", "memory"), [(0, FIRST), (1, SECOND)])
def test_what_ranks_remember_alike_is_kept_once_and_each_gets_its_own_back(number: int, memory: Any) -> None:
    ranks = Two(number, [FIRST, SECOND])
    first, others = memory_of_all(ranks, memory)
    assert (first, others) == (FIRST, [{"streams": {"last": 22}}])
    assert own_memory(ranks, first, others) == memory


def test_one_process_keeps_its_memory_and_nothing_else() -> None:
    assert memory_of_all(Ranks(), FIRST) == (FIRST, [])
    assert own_memory(Ranks(), FIRST, [SECOND]) == FIRST, "also of a run that had two"


def test_a_rank_that_was_not_there_remembers_what_the_first_does_and_draws_its_own() -> None:
    new = Ranks(2, 3)
    assert own_memory(new, FIRST, [SECOND]) == FIRST
    live = {"torch": torch.tensor([7])}
    saved = random_of_all(Two(0, [torch.tensor([1]), torch.tensor([2])]), live)
    assert set(saved) == {"torch", "rank 1 torch"}
    assert own_random(new, saved, live) == live
    assert own_random(Ranks(1, 3), saved, live)["torch"].tolist() == [2]
    assert own_random_facts(Ranks(1, 3), {"python": 1, "others": [{"python": 2}]}) == {"python": 2}
    assert own_random_facts(new, {"python": 1, "others": [{"python": 2}]}).keys() == {"python", "numpy"}
