"""How well the guards of scalars judge real, labelled training curves, through ``trainer.replaying``.

    python benchmarks/curves.py [FOLDER] [--json] [--per-file]

FOLDER (default ``../shared/curves``) holds CSV logs and ``index.json`` with labels. An incident is found by
an alarm from its ``early_row`` to its ``latest_useful_row``; alarms after that up to its ``end_row``, and in
``ignore_rows``, count neither way. Any other is false; false ones within 20 rows are one episode. Debatable
curves are not scored.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from trainer.logs import read_log
from trainer.replaying import judge

FOLDER = Path(__file__).parents[2] / "shared/curves"
EPISODE = 20


def zones(curve: dict[str, Any], rows: int) -> list[int | None]:
    """For each row: ``None`` is healthy, -1 ignored, k inside the window of incident k."""
    zone: list[int | None] = [None] * rows
    for first, last in curve["ignore_rows"]:
        zone[first : last + 1] = [-1] * (last + 1 - first)
    for number, incident in enumerate(curve["incidents"]):
        for row in range(incident["early_row"], incident["end_row"] + 1):
            zone[row] = number if row <= incident["latest_useful_row"] else -1
    return zone


def score(curve: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Delay of each incident found, in rows, and the episodes of false alarms."""
    rows = read_log(folder / curve["file"])
    zone = zones(curve, len(rows))
    delays: dict[int, int] = {}
    episodes, last = 0, -EPISODE - 1
    for row in (seen.row for seen in judge(rows) if seen.is_alarm):
        place = zone[row]
        if place is None:
            episodes += row - last > EPISODE
            last = row
        elif place >= 0:
            delays.setdefault(place, max(0, row - curve["incidents"][place]["onset_row"]))
    return {
        "file": curve["file"],
        "label": curve["label"],
        "incidents": len(curve["incidents"]),
        "delays": list(delays.values()),
        "episodes": episodes,
        "healthy": zone.count(None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--per-file", action="store_true")
    arguments = parser.parse_args()
    index = arguments.folder / "index.json"
    if not index.is_file():
        sys.exit(f"nothing to score: there is no {index}; name a folder of labelled curves")
    curves = [one for one in json.loads(index.read_text())["curves"] if one["label"] != "debatable"]
    scores = [score(curve, arguments.folder) for curve in curves]
    delays = [delay for one in scores for delay in one["delays"]]
    healthy, episodes = (sum(one[key] for one in scores) for key in ("healthy", "episodes"))
    total = {
        "found": len(delays),
        "incidents": sum(one["incidents"] for one in scores),
        "median_delay_rows": statistics.median(delays) if delays else None,
        "false_episodes": episodes,
        "healthy_rows": healthy,
        "false_episodes_per_10k": round(1e4 * episodes / healthy, 2),
    }
    if arguments.json:
        sys.stdout.write(json.dumps({**total, "files": scores}) + "\n")
        return
    for one in scores if arguments.per_file else []:
        found = f"{len(one['delays'])} of {one['incidents']}"
        sys.stdout.write(f"{one['file']}  {one['label']:<20} {found:<8} false {one['episodes']}\n")
    sys.stdout.write("\n".join(f"{key:<24}{value}" for key, value in total.items()) + "\n")


if __name__ == "__main__":
    main()
