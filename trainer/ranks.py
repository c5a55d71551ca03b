"""Several processes that train one model: who is who, and how they come to know and do the same.

torchrun starts them and says in the environment which is which. On CPUs they talk through gloo, on GPUs
through NCCL; what the hosts tell each other goes through gloo there, too, so that it waits for no device.

All that decides about the run is the same on all ranks: the same numbers, judged in the same order. What one
rank alone can know (a signal, a command, what a scan of its own weights found) is pooled at a step boundary.
"""

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from trainer.errors import ConfigError, RankLost, TrainerError

T = TypeVar("T")


class Ranks:
    """This process among those of its run. ``Ranks()`` is a run of one process, where nothing is sent.

    Every call but the properties is for all ranks together, in the same order, or they wait for each other
    until the timeout.

    Raises, each of them:
        RankLost: another rank has gone, or did not answer in time.
    """

    def __init__(self, number: int = 0, world: int = 1) -> None:
        self.number, self.world = number, world

    @property
    def are_many(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that reports, and writes checkpoints."""
        return self.number == 0

    def add(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over the ranks: a NaN anywhere is one everywhere, unlike with MAX."""
        if self.are_many:
            with self._together():
                dist.all_reduce(tensor)

    def pool(self, said: Sequence[T]) -> list[list[T]]:
        """What each rank has to say, by rank. While nobody says anything it costs one integer of each."""
        if not self.are_many:
            return [list(said)]
        counts = self.gather(torch.tensor([len(said)]))
        return self.tell_all(list(said)) if bool(counts.any()) else [[] for _ in range(self.world)]

    def gather(self, tensor: Tensor) -> Tensor:
        """The equally long tensors of all ranks, in host memory: (world, N)."""
        gathered = [torch.empty_like(tensor) for _ in range(self.world)]
        if not self.are_many:
            return tensor[None]
        with self._together():
            dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def tell_all(self, mine: T) -> list[T]:
        """What all ranks have, by rank; plain objects."""
        if not self.are_many:
            return [mine]
        said: list[T | None] = [None] * self.world
        with self._together():
            dist.all_gather_object(said, mine)
        return said  # type: ignore[return-value]

    def of_first(self, value: Callable[[], T]) -> T:
        """What ``value`` answers on the first rank, on all of them. If it raises there, all raise.

        Raises:
            TrainerError: the first rank's, with its words.
        """
        if not self.are_many:
            return value()
        answer: T | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                answer = value()
            except Exception as error:
                failure = error
        # the error as words: not every exception survives being pickled
        words = None if failure is None else (_exit_class(failure), str(failure))
        answer, words = self._from_first((answer, words))
        if failure is not None:
            raise failure
        if words is not None:
            raise words[0](words[1])
        return answer  # type: ignore[return-value]

    def make_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """Give all ranks the first one's values, in place."""
        if self.are_many:
            with self._together(), torch.no_grad():
                for tensor in tensors.values():
                    dist.broadcast(tensor, 0)

    def _from_first(self, value: T) -> T:
        box = [value]
        with self._together():
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch has no narrower one for a peer that has gone
            raise RankLost(self.number, self.world, str(error)) from error


def rank_here() -> int:
    """This process's number among those that torchrun started; 0 in a process that was started by itself."""
    return _from_environment("RANK", 0)


@contextmanager
def joined(device: str, timeout_s: float) -> Iterator[tuple[Ranks, str]]:
    """Meet the other ranks, if torchrun started several; answers who this one is, and its own device.

    Raises:
        ConfigError: the environment is not torchrun's, or the device can't be shared out.
        RankLost: they did not all come within ``timeout_s``.
    """
    world = _from_environment("WORLD_SIZE", 1)
    if world == 1:
        yield Ranks(), device
        return
    ranks, own = Ranks(rank_here(), world), _device_of(device, _from_environment("LOCAL_RANK", 0))
    backend = "gloo" if own == "cpu" else "cpu:gloo,cuda:nccl"
    if own != "cpu":
        torch.cuda.set_device(own)
    with ranks._together():
        try:
            _meet(backend, ranks, timedelta(seconds=timeout_s))
        except ValueError as error:
            raise ConfigError(
                f"{world} ranks were asked for, but they can't meet: {error}; start them with torchrun"
            ) from error
    try:
        yield ranks, own
    finally:
        dist.destroy_process_group()
        # a sharded model that is garbage already still holds the group, whose threads must not outlive Python
        gc.collect()


def _meet(backend: str, ranks: Ranks, timeout: timedelta) -> None:
    """Make the process group, under names of its own for each restart.

    torchrun's store outlives a restart, and the addresses of processes that are gone with it.
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = PrefixStore(f"restart {restart}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=timeout)


def _device_of(device: str, local: int) -> str:
    """The device of the rank with this number on its machine."""
    if device == "cpu":
        return device
    if device != "cuda":
        raise ConfigError(f"run.device = {device}, but several ranks can't share one; choose cuda, or cpu")
    found = torch.cuda.device_count()
    if local >= found:
        raise ConfigError(
            f"rank {local} of this machine has no GPU: torch sees {found}; start no more ranks than that"
        )
    return f"cuda:{local}"


def _from_environment(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError as error:
        raise ConfigError(f"{name} = {os.environ[name]} is no number; torchrun sets it") from error


def _exit_class(error: Exception) -> type[TrainerError]:
    """The class through which the other ranks end with the same exit code."""
    return (
        type(error) if isinstance(error, TrainerError) and not isinstance(error, RankLost) else TrainerError
    )
