"""A batch in pieces gives the gradients of the whole; half precision trains, resumes and reads nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from shared.events import StepSkipped
from trainer.checkpoint import LadderConfig
from trainer.config import TrainingConfig, load
from trainer.data.batches import LoadingConfig
from trainer.guards.pieces import combine, piece_of
from trainer.precision import computing_in
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.recovery import RecoveryConfig

TINY = load(Path(__file__).parents[2] / "deploy/configs/tiny.toml")


def maps(count: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"image": (count, 1, 64, 64), "cond": (count, 3, 64, 64)}
    batch = {key: torch.rand(shape, generator=generator) * 2 - 1 for key, shape in shapes.items()}
    return {**batch, "ids": [f"map_{number}" for number in range(count)]}


def gradients(model: Any, objective: str, pieces: int, **draws: torch.Tensor) -> tuple[Any, dict[str, Any]]:
    """Losses and gradients of a batch in so many pieces; no BatchNorm is in training mode."""
    model.eval().zero_grad()
    batch, told = {**maps(4), **draws}, []
    for index in range(pieces):
        piece = dict(piece_of(batch, index, pieces))
        handed_in = {key: piece.pop(key) for key in draws}
        told.append(model.training_step(piece, objective, 0, **handed_in))
        torch.autograd.backward(told[-1].total / pieces)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return combine(told), grads


@pytest.mark.parametrize("objective", ["diffusion", "autoencoder", "discriminator"])
def test_one_piece_and_four_give_the_same_losses_and_gradients(objective: str) -> None:
    torch.manual_seed(0)
    is_diffusion = objective == "diffusion"
    model = LatentDiffusion(TINY.diffusion.model) if is_diffusion else FirstStage(TINY.first_stage.model)
    draws = {"posterior_noise": torch.randn(4, 3, 16, 16)}
    if is_diffusion:
        draws |= {"noise": torch.randn(4, 3, 16, 16), "times": torch.rand(4) * 0.6 + 0.3}
    whole, in_whole = gradients(model, objective, 1, **draws)
    pieces, in_pieces = gradients(model, objective, 4, **draws)
    torch.testing.assert_close(pieces.total, whole.total.detach(), rtol=1e-5, atol=1e-6)
    assert pieces.parts.keys() == whole.parts.keys()
    if whole.per_sample is not None:
        torch.testing.assert_close(pieces.per_sample, whole.per_sample, rtol=1e-4, atol=1e-5)
    assert in_whole.keys() == in_pieces.keys()
    size = torch.stack([grad.norm() for grad in in_whole.values()]).norm()
    for name, grad in in_whole.items():
        # float32 sums in another order
        torch.testing.assert_close(in_pieces[name], grad, rtol=1e-3, atol=1e-6 * float(size), msg=name)


@pytest.mark.parametrize("model", ["Denoiser", "DenoiserWithCritic"])
def test_a_step_in_pieces_is_one_update(lab: Any, model: str) -> None:
    diary = lab.Diary()
    loop = lab.loop(model=getattr(lab, model), micro_batches=2, observers=[diary])
    loop.step()
    turn = ["forward", "backward", "forward", "backward", "measure", "update"]
    assert diary.phases == ["fetch", *turn * len(loop.objectives), "report"]
    assert (loop.state.step, loop.state.facts()["applied"][loop.objective.name]) == (1, 1)
    assert len(loop.last[0].sample_losses) == len(loop.last[0].times) == 4
    assert [len(ids) for ids in diary.batches] == [4]


def test_a_batch_that_does_not_divide_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValidationError, match="batch_size 6 can't be divided into 4 equal micro_batches"):
        TrainingConfig(loading=LoadingConfig(batch_size=6), micro_batches=4)


KINDS = [("fp32", 2), ("bf16", 1), ("fp16", 1), ("fp16", 2)]


@pytest.mark.parametrize(("precision", "pieces"), KINDS)
def test_a_killed_run_resumes_to_the_same_bits(
    lab: Any, everything: Any, differences: Any, precision: str, pieces: int
) -> None:
    def overflow(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.iteration in (6, 33) and precision == "fp16":
            loop.model.head.weight.grad[0, 0, 0, 0] = torch.inf

    kind = {"steps": 40, "precision": precision, "micro_batches": pieces}
    with pytest.raises(lab.Killed):
        lab.run("killed", observers=[overflow, lab.kill_at(37)], **kind)
    resumed = lab.run("killed", seed=None, observers=[overflow], **kind)
    twin = lab.run("twin", observers=[overflow], **kind)
    assert differences(everything(resumed), everything(twin)) == []
    if precision == "fp16":
        scale, _ = resumed.state.facts()["loss_scales"]["denoiser"]
        assert scale <= 65536 / 4, "both overflows halved it"


def test_a_run_in_another_memory_format_resumes_to_the_same_bits(
    lab: Any, everything: Any, differences: Any
) -> None:
    kind = {"steps": 40, "channels_last": True, "gradient_checkpointing": True}
    with pytest.raises(lab.Killed):
        lab.run("killed", observers=[lab.kill_at(37)], **kind)
    resumed, twin = lab.run("killed", seed=None, **kind), lab.run("twin", **kind)
    weight = resumed.model.head.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert differences(everything(resumed), everything(twin)) == []


def test_overflows_are_told_but_never_counted_towards_the_end(lab: Any, events: list[Any]) -> None:
    def overflow(phase: Any, loop: Any) -> None:
        if phase == "measure" and loop.state.iteration <= 10:
            loop.model.head.weight.grad[0, 0, 0, 0] = torch.inf

    config = lab.config(recovery=RecoveryConfig(ladder=LadderConfig(max_refused_in_row=5)))
    loop = lab.run(config=config, steps=12, precision="fp16", observers=[overflow])
    told = [event.reason for event in events if isinstance(event, StepSkipped)]
    assert told == ["overflow"] * 10
    assert loop.reporter.record.findings == []
    assert loop.state.facts()["loss_scales"]["denoiser"] == [64.0, 12]


def test_going_back_takes_the_loss_scale_along(lab: Any) -> None:
    loop = lab.loop(precision="fp16")
    lab.steps(loop, 25)
    there = loop.state.facts()["loss_scales"]
    lab.steps(loop, 33)
    loop.objective.meter.loss_scale.scale.fill_(2.0)
    loop.go_back("no reason", "guard")
    assert (loop.state.step, loop.state.facts()["loss_scales"]) == (25, there)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
@pytest.mark.parametrize("objective", ["diffusion", "autoencoder", "discriminator"])
def test_half_precision_rounds_and_changes_nothing_else(
    objective: str, precision: Any, tolerance: float
) -> None:
    torch.manual_seed(0)
    is_diffusion = objective == "diffusion"
    model = LatentDiffusion(TINY.diffusion.model) if is_diffusion else FirstStage(TINY.first_stage.model)
    norms = []
    for one in ("fp32", precision):
        torch.manual_seed(1)
        model.zero_grad()
        with computing_in(one, torch.device("cpu")):
            losses = model.training_step(maps(4), objective, 200)
        assert losses.total.dtype == torch.float32
        assert {part.dtype for part in losses.parts.values()} == {torch.float32}
        losses.total.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.stack([losses.total.detach(), torch.nn.utils.get_total_norm(grads)]))
    torch.testing.assert_close(norms[1], norms[0], rtol=tolerance, atol=0)
