"""A plain loop's state goes to checkpoints and comes back from the newest that is what was saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from trainer.checkpoint import CheckpointRing, NoValidCheckpoint, RingConfig, stage
from trainer.guards.base import PlainLoss, StepView
from trainer.guards.host_meter import HostMeter
from trainer.guards.invariants import Invariants
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.panel import Panel
from trainer.guards.vitals import Meter
from trainer.restoring import Restoring
from trainer.state import TrainState


class Plain:
    """A model, one or more optimizers that step together, and nothing of ours but the meter and the state."""

    def __init__(self, folder: Path, make: Callable[[nn.Module], list[Optimizer]]) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        optimizers = make(self.model)
        kind = Meter if all(one.param_groups[0].get("fused") for one in optimizers) else HostMeter
        self.meter = kind("loss", optimizers, self.model.parameters(), max_norm=1.0)
        named = dict(zip(("loss", "another"), optimizers, strict=False))
        panel = Panel([Nonfinite(), Invariants()])
        self.state = TrainState(self.model, named, {"loss": self.meter}, panel)
        self.ring = CheckpointRing(folder, RingConfig())
        self.state.rebase()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            x = torch.randn(16, 4)
            self.meter.protect()
            loss = nn.functional.mse_loss(self.model(x), x.sum(1, keepdim=True))
            loss.backward()
            self.meter.measure(PlainLoss(loss))
            self.meter.step()
            self.meter.settle(1e-2)
            self.state.iteration += 1
            for vitals in self.meter.arrived():
                assert not self.state.panel.judge(StepView(vitals, (), self.state.watched)).findings
                self.state.step += not vitals.refused
            self.model.zero_grad()

    def save(self) -> None:
        self.ring.save(self.state.parts(), self.state.facts(), step=self.state.step, attempt=1)

    def everything(self) -> tuple[Any, Any]:
        return stage(self.state.parts()), self.state.facts()


def one(model: nn.Module) -> list[Optimizer]:
    return [AdamW(model.parameters(), lr=1e-2, fused=True)]


def two(model: nn.Module) -> list[Optimizer]:
    layers = list(model)  # type: ignore[call-overload]
    first, rest = layers[0].parameters(), nn.ModuleList(layers[1:]).parameters()
    return [AdamW(first, lr=1e-2, fused=True), SGD(rest, lr=1e-2, momentum=0.9, fused=True)]


def unfused(model: nn.Module) -> list[Optimizer]:
    return [Adam(model.parameters(), lr=1e-2, amsgrad=True)]


def counting(model: nn.Module) -> list[Optimizer]:
    return [Counting(model.parameters(), lr=1e-2)]


class Counting(RMSprop):
    """Keeps a number beside its tensors."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for moments in self.state.values():
            moments["count"] = moments.get("count", 0) + 1


def is_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    (parts, facts), (others, other_facts) = one, other
    tensors: list[tuple[Tensor, Tensor]] = [
        (tensor, others[part][name]) for part in parts for name, tensor in parts[part].items()
    ]
    return facts == other_facts and all(torch.equal(mine, its) for mine, its in tensors)


@pytest.mark.parametrize("make", [one, two])
def test_a_plain_loop_goes_on_from_its_newest_checkpoint_to_the_bit(tmp_path: Path, make: Any) -> None:
    plain = Plain(tmp_path, make)
    plain.train(6)
    plain.save()
    plain.train(5)
    there = plain.everything()
    loaded = Restoring(plain.ring, plain.state).newest()
    assert (loaded.record.step, plain.state.step, plain.state.iteration, int(plain.meter.applied)) == (6,) * 4
    plain.state.rebase()
    plain.train(5)
    assert is_same(plain.everything(), there)


@pytest.mark.parametrize("make", [one, two, unfused, counting])
def test_a_new_process_goes_on_from_the_newest_checkpoint_to_the_bit(tmp_path: Path, make: Any) -> None:
    first = Plain(tmp_path, make)
    first.train(6)
    first.save()
    first.train(5)
    second = Plain(tmp_path, make)
    assert Restoring(second.ring, second.state).newest().record.step == 6
    second.state.rebase()
    second.train(5)
    assert is_same(second.everything(), first.everything())


@pytest.mark.parametrize("other", [two, unfused])
def test_moments_of_another_optimizer_are_refused_and_nothing_changes(tmp_path: Path, other: Any) -> None:
    first = Plain(tmp_path, one)
    first.train(6)
    first.save()
    second = Plain(tmp_path, other)
    fresh = second.everything()
    with pytest.raises(NoValidCheckpoint):
        Restoring(second.ring, second.state).newest()
    assert is_same(second.everything(), fresh)


def test_a_lost_moment_is_missed_by_a_new_process_too(tmp_path: Path) -> None:
    first = Plain(tmp_path, one)
    first.train(2)
    parts, facts = first.state.parts(), first.state.facts()
    kept = {name: one for name, one in parts["optimizer"].items() if not name.startswith("loss/3.bias/")}
    second = Plain(tmp_path / "second", one)
    with pytest.raises(ValueError, match="moments of"):
        second.state.restore({**parts, "optimizer": kept}, facts)
    assert not any(optimizer.state for optimizer in second.state.optimizers.values())


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    plain = Plain(tmp_path, one)
    for _ in range(2):
        plain.train(3)
        plain.save()
    tensors = next((tmp_path / "step-00000006-attempt-1").glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-4])
    assert Restoring(plain.ring, plain.state).newest().record.step == 3
    assert plain.state.step == 3


def test_the_state_stays_what_it_is_where_no_checkpoint_proves_itself(tmp_path: Path) -> None:
    class Doubt:
        def difference(self, *_: Any) -> str:
            return "it has another loss"

    plain = Plain(tmp_path, one)
    plain.train(3)
    plain.ring.save(plain.state.parts(), {**plain.state.facts(), "probe": {}}, step=3, attempt=1)
    plain.train(4)
    here = plain.everything()
    doubting: Any = Doubt()
    with pytest.raises(NoValidCheckpoint, match="another loss"):
        Restoring(plain.ring, plain.state, doubting).newest_or_stay()
    assert is_same(plain.everything(), here)
