import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from trainer.guards.refusal import Shadow, ema_update, running_statistics
from trainer.guards.vitals import Meter

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": lambda p: AdamW(p, lr=1e-2, fused=True),
    "amsgrad": lambda p: AdamW(p, lr=1e-2, amsgrad=True, fused=True),
    "adam": lambda p: Adam(p, lr=1e-2, weight_decay=1e-2, fused=True),
    "sgd": lambda p: SGD(p, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "plain sgd": lambda p: SGD(p, lr=1e-2, fused=True),
    "rate on the device": lambda p: AdamW(p, lr=torch.tensor(1e-2), fused=True),
}
FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan gradient": lambda loss: loss + (loss - loss.detach()) * torch.nan,
    "infinite gradient": lambda loss: loss + (loss - loss.detach()) * torch.inf,
    "nan loss": lambda loss: loss * torch.nan,
    "infinite loss": lambda loss: loss * torch.inf,
    "minus infinity": lambda loss: loss * -torch.inf,
}


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def take_step(model: nn.Module, meter: Meter, optimizer: Optimizer, losses: Any, fault: Any = None) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(meter.iteration)
    loss = model(torch.randn(4, 5)).square().mean()
    total = fault(loss) if fault else loss
    total.backward()
    refused = meter.measure(losses(total))
    optimizer.step()
    meter.settle(1e-2)
    return refused


def everything(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return [t.detach().clone() for t in [*model.state_dict().values(), *moments]]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_refused_step_leaves_every_bit_as_it_was(kind: str, fault: str, losses: Any) -> None:
    model = model_of()
    optimizer = OPTIMIZERS[kind](model.parameters())
    meter = Meter("main", optimizer, model.parameters(), max_norm=1.0)
    for _ in range(3):
        assert not take_step(model, meter, optimizer, losses)
    before = everything(model, optimizer)
    assert take_step(model, meter, optimizer, losses, FAULTS[fault])
    assert all(map(torch.equal, before, everything(model, optimizer)))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_run_whose_first_step_was_refused_equals_one_without_it(kind: str, losses: Any) -> None:
    runs = []
    for refuse_first in (True, False):
        model = model_of()
        optimizer = OPTIMIZERS[kind](model.parameters())
        meter = Meter("main", optimizer, model.parameters(), max_norm=1.0)
        if refuse_first:
            assert take_step(model, meter, optimizer, losses, FAULTS["nan loss"])
            assert int(meter.applied) == 0
        meter.restore(applied=0, iteration=0)
        for _ in range(4):
            take_step(model, meter, optimizer, losses)
        runs.append(everything(model, optimizer))
    assert all(map(torch.equal, *runs))


def test_sgd_starts_as_it_does_without_a_meter(losses: Any) -> None:
    ours, plain = model_of(), model_of()
    optimizer = SGD(ours.parameters(), lr=1e-2, momentum=0.9, fused=True)
    reference = SGD(plain.parameters(), lr=1e-2, momentum=0.9, fused=True)
    meter = Meter("main", optimizer, ours.parameters(), max_norm=1e9)
    for step in range(3):
        take_step(ours, meter, optimizer, losses)
        reference.zero_grad()
        torch.manual_seed(step)
        plain(torch.randn(4, 5)).square().mean().backward()
        reference.step()
    assert all(map(torch.equal, ours.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("make", [lambda p: AdamW(p), lambda p: SGD(p, lr=1), lambda p: RMSprop(p)])
def test_an_optimizer_that_is_not_fused_is_refused_with_what_would_do(make: Any) -> None:
    model = model_of()
    with pytest.raises(ValueError, match=r"'main'.*not fused.*use AdamW, Adam or SGD with fused=True"):
        Meter("main", make(model.parameters()), model.parameters(), max_norm=1.0)


def test_sgd_with_dampening_is_refused() -> None:
    model = model_of()
    optimizer = SGD(model.parameters(), lr=1, momentum=0.9, dampening=0.1, fused=True)
    with pytest.raises(ValueError, match="set dampening to 0"):
        Meter("main", optimizer, model.parameters(), max_norm=1.0)


@pytest.mark.parametrize("refused", [True, False])
def test_buffers_come_back_if_and_only_if_the_step_is_refused(refused: bool) -> None:
    norm = nn.BatchNorm2d(3)
    shadow = Shadow(list(running_statistics(norm).values()))
    norm(torch.randn(4, 3, 2, 2))
    before = copy.deepcopy(norm.state_dict())
    shadow.take()
    norm(torch.randn(4, 3, 2, 2) * torch.nan)
    poisoned = copy.deepcopy(norm.state_dict())
    shadow.put_back(torch.tensor(refused))
    after = norm.state_dict()
    expected = before if refused else poisoned
    assert all(torch.equal(after[name].nan_to_num(9), expected[name].nan_to_num(9)) for name in after)


def test_buffers_of_many_shapes_and_types_come_back_in_place() -> None:
    buffers = [torch.rand(3, 2), torch.tensor(5), torch.rand(()), torch.rand(4).double()]
    before, addresses = [b.clone() for b in buffers], [b.data_ptr() for b in buffers]
    shadow = Shadow(buffers)
    shadow.take()
    for buffer in buffers:
        buffer.add_(1)
    shadow.put_back(torch.tensor(True))
    assert all(map(torch.equal, buffers, before))
    assert [b.data_ptr() for b in buffers] == addresses


def test_running_statistics_are_those_that_a_forward_pass_writes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.InstanceNorm2d(2), nn.GroupNorm(1, 2))
    model.register_buffer("scale_factor", torch.ones(()))
    assert list(running_statistics(model)) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert set(running_statistics(model[1])) == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("weight", [0.001, torch.tensor(0.001), 0.4])
def test_the_average_moves_as_lerp_does(weight: float | Tensor) -> None:
    torch.manual_seed(0)
    ema, live = [torch.randn(50), torch.randn(3, 4)], [torch.randn(50), torch.randn(3, 4)]
    expected = [torch.lerp(e.double(), v.double(), float(weight)) for e, v in zip(ema, live, strict=True)]
    kept = [v.clone() for v in live]
    ema_update(ema, live, weight, torch.tensor(False))
    # 2e-7: one rounding of float32 each for the difference, the product and the sum
    torch.testing.assert_close([e.double() for e in ema], expected, rtol=2e-7, atol=2e-7)
    assert all(map(torch.equal, live, kept))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_refused_average_does_not_change_by_a_bit(poison: float) -> None:
    ema, live = [torch.randn(50)], [torch.full((50,), poison)]
    before = ema[0].clone()
    ema_update(ema, live, 0.5, torch.tensor(True))
    assert torch.equal(ema[0], before)
