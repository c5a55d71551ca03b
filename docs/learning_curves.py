"""Draw the learning curves of a run from the lines that it logged.

python -m trainer run CONFIG 2> run.log && python docs/learning_curves.py run.log OUT.png
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LINE = re.compile(r"run (?P<run>\S+) step (?P<step>\d+) of \d+: loss (?P<loss>[\d.e+-]+),")

Curve = list[tuple[int, float]]


def curves(log: str) -> dict[str, Curve]:
    """Step and loss of each line, by run; a step logged twice keeps its last loss."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in _LINE.finditer(log):
        found[line["run"]][int(line["step"])] = float(line["loss"])
    return {run: sorted(points.items()) for run, points in found.items()}


def draw(found: dict[str, Curve], path: Path) -> None:
    """One panel a run, losses on a logarithmic scale."""
    figure = Figure(figsize=(4.5 * len(found), 2.8), dpi=90, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (run, points) in zip(panels, found.items(), strict=True):
        steps, losses = zip(*points, strict=True)
        axis.semilogy(steps, losses, linewidth=1.2)
        axis.set(title=run, xlabel="step", ylabel="training loss")
        axis.grid(visible=True, which="both", alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def main() -> None:
    """Read, draw."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = curves(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"{sys.argv[1]} holds no line 'run NAME step N of M: loss X'; give what a run logged")
    draw(found, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
