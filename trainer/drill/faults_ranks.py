"""Faults of one rank among several: what it alone meets concerns all of them."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.drill.faults import Ground

Kind = Literal["gradient", "batch"]
SHARDED = {"diffusion.training.parallel": "fsdp2"}
_PATIENCE_S = 600.0
_ROOT = Path(__file__).parents[2]


@dataclass
class OnOneRank:
    """F11, R23: two ranks under torchrun, of which the second meets a NaN.

    ``trainer.drill.rank`` is what each of them runs. They must refuse the same steps, take the same way back
    and hold the same in the end; then this process measures the state that they left.
    """

    at_step: int
    kind: Kind
    struck_at: int | None = field(default=None, init=False)
    broke: list[str] = field(default_factory=list, init=False)

    def inject(self, ground: Ground) -> None:
        """Start both ranks, wait for them, and compare what they know."""
        order = {"config": ground.config.model_dump(mode="json"), "at_step": self.at_step, "kind": self.kind}
        (ground.folder / "ranks.json").write_text(json.dumps(order))
        self._run(ground.folder)
        ranks = [_told(ground.folder, number) for number in (0, 1)]
        self.struck_at = ranks[1].pop("struck_at", None)
        ranks[0].pop("struck_at", None)
        self.broke += [
            f"rank 0 knows {key} {ranks[0].get(key)}, rank 1 {ranks[1].get(key)}"
            for key in ranks[0].keys() | ranks[1].keys()
            if ranks[0].get(key) != ranks[1].get(key)
        ]
        ground.train()

    def _run(self, folder: Path) -> None:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
        with (folder / "ranks.log").open("wb") as log:
            process = subprocess.Popen(
                [*words, "-m", "trainer.drill.rank", str(folder)],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            code: object = process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = f"nothing within {_PATIENCE_S:.0f} s"
        if code:
            self.broke.append(f"torchrun ended with {code}; see {folder / 'ranks.log'}")


def _told(folder: Path, number: int) -> dict[str, Any]:
    path = folder / f"rank-{number}.json"
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ended": "nothing was left"}
    return told
