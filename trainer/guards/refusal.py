"""How a step is refused on the device: what it wrote is put back or never written, without a host read.

A fused optimizer reads ``found_inf`` (1: write nothing) and ``grad_scale`` (divide the gradient by it) in the
same kernel that updates the weights. Nothing here multiplies by 0 to hide a value: 0 x NaN is NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, Optimizer


def check_refusable(optimizer: Optimizer, objective: str) -> None:
    """A bad update can only be refused by an optimizer whose kernel reads ``found_inf``.

    Raises:
        ValueError: the optimizer is not fused, or is SGD with dampening (see ``prime``).
    """
    kind = type(optimizer).__name__
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if not (fused and getattr(optimizer, "_step_supports_amp_scaling", False)):
        raise ValueError(
            f"objective {objective!r}: {kind} is not fused, so a bad step cannot be refused on the device; "
            f"use AdamW, Adam or SGD with fused=True, or a HostMeter, which decides on the host"
        )
    if isinstance(optimizer, SGD) and any(g["momentum"] and g["dampening"] for g in optimizer.param_groups):
        raise ValueError(
            f"objective {objective!r}: SGD treats its first step apart when dampening is not 0, which a "
            f"refused first step would spoil; set dampening to 0"
        )


def prime(optimizer: Optimizer) -> None:
    """Give SGD its momentum before the first step; zeros act like none at all.

    Left alone, fused SGD makes them uninitialised in its first step and fills them there: if that step is
    refused, the garbage stays and the second step applies it.
    """
    if not isinstance(optimizer, SGD):
        return
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that a train-mode forward pass writes: the running statistics of normalisation layers."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }


class Shadow:
    """A copy of buffers from before the forward pass, to put them back should the step be refused.

    One flat copy for each dtype and device, so that saving and restoring take a handful of kernels however
    many buffers there are. The buffers are written in place, never replaced.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in buffers:
            groups.setdefault((buffer.dtype, buffer.device), []).append(buffer.detach())
        self._groups = [_Group(group) for group in groups.values()]

    def take(self) -> None:
        """Copy the buffers as they are now."""
        for group in self._groups:
            group.flatten(group.copy)

    def put_back(self, refused: Tensor) -> None:
        """Write the copy into the buffers if ``refused`` (bool scalar on the device); else change nothing."""
        for group in self._groups:
            group.flatten(group.chosen)
            torch.where(refused, group.copy, group.chosen, out=group.chosen)
            torch._foreach_copy_(group.buffers, group.views)


class _Group:
    """Buffers of one dtype and device; room for a flat copy, and for what is chosen, seen as the buffers."""

    def __init__(self, buffers: list[Tensor]) -> None:
        self.buffers = buffers
        sizes = [buffer.numel() for buffer in buffers]
        self.copy, self.chosen = (buffers[0].new_zeros(sum(sizes)) for _ in range(2))
        pieces = torch.split(self.chosen, sizes)
        self.views = [piece.view(buffer.shape) for piece, buffer in zip(pieces, buffers, strict=True)]
        self.flatten(self.copy)

    def flatten(self, into: Tensor) -> None:
        torch.cat([buffer.reshape(-1) for buffer in self.buffers], out=into)


def ema_update(ema: list[Tensor], live: list[Tensor], weight: Tensor | float, refused: Tensor) -> None:
    """Move each average by ``weight`` towards its live tensor, unless the step was refused.

    ``ema += weight * (live - ema)`` in one fused kernel, which reads ``refused`` first: then not a bit
    changes, even if ``live`` is NaN. It is SGD's kernel, whose step ``p - lr * (-g + 1 * p)`` (maximize,
    weight decay 1) is just this with ``p`` the average and ``g`` the live tensor.

    Args:
        ema, live: tensors of one floating dtype on one device, pairwise of one shape and memory format.
        weight: share of the live tensor, 1 - decay.
        refused: bool or 0/1 scalar on the device, as ``Meter.measure`` returns it.
    """
    torch._fused_sgd_(
        ema,
        live,
        [],
        lr=weight,
        maximize=True,
        weight_decay=1.0,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        is_first_step=False,
        found_inf=refused.to(torch.float32),
    )
