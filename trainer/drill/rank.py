"""One of two ranks of a drill, started by torchrun: trains on the drill's ground, the second with a NaN.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m trainer.drill.rank FOLDER
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.drill.faults import Fault, nan_gradient
from trainer.drill.faults_data import nan_in_batch
from trainer.drill.ground import Arena, autoencoder_of
from trainer.guards.base import own_part
from trainer.loop import Loop
from trainer.ranks import joined

_KINDS: dict[str, Callable[[int], Fault]] = {
    "gradient": nan_gradient,
    "batch": lambda at: nan_in_batch(at, "image"),
}


def main(folder: Path) -> None:
    """Train with the others; leaves ``rank-N.json``."""
    order = json.loads((folder / "ranks.json").read_text())
    config = Config.model_validate(order["config"])
    arena = Arena.at(config, autoencoder_of(folder.parent))
    fault = _KINDS[order["kind"]](order["at_step"])
    with joined("cpu", config.run.rank_timeout_s) as (ranks, _):
        arena.ranks = ranks
        arena.train([fault] if ranks.number == 1 else [])
        told = {**_told(arena), "struck_at": fault.struck_at}
    (folder / f"rank-{ranks.number}.json").write_text(json.dumps(told))


def _is_finite(loop: Loop) -> bool:
    return all(math.isfinite(float(own_part(one.detach()).sum())) for one in loop.state.model.parameters())


def _told(arena: Arena) -> dict[str, Any]:
    """What this rank knows in the end, and must know as the other does."""
    assert arena.loop is not None
    record = arena.loop.reporter.record
    return {
        "ended": arena.ended,
        "step": arena.loop.state.step,
        "iteration": arena.loop.state.iteration,
        "skips": [(one.step, one.reason) for one in record.skips],
        "rollbacks": [(one.from_step, one.to_step, one.source) for one in record.rollbacks],
        "quarantined": record.quarantined,
        "is_finite": _is_finite(arena.loop),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
