"""``python faulty_trainer.py CONFIG``: the trainer, with a NaN in its loss when the file ``strike`` appears.

For stories in which a fault comes from outside while the run goes on, in a process or a container of its own.
"""

import logging
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from trainer.config import load
from trainer.loop import Loop
from trainer.passes import Phase
from trainer.pipeline import train


class StrikeWhenTold:
    """The loss of one step is NaN after ``strike`` has appeared beside the run; the file leaves with it."""

    def __init__(self, file: Path, pause_s: float) -> None:
        self._file, self._pause_s = file, pause_s

    def __call__(self, phase: Phase, loop: Loop) -> None:
        """Called by the loop at the start of every phase."""
        if phase is Phase.FETCH:
            time.sleep(self._pause_s)
        if phase is Phase.BACKWARD and self._file.exists():
            losses = cast(Any, loop.losses)
            loop.losses = replace(losses, total=losses.total * math.nan)
            struck_at = time.time()
            self._file.unlink()
            self._file.with_name("struck").write_text(f"{struck_at}")


def main(words: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    config = load(Path(words[0]))
    pause_s = float(words[1]) if len(words) > 1 else 0.0
    fault = StrikeWhenTold(config.run.folder / "strike", pause_s)
    train(config, lambda stage: [fault] if stage.run == config.run.name else [])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
