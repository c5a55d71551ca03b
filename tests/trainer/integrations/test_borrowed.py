"""A borrowed optimizer does what was decided in its own step, and is its owner's again afterwards."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, RMSprop

from trainer.guards.limits import Limits
from trainer.integrations.borrowed import Borrowed


class Lent:
    """A model with BatchNorm, its optimizer, and how often an update was over."""

    def __init__(self, make: Any, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = make(self.model.parameters(), lr=0.1, **options)
        self.num_applied = 0
        self.borrowed = Borrowed("loss", self.model, self.optimizer, 1.0, Limits(), self._count)

    def _count(self) -> None:
        self.num_applied += 1

    def forward(self, factor: float = 1.0) -> None:
        self.borrowed.protect()
        loss = self.model(torch.randn(16, 4)).square().mean() * factor
        self.borrowed.note(loss, 1.0)
        loss.backward()

    def everything(self) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in self.model.state_dict().values()]

    def is_at(self, before: list[torch.Tensor]) -> bool:
        return all(map(torch.equal, before, self.everything()))


@pytest.fixture(params=[(AdamW, {"fused": True}), (RMSprop, {})], ids=["fused", "on the host"])
def lent(request: pytest.FixtureRequest) -> Lent:
    make, options = request.param
    return Lent(make, **options)


def test_a_refused_update_is_one_in_which_nothing_was_written(lent: Lent) -> None:
    before = lent.everything()
    lent.forward(factor=torch.nan)
    lent.borrowed.decide()
    lent.optimizer.step()
    assert lent.is_at(before)
    assert lent.num_applied == 1, "it is over all the same"


def test_a_forward_pass_without_an_update_is_undone(lent: Lent) -> None:
    before = lent.everything()
    lent.forward()
    assert not lent.is_at(before), "a forward pass has written statistics"
    assert not lent.borrowed.is_amid_update
    lent.borrowed.undo_forward()
    assert lent.is_at(before)


def test_it_knows_whether_its_owner_is_amid_an_update(lent: Lent) -> None:
    lent.forward()
    lent.borrowed.decide()
    lent.optimizer.step()
    assert lent.borrowed.is_amid_update, "nobody has judged it yet"
    lent.borrowed.is_judged()
    after = lent.everything()
    lent.borrowed.undo_forward()
    assert lent.is_at(after), "and there is no forward pass to undo any more"


def test_a_lowered_rate_is_lent_for_the_step_and_all_is_given_back(lent: Lent) -> None:
    lent.borrowed.eased.fill_(0.5)
    lent.forward()
    lent.borrowed.decide()
    assert lent.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    lent.optimizer.step()
    assert lent.optimizer.param_groups[0]["lr"] == 0.1
    lent.borrowed.give_back()
    assert not lent.optimizer._optimizer_step_post_hooks
    assert not {"found_inf", "grad_scale"} & set(vars(lent.optimizer))
