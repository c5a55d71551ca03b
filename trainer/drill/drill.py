"""Runs drills: lays the ground once, injects each fault into a training of its own, and judges."""

import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from trainer.config import Config
from trainer.drill.catalogue import CATALOGUE
from trainer.drill.exercise import Drill
from trainer.drill.faults import Injection
from trainer.drill.ground import Arena, autoencoder_of, changed, clear, inside, lay, strikes_at, twin_of
from trainer.drill.judge import Facts, Judgement, Twin, judge
from trainer.errors import ConfigError
from trainer.record import RunRecord

log = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Of the final loss, relative to the twin's."""

Told = Callable[[Judgement], None]


def exercise(
    drills: Sequence[Drill], config: Config, tell: Told = lambda row: None, within: float = TOLERANCE
) -> list[Judgement]:
    """Run the drills, two side by side where there are several and two cores; rows in the given order.

    Args:
        config: what is trained; its folder is emptied first, and each drill leaves its run there.
        tell: hears each row as soon as it is known.
        within: how far a final loss may be from the twin's, relative to it.

    Raises:
        ConfigError: the twin, which nothing happens to, does not finish in silence.
    """
    clear(config.run.folder)
    twin = lay(config)
    if twin.findings:
        raise ConfigError(
            f"without any fault there were {twin.findings} findings; drills would prove nothing"
        )
    numbers = [CATALOGUE.index(one) for one in drills]
    rows: dict[int, Judgement] = {}
    for number, row in _run_all(numbers, config, within):
        rows[number] = row
        tell(row)
    return [rows[number] for number in numbers]


def run_one(number: int, config: Config, within: float = TOLERANCE) -> Judgement:
    """One drill on ground that was laid; ``number`` is its place in the catalogue."""
    drill = CATALOGUE[number]
    row = Judgement(id=drill.id, name=drill.name, what=drill.what, awaits=drill.awaits, idle=drill.idle)
    if drill.fault is None:
        return row
    begun, cpu_begun = time.perf_counter(), time.process_time()
    arena = Arena.at(inside(changed(config, drill.changes), drill.name), autoencoder_of(config.run.folder))
    arena.warm_up(config.run.folder)
    fault = drill.fault(strikes_at(config))
    twin = twin_of(config)
    try:
        fault.inject(arena)
        facts = _facts(fault, arena, twin)
    except Exception as error:  # the row says so, and the other drills go on
        log.exception("drill %s", drill.name)
        return row.model_copy(update={"fell_short": [f"the drill itself broke: {error!r}"]})
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    row = row.model_copy(update={"seconds": seconds, "cpu_seconds": cpu_seconds})
    return judge(row, facts, drill.expect, twin, within)


def _facts(fault: Injection, arena: Arena, twin: Twin) -> Facts:
    has_finished = bool(arena.ended) and arena.ended[-1] == "finished"
    hashes = arena.hashes() if has_finished else {}
    loss = math.nan if not has_finished else twin.loss if hashes == twin.hashes else arena.final_loss()
    return Facts(
        struck_at=fault.struck_at,
        record=RunRecord.load(arena.folder / "record.json"),
        ended=arena.ended,
        final_loss=loss,
        hashes=hashes,
        sighted=getattr(fault, "sighted", None),
        broke=tuple(getattr(fault, "broke", ())),
    )


def _run_all(numbers: Sequence[int], config: Config, within: float) -> Iterator[tuple[int, Judgement]]:
    workers = min(2, os.cpu_count() or 1, len(numbers))
    if workers < 2:
        yield from ((number, run_one(number, config, within)) for number in numbers)
        return
    # not forked: torch's threads and the checkpoint writer's would not come along
    context, method = multiprocessing.get_context("spawn"), multiprocessing.get_start_method()
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(method,)) as pool:
        under_way = {pool.submit(run_one, number, config, within): number for number in numbers}
        for done in as_completed(under_way):
            yield under_way[done], done.result()


def _begin(method: str) -> None:
    """In a process of the pool: data workers start as in any run, and not as this process did.

    Faults are told in the table; what the runs say of themselves is in their folders.
    """
    multiprocessing.set_start_method(method, force=True)
    logging.disable(logging.CRITICAL)
