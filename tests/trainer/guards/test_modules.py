"""Norms of the gradient by module: the parts add up to the whole, and a fault shows where it is."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from trainer.guards.loss_scale import LossScale
from trainer.guards.modules import EVERY, ModuleNorms, modules_of
from trainer.guards.vitals import Meter

DEEP = [f"net.blocks.{block}.{layer}.{part}" for block in (0, 1) for layer in "ab" for part in ("w", "bias")]


@pytest.mark.parametrize(
    ("most", "modules"),
    [
        (1, ["net.blocks"]), (2, ["net.blocks.0", "net.blocks.1"]),
        (3, ["net.blocks.0.a", "net.blocks.0.b", "net.blocks.1"]),
        (99, ["net.blocks.0.a", "net.blocks.0.b", "net.blocks.1.a", "net.blocks.1.b"]),
    ],
)  # fmt: skip
def test_modules_are_taken_apart_as_far_as_they_fit_and_layers_stay_whole(
    most: int, modules: list[str]
) -> None:
    found = modules_of(DEEP, most)
    assert sorted(set(found.values())) == modules
    assert all(name.startswith(f"{module}.") for name, module in found.items())


def test_a_parameter_of_the_model_itself_is_a_row_of_its_own() -> None:
    assert modules_of(["scale", "head.weight", "head.bias"]) == {
        "scale": "scale", "head.weight": "head", "head.bias": "head"
    }  # fmt: skip


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def measured(losses: Any, steps: int = 1, **options: Any) -> list[dict[str, float]]:
    model = a_model()
    parameters = list(model.parameters())
    optimizer = AdamW(parameters, lr=0.0, fused=True)
    meter = Meter(
        "main", optimizer, parameters, max_norm=0.1, modules=ModuleNorms(model, parameters), **options
    )
    for _ in range(steps):
        optimizer.zero_grad()
        total = model(torch.ones(3, 4)).square().mean()
        scale = meter.loss_scale.scale if meter.loss_scale is not None else torch.ones(())
        (total * scale).backward()
        meter.measure(losses(total, per_sample=torch.ones(3), times=torch.ones(3) / 2))
        optimizer.step()
        meter.settle(1e-3)
    return [one.module_norms for one in meter.arrived(wait=True)]


def test_each_norm_is_that_of_its_modules_gradient_before_clipping(losses: Any) -> None:
    (found,) = measured(losses)
    model = a_model()
    model(torch.ones(3, 4)).square().mean().backward()
    expected = {
        name: math.sqrt(sum(float(p.grad.double().square().sum()) for p in model[int(name)].parameters()))
        for name in ("0", "2")
    }
    assert found == pytest.approx(expected, rel=1e-5)  # float32 sums of some ten squares
    assert sum(expected.values()) > 0.2, "clipping would show"


def test_norms_are_measured_in_every_twentieth_step_only(losses: Any) -> None:
    assert [bool(found) for found in measured(losses, steps=EVERY + 2)] == [
        True, *[False] * (EVERY - 1), True, False
    ]  # fmt: skip


def test_the_loss_scale_is_taken_out(losses: Any) -> None:
    (plain,), (scaled,) = measured(losses), measured(losses, loss_scale=LossScale(torch.device("cpu")))
    assert scaled == pytest.approx(plain, rel=1e-5)


def test_a_nan_stays_in_its_module_and_a_module_without_gradient_has_none() -> None:
    model = a_model()
    norms = ModuleNorms(model, list(model.parameters()))
    model[2].weight.grad = torch.full((2, 8), torch.nan)
    first, last = norms.measure().tolist()
    assert first == 0.0
    assert math.isnan(last)


def test_the_look_reads_nothing_from_the_device(device_reads: Any, host_reads: Any) -> None:
    model = a_model()
    norms = ModuleNorms(model, list(model.parameters()))
    model(torch.ones(3, 4)).square().mean().backward()
    with device_reads, host_reads:
        found = norms.measure()
    assert (device_reads.seen, host_reads.seen) == ([], [])
    assert (found > 0).all()
