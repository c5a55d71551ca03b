"""What somebody changes between two steps is put back before it is used: not a bit of the run differs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from trainer.held import HeldModes, HeldSettings


def rate_is(value: float) -> Callable[[Any], None]:
    def change(loop: Any) -> None:
        loop.objectives[0].optimizer.param_groups[0]["lr"] = torch.tensor(value)

    return change


def overwritten_rate(loop: Any) -> None:
    loop.objectives[0].schedule.lr.fill_(1.0)


def decay_and_betas(loop: Any) -> None:
    loop.objectives[0].optimizer.param_groups[0].update(weight_decay=0.5, betas=(0.0, 0.5))


def evaluating(loop: Any) -> None:
    loop.model.eval()


def frozen(loop: Any) -> None:
    loop.model.head.requires_grad_(False)


def thawed(loop: Any) -> None:
    loop.model.encoder.requires_grad_(True)


CHANGES = [
    (rate_is(1.0), "schedule", "lr of group 0 was 1;"),
    (rate_is(math.nan), "schedule", "lr of group 0 was nan;"),
    (decay_and_betas, "schedule", "betas of group 0 was (0.0, 0.5); weight_decay of group 0 was 0.5;"),
    (evaluating, "modes", "had left training mode"),
    (frozen, "modes", "head.weight, head.bias had changed whether a gradient is wanted"),
    (thawed, "modes", "encoder.weight, encoder.bias had changed whether a gradient is wanted"),
]


@pytest.mark.parametrize(("change", "guard", "words"), CHANGES)
def test_a_setting_that_is_changed_is_put_back_and_told_and_leaves_no_trace(
    lab: Any, everything: Any, differences: Any, change: Any, guard: str, words: str
) -> None:
    def strike(phase: Any, loop: Any) -> None:
        if phase == "fetch" and loop.state.step == 7:
            change(loop)

    changed, twin = lab.run("changed", steps=12, observers=[strike]), lab.run("twin", steps=12)
    assert differences(everything(changed), everything(twin)) == []
    (told,) = changed.reporter.record.findings
    assert (told.guard, told.step) == (guard, 7)
    assert words in told.message
    assert "put back before it was used" in told.message


def test_a_rate_that_is_overwritten_where_it_lies_never_reaches_an_update(
    lab: Any, everything: Any, differences: Any
) -> None:
    def strike(phase: Any, loop: Any) -> None:
        if phase == "fetch" and loop.state.step == 7:
            overwritten_rate(loop)

    changed, twin = lab.run("changed", steps=12, observers=[strike]), lab.run("twin", steps=12)
    assert differences(everything(changed), everything(twin)) == []


def test_an_autoencoder_that_must_not_train_is_put_back_to_evaluation() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    held = HeldModes(model)
    model.train()
    assert held.put_back() == ["1 had left evaluation mode"]
    assert (model.training, model[1].training) == (True, False)
    assert held.put_back() == []


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: AdamW(p, lr=torch.tensor(0.1), fused=True),
        lambda p: SGD([{"params": p[:1], "lr": 0.5}, {"params": p[1:]}], lr=0.1, momentum=0.9),
    ],
)
def test_settings_that_stay_are_never_told(optimizer: Any) -> None:
    model = nn.Linear(2, 2)
    made = optimizer(list(model.parameters()))
    held = HeldSettings(made)
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        made.step()
        assert held.put_back() == []
