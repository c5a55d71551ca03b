"""Two ways to trade memory and time in training, applied from outside; a model's numbers stay the same."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.radiodiff.attention import FullAttention, LinearAttention
from trainer.radiodiff.autoencoder import ResBlock, SpatialAttention
from trainer.radiodiff.blocks import ResnetBlock
from trainer.radiodiff.relation import WindowCrossAttention
from trainer.radiodiff.swin import SwinBlock

# none of them holds a BatchNorm, whose statistics a second forward pass would write twice
BLOCKS = (
    *(ResnetBlock, LinearAttention, FullAttention, WindowCrossAttention),  # of the U-Net
    *(ResBlock, SpatialAttention),  # of the autoencoder
    SwinBlock,
)


def checkpoint_blocks(model: nn.Module) -> int:
    """Keep only the inputs of residual and attention blocks for backward, which computes the rest again.

    Costs about a third more time. Gradients are bit-identical: dropout and stochastic depth draw what they
    drew. Answers how many blocks there are.
    """
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]
    return len(blocks)


def convolve_channels_last(model: nn.Module) -> None:
    """Keep the weights of convolutions with the channels innermost, and what they compute follows.

    Not every tensor of four dimensions: the frequency filters' last one is a complex number.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    again = partial(checkpoint, forward, use_reentrant=False)

    @wraps(forward)
    def compute(*args: Any) -> Tensor:
        out: Tensor = again(*args) if torch.is_grad_enabled() else forward(*args)
        return out

    return compute
