"""Counters that jump are seen by what they say, with no statistics, and none that is right is accused."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from shared.events import Finding
from trainer.guards.base import PlainLoss, StepView, Verdict, Vitals, Watched, verdict_on
from trainer.guards.counters import Counters
from trainer.guards.invariants import Invariants, InvariantsConfig
from trainer.guards.vitals import Meter

Break = Callable[[Any], None]


def watched_of(training: Any, taken: int = 0) -> Watched:
    counts = torch.tensor(taken), torch.tensor(taken)
    return replace(training.watched, applied={"diffusion": training.meter.applied}, averaged=lambda: counts)


def trained(training: Any, steps: int = 5) -> tuple[Counters, Watched]:
    """A guard that has watched this training from its start, and found nothing."""
    guard, watched = Counters(), watched_of(training)
    guard.rebase(watched)
    for _ in range(steps):
        assert judged(guard, training, watched) is None
    return guard, watched


def judged(guard: Counters, training: Any, watched: Watched, *, alarm: bool = False) -> Finding | None:
    training.update()
    (vitals,) = training.meter.arrived()
    return guard.inspect(StepView(vitals, (), watched, alarm))


def reset(training: Any) -> None:
    for state in training.optimizer.state.values():
        state["step"].zero_()


def one_ahead(training: Any) -> None:
    next(iter(training.optimizer.state.values()))["step"].add_(4)


@pytest.mark.parametrize(("damage", "words"), [(reset, "from 6 to 1 in 1 updates"), (one_ahead, "to 11")])
def test_a_step_count_that_goes_back_or_ahead_is_corrupt(
    damage: Break, words: str, new_training: Any
) -> None:
    training = new_training()
    guard, watched = trained(training)
    assert judged(guard, training, watched, alarm=True) is None, "the look that is compared with"
    damage(training)
    found = judged(guard, training, watched, alarm=True)
    assert found is not None
    assert verdict_on(found) is Verdict.ROLL_BACK
    assert words in found.message


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -float("inf")])
def test_a_step_count_that_is_no_number_is_corrupt_and_told(count: float, new_training: Any) -> None:
    training = new_training()
    guard, watched = trained(training)
    assert judged(guard, training, watched, alarm=True) is None
    next(iter(training.optimizer.state.values()))["step"].fill_(count)
    training.break_gradients = lambda t: t.parameters[0].grad.view(-1)[0].fill_(torch.nan)
    found = judged(guard, training, watched, alarm=True)
    assert found is not None
    assert verdict_on(found) is Verdict.ROLL_BACK
    assert f"from 6 to {count:g} in 0 updates" in found.message


@pytest.mark.parametrize("make", [Counters, Invariants])
def test_a_scan_that_comes_again_after_a_rollback_is_made_again(make: Any, new_training: Any) -> None:
    """The step of the last scan is passed a second time, and what it finds then is found."""
    training = new_training()
    watched, guard = watched_of(training), make()
    training.update()
    guard.rebase(watched)
    training.update()
    view = StepView(replace(training.meter.arrived()[-1], iteration=100), (), watched)
    assert guard.inspect(view) is None
    guard.rebase(watched)
    one_ahead(training)
    training.parameters[0].data.mul_(100)
    found = guard.inspect(replace(view, vitals=replace(view.vitals, step=view.vitals.step + 1)))
    assert found is not None
    assert verdict_on(found) is Verdict.ROLL_BACK


def test_a_schedule_that_is_ahead_is_seen_in_the_next_step(new_training: Any) -> None:
    training = new_training()
    guard, watched = trained(training)
    training.meter.applied.add_(1)
    found = judged(guard, training, watched)
    assert found is not None
    assert "6 updates are counted where 5 were applied; its schedule is +1 steps off" in found.message


def test_a_refused_step_counts_for_nobody(new_training: Any) -> None:
    training = new_training()
    guard, watched = trained(training)
    training.break_gradients = lambda t: t.parameters[0].grad.view(-1)[0].fill_(torch.nan)
    for _ in range(3):
        assert judged(guard, training, watched, alarm=True) is None


def test_to_be_asked_twice_about_a_step_is_no_jump(new_training: Any, vitals: Any) -> None:
    training = new_training()
    guard, watched = trained(training)
    view = StepView(vitals(step=5), (), watched, alarm=True)
    assert guard.inspect(view) is None
    assert guard.inspect(view) is None


@pytest.mark.parametrize(("taken", "words"), [(2, "missed 3 of"), (6, "took in what was refused, or twice")])
def test_an_average_that_missed_or_made_up_updates_is_corrupt(
    taken: int, words: str, new_training: Any
) -> None:
    training = new_training()
    counts = [torch.tensor(0), torch.tensor(0)]
    guard = Counters()
    watched = replace(training.watched, averaged=lambda: (counts[0], counts[1]))
    guard.rebase(watched)
    counts[0] += taken
    counts[1] += 5
    found = judged(guard, training, watched, alarm=True)
    assert found is not None
    assert words in found.message


def test_an_optimizer_that_started_fresh_in_a_later_step_is_right(new_training: Any) -> None:
    training = new_training()
    training.meter.restore(1000, 1000)
    trained(training, steps=110)


def test_a_parameter_without_a_gradient_may_fall_behind(vitals: Callable[..., Vitals]) -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer, applied = AdamW(model.parameters(), lr=1e-3), torch.tensor(0)
    watched = Watched(model, {"diffusion": optimizer}, applied={"diffusion": applied})
    guard = Counters()
    for step in range(12):
        optimizer.zero_grad()
        model[0](torch.ones(2)).sum().backward()
        if step % 3 == 0:
            model[1](torch.ones(2)).sum().backward()
        optimizer.step()
        seen = vitals(step=step, iteration=step)
        applied += 1
        assert guard.inspect(StepView(seen, (), watched, alarm=True)) is None


def test_what_it_knows_of_the_next_step_comes_back_with_the_run(new_training: Any) -> None:
    training = new_training()
    guard, watched = trained(training)
    other = Counters()
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    training.meter.applied.add_(2)
    assert judged(other, training, watched) is not None


@pytest.mark.parametrize("names", [("loss", "loss, heads"), ("loss, all", "loss, all, heads")])
def test_two_optimizers_that_step_together_are_both_of_the_objective(names: tuple[str, str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    pair = [
        AdamW(layer.parameters(), lr=lr, fused=True) for layer, lr in ((model[0], 1e-2), (model[2], 3e-2))
    ]
    meter = Meter(names[0], pair, model.parameters(), max_norm=1.0)
    watched = Watched(model, dict(zip(names, pair, strict=True)), applied={names[0]: meter.applied})
    guards = Invariants(InvariantsConfig(scan_every=20)), Counters(InvariantsConfig(scan_every=20))
    for guard in guards:
        guard.rebase(watched)
    for number in range(200):
        loss = model(torch.randn(16, 4)).square().mean()
        loss.backward()
        meter.measure(PlainLoss(loss))
        meter.step()
        meter.settle(1e-2)
        model.zero_grad()
        (seen,) = meter.arrived()
        assert [guard.inspect(StepView(seen, (), watched)) for guard in guards] == [None, None], number
    state = pair[1].state[model[2].weight]
    state["step"].add_(40)
    found = guards[1].inspect(StepView(replace(seen, refused=True, step=200), (), watched, alarm=True))
    assert found is not None
    assert "step count of 2.weight went from 181 to 240 in 19 updates" in found.message


class Elsewhere(Tensor):
    """A tensor of another device, which as there can't be stacked with one of the host until it is read."""

    device = torch.device("cuda", 0)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.stack and not all(isinstance(one, cls) for one in args[0]):
            raise RuntimeError("Expected all tensors to be on the same device")
        answer = super().__torch_function__(func, types, args, kwargs)
        return answer.as_subclass(Tensor) if func is Tensor.cpu else answer


def test_steps_counted_on_the_host_are_read_beside_updates_counted_on_a_gpu(new_training: Any) -> None:
    training = new_training()
    training.update()
    training.meter.arrived()
    applied = {"diffusion": training.meter.applied.as_subclass(Elsewhere)}
    with pytest.raises(RuntimeError, match="same device"):
        torch.stack([applied["diffusion"], torch.tensor(1)])
    guard, watched = Counters(), replace(training.watched, applied=applied)
    guard.rebase(watched)
    assert judged(guard, training, watched, alarm=True) is None
    one_ahead(training)
    found = judged(guard, training, watched, alarm=True)
    assert found is not None
    assert "to 7 in 1 updates" in found.message
