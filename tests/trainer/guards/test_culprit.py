"""Who is to blame for a refused step: some samples, the weights, or nobody that a replay could name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.guards.culprit import Culprit
from trainer.guards.randomness import Randomness


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

    def losses(self, batch: Any) -> Any:
        return SimpleNamespace(total=self.second(self.first(batch["x"]).relu()).square().mean())


def batch_of(size: int, *bad: int) -> dict[str, Tensor]:
    x = torch.ones(size, 3)
    x[list(bad), 0] = torch.nan
    return {"x": x}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def culprit(model: Model) -> Culprit:
    return Culprit(model, model.losses, Randomness.now(torch.device("cpu")))


@pytest.mark.parametrize("knows_earlier", [True, False])
def test_bad_samples_among_good_ones_are_named(model: Model, knows_earlier: bool) -> None:
    earlier = model.state_dict() if knows_earlier else None
    found = culprit(model).accuse(batch_of(8, 2, 5), earlier)
    assert (found.kind, found.places) == ("data", (2, 5))
    assert found.suspect is not None
    assert found.suspect.module == "first"


@pytest.mark.parametrize("knows_earlier", [True, False])
def test_where_no_sample_gets_through_nothing_is_said_against_the_data(
    model: Model, knows_earlier: bool
) -> None:
    with torch.no_grad():
        model.second.weight.fill_(torch.inf)
    earlier = model.state_dict() if knows_earlier else None
    found = culprit(model).accuse(batch_of(4), earlier)
    assert (found.kind, found.places) == ("unknown", ())
    assert found.suspect is not None
    assert found.suspect.module == "second"


def test_weights_are_to_blame_if_earlier_ones_are_fine_and_come_back_as_they_were(model: Model) -> None:
    earlier = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.first.bias[1] = torch.nan
    found = culprit(model).accuse(batch_of(4), earlier)
    assert found.kind == "weights"
    assert bool(model.first.bias[1].isnan())


def test_a_batch_of_one_bad_sample_is_the_data_s_fault(model: Model) -> None:
    found = culprit(model).accuse(batch_of(1, 0), model.state_dict())
    assert (found.kind, found.places) == ("data", (0,))


def test_a_replay_that_is_clean_accuses_nobody(model: Model) -> None:
    found = culprit(model).accuse(batch_of(4), model.state_dict())
    assert (found.kind, found.suspect) == ("unknown", None)
