"""All guards of a run in one panel: the same for our own loop and beside somebody else's."""

from collections.abc import Sequence

from torch import Tensor

from trainer.config import GuardsConfig
from trainer.guards.at_rest import AtRest
from trainer.guards.base import own_part
from trainer.guards.counters import Counters
from trainer.guards.drift import Drift
from trainer.guards.foresight import Foresight
from trainer.guards.gradients import Gradients
from trainer.guards.invariants import Invariants
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.overflow import Overflow
from trainer.guards.panel import Panel
from trainer.guards.replicas import Replicas
from trainer.guards.saturation import Saturation
from trainer.guards.spike import Spike
from trainer.guards.streams import Streams
from trainer.guards.underflow import Underflow
from trainer.ranks import Ranks


def all_guards(
    config: GuardsConfig,
    spikes: Sequence[Spike],
    objectives: Sequence[str],
    at_rest: AtRest | None = None,
    streams: Streams | None = None,
    ranks: Ranks | None = None,
) -> Panel:
    """The panel.

    Args:
        spikes: one for each objective, with the limits that its meter refuses by.
        at_rest: where nobody but the optimizer writes weights; whoever owns the loop has it compare and
            remember.
        streams: where the loop notes the random states with which each step begins.
    """
    gather = ranks.gather if ranks is not None and ranks.are_many else None
    resting = [] if at_rest is None else [at_rest]
    noted = [] if streams is None else [streams]
    return Panel(
        [
            *resting,  # before the others that scan: it knows to the bit what they see by its consequences
            Nonfinite(config.nonfinite),
            *spikes,
            *(Drift(name, config.drift) for name in objectives),
            *(Foresight(name, config.foresight) for name in objectives),
            Replicas(config.replicas, gather, is_common=_is_whole),
            Invariants(config.invariants),
            Counters(config.invariants),
            Gradients(config.gradients),
            *noted,
            Underflow(config.underflow),
            Overflow(config.overflow),
            Saturation(config.saturation),
        ]
    )


def _is_whole(tensor: Tensor) -> bool:
    return own_part(tensor) is tensor
