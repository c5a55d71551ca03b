"""A state comes back whole, or nothing of it does."""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

State = dict[str, Any]


def wrong_shape(state: State) -> None:
    state["parts"]["model"]["head.weight"] = torch.zeros(2, 6, 3, 3)


def other_dtype(state: State) -> None:
    state["parts"]["ema"]["head.bias"] = state["parts"]["ema"]["head.bias"].double()


def missing_tensor(state: State) -> None:
    del state["parts"]["optimizer"]["denoiser/head.weight/exp_avg_sq"]


def lost_moments(state: State) -> None:
    state["parts"]["optimizer"] = {}


def lost_moments_of_one(state: State) -> None:
    moments = state["parts"]["optimizer"]
    state["parts"]["optimizer"] = {name: one for name, one in moments.items() if "head.weight" not in name}


def unknown_tensor(state: State) -> None:
    state["parts"]["model"]["head.extra"] = torch.zeros(1)


def missing_part(state: State) -> None:
    del state["parts"]["ema"]


def missing_counter(state: State) -> None:
    del state["facts"]["iteration"]


def other_objectives(state: State) -> None:
    state["facts"]["applied"] = {"critic": 3}


def other_data(state: State) -> None:
    state["facts"]["data"]["data"] = "pictures-of-something-else"


def other_memory_of_the_last_guard(state: State) -> None:
    state["facts"]["guards"]["invariants"] = {}


def unknown_generator(state: State) -> None:
    state["facts"]["random"]["numpy"][0] = "PCG64"


def short_generator(state: State) -> None:
    state["facts"]["random"]["python"][1] = [1, 2, 3]


def missing_generator(state: State) -> None:
    del state["facts"]["random"]["numpy"]


def impossible_generator(state: State) -> None:
    state["parts"]["random"]["torch"] = torch.full_like(state["parts"]["random"]["torch"], 255)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong_shape, r"model/head.weight \(2, 6, 3, 3\) for \(2, 6, 5, 5\)"),
        (other_dtype, "ema/head.bias F64 for F32"),
        (missing_tensor, "missing: optimizer/denoiser/head.weight/exp_avg_sq"),
        (lost_moments, r"moments of {'denoiser': \d+} parameters, and holds those of {}"),
        (
            lost_moments_of_one,
            r"moments of {'denoiser': \d+} parameters, and holds those of {'denoiser': \d+}",
        ),
        (unknown_tensor, "not expected: model/head.extra"),
        (missing_part, "part missing: ema"),
        (missing_counter, "iteration"),
        (other_objectives, "updates of .*critic.*this model has .*denoiser"),
        (other_data, "pictures-of-something-else"),
        (other_memory_of_the_last_guard, "constants"),
        (unknown_generator, "random states"),
        (short_generator, "random states"),
        (missing_generator, "random states"),
        (impossible_generator, "random states"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    lab: Any, everything: Any, differences: Any, spoil: Callable[[State], None], words: str
) -> None:
    loop = lab.loop()
    lab.steps(loop, 3)
    saved = deepcopy(everything(loop))
    lab.steps(loop, 6)
    before = everything(loop)
    spoil(saved)
    with pytest.raises(ValueError, match=words):
        loop.state.restore(saved["parts"], saved["facts"])
    assert differences(before, everything(loop)) == []


@pytest.mark.parametrize("model", ["Denoiser", "DenoiserWithCritic"])
def test_everything_comes_back_to_the_bit(lab: Any, everything: Any, differences: Any, model: str) -> None:
    loop = lab.loop(model=getattr(lab, model))
    lab.steps(loop, 20)
    random.gauss(0, 1)  # leaves its second number in the generator
    np.random.normal()
    saved = everything(loop)
    lab.steps(loop, 25)
    random.random(), np.random.rand(), torch.rand(1)
    changed = differences(saved, everything(loop))
    loop.state.restore(saved["parts"], saved["facts"])
    assert differences(saved, everything(loop)) == []
    parts = {name.split("/")[0] for name in changed}
    assert parts == {
        *("model", "ema", "optimizer", "random"),
        *("step", "iteration", "applied", "averaged", "data", "guards"),
    }


def test_generators_go_on_as_if_nothing_had_been_drawn(lab: Any, everything: Any) -> None:
    loop = lab.loop()
    saved = everything(loop)
    drawn = [(random.gauss(0, 1), np.random.normal(), torch.rand(1).item()) for _ in range(3)]
    loop.state.restore(saved["parts"], saved["facts"])
    assert [(random.gauss(0, 1), np.random.normal(), torch.rand(1).item()) for _ in range(3)] == drawn


def test_a_saved_state_takes_no_part_in_the_training_that_follows(
    lab: Any, everything: Any, differences: Any
) -> None:
    loop = lab.loop()
    lab.steps(loop, 5)
    saved = everything(loop)
    kept = deepcopy(saved)
    loop.state.restore(saved["parts"], saved["facts"])
    lab.steps(loop, 9)
    assert differences(saved, kept) == []


def test_steps_count_updates_and_iterations_count_batches(lab: Any) -> None:
    def nan(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.iteration in (3, 5):
            loop.model.head.weight.grad[0, 0, 0, 0] = torch.nan

    loop = lab.loop(observers=[nan])
    lab.steps(loop, 6)
    assert (loop.state.step, loop.state.iteration) == (6, 8)
    assert loop.state.facts()["applied"] == {"denoiser": 6}
    assert loop.state.facts()["data"]["next_batch"] == 8


def test_a_state_on_the_cpu_is_the_same_whatever_other_devices_there_are(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = lab.loop()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()] * 2)
    assert set(loop.state.parts()["random"]) == {"torch"}
