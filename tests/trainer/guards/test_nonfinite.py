import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shared.events import Severity
from trainer.guards.base import Verdict, Vitals
from trainer.guards.nonfinite import Nonfinite, NonfiniteConfig, find_nonfinite_batch


def poison(training: Any, where: str, value: float) -> str:
    """Put ``value`` into one kept tensor; answers the name it must be found under."""
    weight = training.parameters[0]
    tensors = {
        "inner.0.weight": weight.data,
        "inner.1.running_var": training.model.inner[1].running_var,
        "scale_factor": training.model.scale_factor,
        "diffusion optimizer exp_avg of inner.0.weight": training.optimizer.state[weight]["exp_avg"],
        "diffusion optimizer exp_avg_sq of inner.0.weight": training.optimizer.state[weight]["exp_avg_sq"],
        "EMA 0.weight": training.ema["0.weight"],
    }
    tensors[where].view(-1)[0] = value
    return where


KEPT = [
    "inner.0.weight",
    "inner.1.running_var",
    "scale_factor",
    "diffusion optimizer exp_avg of inner.0.weight",
    "diffusion optimizer exp_avg_sq of inner.0.weight",
    "EMA 0.weight",
]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", KEPT)
def test_a_scan_names_the_tensor_that_is_corrupt(
    where: str, value: float, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    training.step()
    poison(training, where, value)
    finding = Nonfinite().inspect(training.view(vitals(), alarm=True))
    assert finding is not None
    assert finding.severity is Severity.CRITICAL
    assert finding.reading["first"] == where
    assert f"{where} has 1 of " in finding.message


def test_values_that_no_weight_can_have_are_corrupt_too(
    new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    training = new_training()
    training.step()
    poison(training, "inner.0.weight", 1e30)
    finding = Nonfinite().inspect(training.view(vitals(), alarm=True))
    assert finding is not None
    assert "holds values beyond" in finding.message


def test_a_scan_counts_what_it_does_not_name(new_training: Any, vitals: Callable[..., Vitals]) -> None:
    training = new_training()
    training.step()
    for where in KEPT:
        poison(training, where, math.nan)
    finding = Nonfinite().inspect(training.view(vitals(), alarm=True))
    assert finding is not None
    assert finding.message.endswith("and 3 more tensors")
    assert finding.reading["bad_tensors"] == 6


def test_a_scan_comes_on_schedule_once_an_iteration(new_training: Any, vitals: Callable[..., Vitals]) -> None:
    training, guard = new_training(), Nonfinite(NonfiniteConfig(scan_every=10))
    training.step()
    poison(training, "scale_factor", math.nan)
    seen = [guard.inspect(training.view(vitals(iteration=i, objective=o))) for i in range(21) for o in "ab"]
    assert [index // 2 for index, finding in enumerate(seen) if finding] == [10, 20]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": math.nan, "reason": "nonfinite_loss"}, "loss is nan"),
        ({"grad_norm": math.inf, "reason": "nonfinite_grad"}, "gradient norm is inf"),
        (
            {"loss": math.nan, "parts": {"kl": math.nan, "l1": 0.5}, "reason": "nonfinite_loss"},
            "part kl is nan",
        ),
    ],
)
def test_a_refused_step_is_explained(
    changes: dict[str, Any], words: str, new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    finding = Nonfinite().inspect(new_training().view(vitals(refused=True, **changes)))
    assert finding is not None
    assert finding.severity is Severity.ERROR
    assert words in finding.message
    assert "part l1" not in finding.message
    assert "refused on the device; the batch held map_0, map_1, map_2 and 5 more" in finding.message


def test_the_sample_whose_loss_is_nan_is_named(new_training: Any, vitals: Callable[..., Vitals]) -> None:
    step = vitals(refused=True, loss=math.nan, reason="nonfinite_loss", sample_losses=(1.0, math.nan, 2.0))
    finding = Nonfinite().inspect(new_training().view(step))
    assert finding is not None
    assert finding.reading["sample"] == "map_1"


def test_a_logged_part_that_is_nan_is_told_when_it_begins(
    new_training: Any, vitals: Callable[..., Vitals]
) -> None:
    guard, view = Nonfinite(), new_training().view
    seen = [
        guard.inspect(view(vitals(parts={"kl": value}))) for value in (1, math.nan, math.nan, 1, math.nan)
    ]
    assert [finding is not None for finding in seen] == [False, True, False, False, True]
    assert seen[1] is not None
    assert seen[1].severity is Severity.WARNING


def test_a_spike_is_not_its_business(new_training: Any, vitals: Callable[..., Vitals]) -> None:
    view = new_training().view(vitals(refused=True, reason="spike", loss=1e9), alarm=True)
    assert Nonfinite().inspect(view) is None


def test_one_nan_pixel_costs_one_step_and_nothing_else(new_training: Any) -> None:
    """The forward pass poisons BatchNorm before anyone knows; nothing that is kept may keep it."""
    training = new_training()
    for _ in range(5):
        training.step()
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    averages = {name: tensor.clone() for name, tensor in training.ema.items()}
    training.break_batch = lambda x: x.index_fill(0, torch.tensor(3), torch.nan)
    judgement = training.step()
    assert judgement.verdict is Verdict.SKIP_STEP
    assert [finding.guard for finding in judgement.findings] == ["nonfinite"]
    assert judgement.findings[0].reading["sample"] == "map_0"  # BatchNorm spreads it over the batch
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.model.state_dict().items())
    assert all(torch.equal(tensor, averages[name]) for name, tensor in training.ema.items())
    assert training.step().verdict is Verdict.PROCEED


def test_a_laundered_nan_weight_is_found(new_training: Any) -> None:
    """``nan_to_num`` keeps the loss finite; the gradient or the scan gives the weight away."""
    training = new_training()
    training.step()
    training.model.inner.register_forward_hook(lambda module, args, out: out.nan_to_num())
    poison(training, "inner.0.weight", math.nan)
    judgement = training.step()
    assert judgement.verdict is Verdict.ROLL_BACK
    assert judgement.findings[-1].severity is Severity.CRITICAL


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (
            {"image": torch.tensor([[0.0, math.nan]])},
            r"image: 1 of 2 values are not finite, the first at \(0, 1\): nan",
        ),
        ({"cond": np.array([math.inf, 1.0])}, r"cond: 1 of 2 .* inf"),
        ({"a": [{"b": torch.full((2,), -math.inf)}]}, r"a\[0\]\.b: 2 of 2 .* -inf"),
        ({"image": torch.tensor([255.0, -1.0])}, r"image: values reach 255, beyond the limit of 100"),
        ({"half": torch.tensor([math.nan], dtype=torch.bfloat16)}, r"half: 1 of 1"),
        ({"double": torch.tensor([1e300], dtype=torch.float64)}, r"values reach 1e\+300"),
        (math.nan, r"value: 1 of 1"),
        ({"image": torch.zeros(0)}, r"image: it is empty"),
    ],
)
def test_a_bad_batch_is_described(item: object, words: str) -> None:
    assert re.search(words, find_nonfinite_batch(item) or "")


@pytest.mark.parametrize(
    "item",
    [
        {"image": torch.linspace(-1, 1, 9), "ids": ["map_1", "map_2"], "index": torch.tensor([70_000])},
        {"mask": np.array([True, False]), "nothing": None, "count": 10**9},
        [],
    ],
)
def test_a_good_batch_is_not_described(item: object) -> None:
    assert find_nonfinite_batch(item) is None
