"""Checkpointing and memory format change what a step costs, and nothing of what it computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainer.config import load
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage
from trainer.radiodiff.memory import checkpoint_blocks, convolve_channels_last

TINY = load(Path(__file__).parents[3] / "deploy/configs/tiny.toml")
OBJECTIVES = ["diffusion", "autoencoder", "discriminator"]


def model_for(objective: str) -> Any:
    torch.manual_seed(0)
    if objective != "diffusion":
        return FirstStage(TINY.first_stage.model)
    swin = TINY.diffusion.model.unet.swin.model_copy(update={"stochastic_depth": 0.5})
    unet = TINY.diffusion.model.unet.model_copy(update={"swin": swin})
    return LatentDiffusion(TINY.diffusion.model.model_copy(update={"unet": unet}))


def train_step(model: Any, objective: str) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and the bytes that forward keeps for backward."""
    torch.manual_seed(1)
    batch = {"image": torch.rand(4, 1, 64, 64) * 2 - 1, "cond": torch.rand(4, 3, 64, 64) * 2 - 1}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model.training_step(batch, objective, 200)
    losses.total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses.total.detach(), grads, sum(kept.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_checkpointed_blocks_give_the_same_bits_in_less_memory(objective: str) -> None:
    plain, lean = model_for(objective), model_for(objective)
    assert checkpoint_blocks(lean) > 4
    loss, grads, size = train_step(plain, objective)
    lean_loss, lean_grads, lean_size = train_step(lean, objective)
    assert torch.equal(loss, lean_loss)
    assert grads.keys() == lean_grads.keys()
    assert [name for name, grad in grads.items() if not torch.equal(grad, lean_grads[name])] == []
    for one, other in zip(plain.buffers(), lean.buffers(), strict=True):
        assert torch.equal(one, other), "running statistics are written once"
    if objective != "discriminator":  # which looks at the autoencoder without a graph
        assert lean_size < 0.75 * size


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_channels_last_gives_the_same_losses_and_gradients(objective: str) -> None:
    plain, other = model_for(objective), model_for(objective)
    for module in [*plain.modules(), *other.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # draws its mask in the order of memory
    convolve_channels_last(other)
    loss, grads, _ = train_step(plain, objective)
    same_loss, same_grads, _ = train_step(other, objective)
    torch.testing.assert_close(same_loss, loss, rtol=1e-5, atol=0)
    size = float(torch.nn.utils.get_total_norm(list(grads.values())))
    for name, grad in grads.items():
        # other kernels sum in another order
        torch.testing.assert_close(same_grads[name], grad, rtol=1e-3, atol=1e-5 * size, msg=name)
