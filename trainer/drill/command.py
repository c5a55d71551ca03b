"""``python -m trainer drill``: which faults, on what, and the table that comes of it; or a soak of many."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import load
from trainer.drill.catalogue import CATALOGUE, find
from trainer.drill.drill import TOLERANCE, exercise
from trainer.drill.exercise import Drill
from trainer.drill.ground import DRILL_CONFIG, changed
from trainer.drill.judge import Judgement
from trainer.drill.soak import soak
from trainer.drill.table import as_list, as_table, summary
from trainer.errors import ConfigError

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command is told."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="ids (F09) or names (nan-gradient); or the word soak"
    )
    parser.add_argument("--list", action="store_true", help="what can be drilled")
    parser.add_argument("--all", action="store_true", help="every one of them")
    parser.add_argument("--config", type=Path, default=DRILL_CONFIG, metavar="C", help="what is trained")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and of the noise")
    parser.add_argument(
        "--within",
        type=float,
        default=TOLERANCE,
        metavar="SHARE",
        help="how far a final loss may be from the twin's to count as healed",
    )
    parser.add_argument("--steps", type=int, default=5000, metavar="N", help="soak: how long it trains")
    parser.add_argument("--every", type=int, default=500, metavar="N", help="soak: steps between two faults")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/drills"), help="where each drill leaves its run"
    )


def drill(arguments: argparse.Namespace) -> tuple[dict[str, Any], str, bool]:
    """Facts, words, and whether all went as it should.

    Raises:
        ConfigError: no drill is named, or the ground will not do.
    """
    if arguments.list:
        facts = [
            {"id": one.id, "name": one.name, "what": one.what, "awaits": one.awaits, "idle": one.idle}
            for one in CATALOGUE
        ]
        return {"drills": facts}, as_list(CATALOGUE), True
    if arguments.names == ["soak"]:
        return _soak(arguments)
    drills = [one for one in (CATALOGUE if arguments.all else _chosen(arguments.names)) if not one.idle]
    changes = {"run.folder": arguments.folder, "run.seed": arguments.seed, "link.url": ""}
    rows = exercise(drills, changed(load(arguments.config), changes), _tell, arguments.within)
    fell_short = [row.name for row in rows if row.fell_short]
    facts_of_all = {"drills": [json.loads(row.model_dump_json()) for row in rows], "summary": summary(rows)}
    return {**facts_of_all, "fell_short": fell_short}, as_table(rows), not fell_short


def _soak(arguments: argparse.Namespace) -> tuple[dict[str, Any], str, bool]:
    config = load(arguments.config)
    changes = {"run.folder": arguments.folder, "run.seed": arguments.seed, "link.url": ""}
    soaked = soak(changed(config, changes), arguments.steps, arguments.every, arguments.seed)
    return json.loads(soaked.model_dump_json()), soaked.in_words(), not soaked.fell_short


def _chosen(names: Sequence[str]) -> list[Drill]:
    if not names:
        raise ConfigError("name a drill, or give --all or --list")
    wanted = {one.name for name in names for one in find(name)}
    return [one for one in CATALOGUE if one.name in wanted]


def _tell(row: Judgement) -> None:
    words = "; ".join(row.fell_short) or f"{row.place} {row.by}, {row.healed_by}"
    log.info("%s %s: %s", row.id, row.name, f"awaits {row.awaits}" if row.awaits else words)
