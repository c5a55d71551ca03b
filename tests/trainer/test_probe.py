"""The probe tells a state from one that is almost it, and leaves no trace of having looked."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.probe import Probe
from trainer.stage import probe_batch


def another_scale_factor(loop: Any) -> None:
    loop.model.scale_factor.fill_(1.0)


def lost_buffers(loop: Any) -> None:
    loop.model.inner[1].reset_running_stats()


def average_taken_for_the_weights(loop: Any) -> None:
    loop.model.load_state_dict(loop.state.ema.tensors, strict=False)


def weights_taken_for_the_average(loop: Any) -> None:
    for name, tensor in loop.state.ema.tensors.items():
        tensor.copy_(loop.model.state_dict()[name])


def half_precision(loop: Any) -> None:
    for parameter in loop.model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def frozen_part_of_another_run(loop: Any) -> None:
    nn.init.constant_(loop.model.encoder.weight, 0.5)


def look(lab: Any, loop: Any, **kind: Any) -> Probe:
    stage = lab.stage(lab.config(), **kind)
    return Probe(loop.model, loop.state.ema, probe_batch(stage, torch.device("cpu")))


@pytest.mark.parametrize(
    ("spoil", "weights"),
    [
        (another_scale_factor, "live"),
        (lost_buffers, "live"),
        (average_taken_for_the_weights, "live"),
        (weights_taken_for_the_average, "ema"),
        (half_precision, "live"),
        (frozen_part_of_another_run, "live"),
    ],
)
def test_a_state_that_is_almost_the_one_saved_is_told_apart(
    lab: Any, spoil: Callable[[Any], None], weights: str
) -> None:
    loop = lab.loop()
    lab.steps(loop, 40)
    probe = look(lab, loop)
    saved = probe.measure(40)
    assert probe.difference(saved, 40, tolerance=1e-6) is None
    with torch.no_grad():
        spoil(loop)
    found = probe.difference(saved, 40, tolerance=1e-4)
    assert found is not None
    assert found.startswith(f"probe loss ({weights} weights) is ")
    assert f"was {saved[weights]:.6g} when saved" in found


def test_a_loss_that_is_no_number_agrees_with_nothing(lab: Any) -> None:
    loop = lab.loop()
    probe = look(lab, loop)
    with torch.no_grad():
        loop.model.head.bias.fill_(torch.nan)
    assert probe.difference({"live": float("nan"), "ema": 1.0}, 0, tolerance=1e-3) is not None


@pytest.mark.parametrize("model", ["Denoiser", "DenoiserWithCritic"])
def test_looking_leaves_no_trace(lab: Any, everything: Any, differences: Any, model: str) -> None:
    loop = lab.loop(model=getattr(lab, model))
    lab.steps(loop, 15)
    probe = look(lab, loop)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = everything(loop)
    modes = [module.training for module in loop.model.modules()]
    probe.measure(15)
    assert differences(before, everything(loop)) == []
    assert [module.training for module in loop.model.modules()] == modes
    assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_two_looks_see_the_same_and_two_seeds_do_not(lab: Any) -> None:
    loop = lab.loop()
    probe = look(lab, loop)
    torch.manual_seed(1)
    first = probe.measure(0)
    torch.manual_seed(2)
    assert probe.measure(0) == first
    other = Probe(
        loop.model, loop.state.ema, probe_batch(lab.stage(lab.config()), torch.device("cpu")), seed=1
    )
    assert other.measure(0) != first


def test_no_graph_is_built_for_a_look(lab: Any) -> None:
    had_a_graph: list[bool] = []

    class Watched(lab.Denoiser):
        def training_step(self, batch: Any, objective: str, step: int) -> Any:
            losses = super().training_step(batch, objective, step)
            had_a_graph.append(losses.total.requires_grad)
            return losses

    loop = lab.loop(model=Watched)
    look(lab, loop, model=Watched).measure(0)
    assert had_a_graph == [False, False]
