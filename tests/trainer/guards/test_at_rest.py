"""What changes between two updates is seen to the bit, named, and told apart by what it can do."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shared.events import Finding, Severity
from trainer.guards.at_rest import AtRest, AtRestConfig
from trainer.guards.base import Verdict, verdict_on

ALL = AtRestConfig(elements=1 << 16)


class Watch:
    """A real training, watched from one update to the next; ``change`` happens in between."""

    def __init__(self, training: Any, config: AtRestConfig = ALL) -> None:
        self.training, self.guard = training, AtRest(config)
        self.guard.rebase(training.watched)
        self.findings: list[Finding] = []

    def step(self, change: Callable[[Any], None] | None = None) -> Finding | None:
        if change is not None:
            with torch.no_grad():
                change(self.training)
        self.training.break_gradients = lambda t: self.guard.compare()
        self.training.update()
        self.guard.remember()
        (vitals,) = self.training.meter.arrived()
        return self.guard.inspect(self.training.view(vitals))


@pytest.fixture
def watch(new_training: Any) -> Watch:
    watch = Watch(new_training())
    for _ in range(3):
        assert watch.step() is None
    return watch


def flip(tensor: torch.Tensor, place: int, bit: int) -> None:
    tensor.view(-1)[place : place + 1].view(torch.int32).bitwise_xor_(
        torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
    )


@pytest.mark.parametrize("bit", [0, 12, 22])
def test_a_flipped_bit_of_a_mantissa_is_told_and_no_more(watch: Watch, bit: int) -> None:
    found = watch.step(lambda t: flip(t.parameters[0], 17, bit))
    assert found is not None
    assert found.severity is Severity.WARNING
    assert "silent data corruption, too small to matter" in found.message
    assert "inner.0.weight[17] went from" in found.message
    assert f"(bit {bit})" in found.message
    assert watch.step() is None


def moment(key: str, change: Callable[[torch.Tensor], Any]) -> Callable[[Any], None]:
    return lambda t: change(t.optimizer.state[t.parameters[0]][key])


CORRUPT = {
    "exponent": (lambda t: flip(t.parameters[0], 17, 30), "inner.0.weight[17]"),
    "sign of one": (lambda t: flip(t.parameters[0], 17, 31), "inner.0.weight[17]"),
    "sign of a tensor": (lambda t: t.parameters[0].neg_(), "288 elements of inner.0.weight"),
    "two elements swapped and one changed": (
        lambda t: t.parameters[0].view(-1)[:3].copy_(t.parameters[0].view(-1)[1:4].clone()),
        "3 elements of inner.0.weight",
    ),
    "first moment": (
        moment("exp_avg", lambda m: m.view(-1)[0].fill_(1e20)),
        "optimizer exp_avg of inner.0.weight[0]",
    ),
    "second moment": (moment("exp_avg_sq", lambda m: m.zero_()), "optimizer exp_avg_sq of inner.0.weight"),
    "step count": (
        moment("step", lambda m: m.zero_()),
        "optimizer step of inner.0.weight[0] went from 3 to 0",
    ),
    "average": (lambda t: next(iter(t.ema.values())).add_(0.5), "EMA 0.weight"),
    "frozen weight": (lambda t: flip(t.model.encoder.weight, 2, 3), "encoder.weight[2]"),
    "constant": (lambda t: flip(t.model.scale_factor, 0, 3), "scale_factor[0]"),
    "not a number": (lambda t: t.parameters[0].view(-1)[0].fill_(torch.nan), "inner.0.weight[0]"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_anything_else_is_corrupt_and_named(watch: Watch, name: str) -> None:
    change, words = CORRUPT[name]
    found = watch.step(change)
    assert found is not None
    assert verdict_on(found) is Verdict.ROLL_BACK
    assert words in found.message


def test_a_change_while_the_gradient_is_computed_is_seen_in_the_same_step(new_training: Any) -> None:
    watch = Watch(new_training())
    watch.step()
    forward = watch.training.model.forward

    def struck(*batch: Any) -> Any:
        losses = forward(*batch)
        with torch.no_grad():
            flip(watch.training.parameters[1], 3, 29)
        return losses

    watch.training.model.forward = struck
    found = watch.step()
    assert found is not None
    assert "inner.0.bias[3]" in found.message


@pytest.mark.parametrize("elements", [0, 100, 1 << 16])
def test_a_healthy_run_is_silent_and_refused_steps_are_no_change(new_training: Any, elements: int) -> None:
    watch = Watch(new_training(), AtRestConfig(elements=elements))
    for step in range(60):
        if step % 7 == 3:
            watch.training.break_batch = lambda x: x * torch.nan
        assert watch.step() is None


def test_a_large_state_is_watched_in_turn_and_all_of_it(new_training: Any) -> None:
    """Wherever the bit flips, and again at each step, it is seen before the round is over."""
    training = new_training()
    state = training.optimizer.state
    for tensor in (training.parameters[2], training.ema["3.weight"]):
        watch = Watch(training, AtRestConfig(elements=100))
        watch.step()
        rounds = len(watch.guard._groups)
        assert rounds > 5
        seen = [watch.step(lambda t, tensor=tensor: flip(tensor, 0, 31)) for _ in range(rounds + 1)]
        assert any(seen)
    assert all("exp_avg" in one for one in state.values())


def test_a_state_that_was_set_is_no_corruption(watch: Watch) -> None:
    def set_back(training: Any) -> None:
        training.parameters[0].mul_(0.5)
        watch.guard.rebase(training.watched)

    assert watch.step(set_back) is None
    assert watch.step() is None


def test_its_turn_comes_back_with_the_run(new_training: Any) -> None:
    watch = Watch(new_training(), AtRestConfig(elements=100))
    for _ in range(4):
        watch.step()
    other = AtRest(AtRestConfig(elements=100))
    other.load_state_dict(json.loads(json.dumps(watch.guard.state_dict())))
    other.rebase(watch.training.watched)
    other.remember()
    watch.guard.remember()
    assert [one.name for one in other._remembered.chunks] == [
        one.name for one in watch.guard._remembered.chunks
    ]


def test_it_reads_nothing_of_a_healthy_step(watch: Watch, device_reads: Any, host_reads: Any) -> None:
    with device_reads, host_reads:
        watch.guard.remember()
        watch.guard.compare()
    watch.guard.remember()
    assert (device_reads.seen, host_reads.seen) == ([], [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_formats_are_watched_by_their_own_bits(dtype: torch.dtype, vitals: Any) -> None:
    from trainer.guards.base import StepView, Watched

    model = torch.nn.Conv2d(3, 5, 3).to(dtype).to(memory_format=torch.channels_last)
    watched = Watched(model, {})
    guard = AtRest(ALL)
    guard.rebase(watched)
    guard.remember()
    bits = {2: torch.int16, 8: torch.int64}[model.weight.element_size()]
    memory = model.weight.detach().as_strided((model.weight.numel(),), (1,)).view(bits)
    memory[7] ^= 1 << 5
    guard.compare()
    found = guard.inspect(StepView(vitals(), (), watched))
    assert found is not None
    assert found.severity is Severity.WARNING
    assert "weight[7]" in found.message
    assert "(bit 5)" in found.message


def view_on_alarm(watch: Watch, vitals: Any) -> Any:
    return watch.training.view(vitals(), alarm=True)


def test_a_state_that_is_about_to_be_kept_is_compared_there_and_then_with_one_read(
    watch: Watch, vitals: Any, host_reads: Any
) -> None:
    view = view_on_alarm(watch, vitals)
    with host_reads:
        assert watch.guard.inspect(view) is None
    assert len(host_reads.seen) == 1
    with torch.no_grad():
        flip(watch.training.parameters[0], 17, 23)
    found = watch.guard.inspect(view)
    assert found is not None
    assert verdict_on(found) is Verdict.ROLL_BACK
    assert "inner.0.weight[17]" in found.message


def test_what_is_harmless_may_be_kept_and_is_told_once(watch: Watch, vitals: Any) -> None:
    with torch.no_grad():
        flip(watch.training.parameters[0], 17, 3)
    assert watch.guard.inspect(view_on_alarm(watch, vitals)) is None
    found = watch.step()
    assert found is not None
    assert found.severity is Severity.WARNING
    assert watch.step() is None


def test_a_flip_between_an_update_and_its_snapshot_is_not_kept(
    lab: Any, everything: Any, differences: Any
) -> None:
    """Doubled by one bit, it is within what all other guards allow."""
    flipped: list[int] = []

    def strike(phase: Any, loop: Any) -> None:
        if phase == "report" and loop.recovery.is_due(loop.state.step + 1) and loop.state.step > 15:
            if not flipped:
                with torch.no_grad():
                    flip(loop.model.head.weight, 5, 23)
            flipped.append(loop.state.step)

    clean = lab.run(folder="clean", steps=60)
    struck = lab.run(folder="struck", steps=60, observers=[strike])
    assert flipped
    (back,) = struck.reporter.record.rollbacks
    assert back.to_step < flipped[0] + 1, "to a snapshot from before it"
    changed = differences(everything(clean), everything(struck))
    assert [name for name in changed if name.startswith(("model", "optimizer", "ema"))] == []
