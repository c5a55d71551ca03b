"""Runs drills: lays the ground once, injects each fault into a training of its own, and judges."""

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from trainer.config import Config
from trainer.drill.catalogue import CATALOGUE, Drill
from trainer.drill.faults import Injection
from trainer.drill.ground import Arena, autoencoder_of, changed, inside, lay, twin_of
from trainer.drill.judge import Facts, Judgement, judge
from trainer.errors import ConfigError
from trainer.record import RunRecord

log = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Of the final loss, relative to the twin's."""

Told = Callable[[Judgement], None]


def exercise(drills: Sequence[Drill], config: Config, tell: Told = lambda row: None) -> list[Judgement]:
    """Run the drills, two side by side where there are several and two cores; rows in the given order.

    Args:
        config: what is trained; its folder is emptied first, and each drill leaves its run there.
        tell: hears each row as soon as it is known.

    Raises:
        ConfigError: the twin, which nothing happens to, does not finish in silence.
    """
    _clear(config.run.folder)
    twin = lay(config)
    if twin.findings:
        raise ConfigError(
            f"without any fault there were {twin.findings} findings; drills would prove nothing"
        )
    numbers = [CATALOGUE.index(one) for one in drills]
    rows: dict[int, Judgement] = {}
    for number, row in _run_all(numbers, config):
        rows[number] = row
        tell(row)
    return [rows[number] for number in numbers]


def run_one(number: int, config: Config) -> Judgement:
    """One drill on ground that was laid; ``number`` is its place in the catalogue."""
    drill = CATALOGUE[number]
    row = Judgement(id=drill.id, name=drill.name, what=drill.what, awaits=drill.awaits)
    if drill.awaits or drill.fault is None:
        return row
    begun = time.perf_counter()
    arena = Arena.at(inside(changed(config, drill.changes), drill.name), autoencoder_of(config))
    fault = drill.fault(strikes_at(config))
    fault.inject(arena)
    row = row.model_copy(update={"seconds": time.perf_counter() - begun})
    return judge(row, _facts(fault, arena), drill.expect, twin_of(config), TOLERANCE)


def strikes_at(config: Config) -> int:
    """When the guards have learned, and off the steps at which anything is kept: a fault should be old news
    to no snapshot."""
    return config.diffusion.training.steps * 63 // 100


def _facts(fault: Injection, arena: Arena) -> Facts:
    has_finished = bool(arena.ended) and arena.ended[-1] == "finished"
    return Facts(
        struck_at=fault.struck_at,
        record=RunRecord.load(arena.folder / "record.json"),
        ended=arena.ended,
        final_loss=arena.final_loss() if has_finished else float("nan"),
        hashes=arena.hashes() if has_finished else {},
        sighted=getattr(fault, "sighted", None),
        broke=tuple(getattr(fault, "broke", ())),
    )


def _run_all(numbers: Sequence[int], config: Config) -> Iterator[tuple[int, Judgement]]:
    workers = min(2, os.cpu_count() or 1, len(numbers))
    if workers < 2:
        yield from ((number, run_one(number, config)) for number in numbers)
        return
    # not forked: torch's threads and the checkpoint writer's would not come along
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet) as pool:
        under_way = {pool.submit(run_one, number, config): number for number in numbers}
        for done in as_completed(under_way):
            yield under_way[done], done.result()


def _quiet() -> None:
    """Faults are told in the table; what the runs say of themselves is in their folders."""
    logging.disable(logging.CRITICAL)


def _clear(folder: Path) -> None:
    """Empty a folder of earlier drills, and nothing that is not one."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "twin.json").exists():
        raise ConfigError(f"{folder} is in the way and holds no earlier drills; name another with --folder")
    shutil.rmtree(folder, ignore_errors=True)
