"""FSDP2: each rank keeps a share of the weights, their gradients and moments, and of the average.

A child of the model that has trained parameters is gathered whole while it computes, and let go of after
that. What is frozen stays whole on all ranks.
"""

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.errors import ConfigError
from trainer.ranks import Ranks


def shard(model: nn.Module, trained: set[nn.Parameter], ranks: Ranks, device: str) -> None:
    """Shard the ``trained`` parameters of ``model`` in place: before anything refers to them.

    Raises:
        ConfigError: one of them lies in the model itself, which is not called through ``forward``.
    """
    own = [name for name, parameter in model.named_parameters(recurse=False) if parameter in trained]
    if own:
        raise ConfigError(
            f"{own[0]} is a parameter of the model itself and can't be sharded; set parallel to ddp"
        )
    mesh = init_device_mesh(device, (ranks.world,))
    for child in model.children():
        parameters = set(child.parameters())
        if parameters & trained:
            fully_shard(child, mesh=mesh, reshard_after_forward=True, ignored_params=parameters - trained)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, from all ranks if it is sharded: for all of them together."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def part_for(tensor: Tensor, full: Tensor) -> Tensor:
    """Of ``full``, which every rank has, the part that belongs into ``tensor``."""
    if not isinstance(tensor, DTensor):
        return full
    on_device = full.to(tensor.device)
    return distribute_tensor(on_device, tensor.device_mesh, tensor.placements, src_data_rank=None)


def is_sharded(model: nn.Module) -> bool:
    """Whether this rank holds a share of it only."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
