"""Runs side by side: their series on one grid of steps, and in what they differ."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field
from sqlalchemy import Connection

from monitor_service import points, series_forms
from monitor_service.axes import StepGrid
from monitor_service.blocks import Headers
from monitor_service.errors import NotFound
from monitor_service.queries import run_row, summary
from monitor_service.rows import Points
from monitor_service.views import Gathered, RunSummary
from shared.base import Message


class ComparedColumns(Gathered):
    """One series of one run on the grid of all: ``cell[i]`` is an index into ``step_from``."""

    cell: list[int]


class Grid(Message):
    """Cells of equally many steps, the same for every run."""

    step_from: list[int]
    step_to: list[int]


class Comparison(Message):
    """Runs side by side."""

    runs: list[RunSummary]
    differences: dict[str, dict[str, Any]] = Field(
        description="Settings in which the runs differ, by dotted name; a run without one is left out."
    )
    grid: Grid
    series: dict[str, dict[str, ComparedColumns]] = Field(
        description="By series, then by run; runs that never sent it are left out."
    )


def compare(connection: Connection, runs: Sequence[str], names: Sequence[str], buckets: int) -> Comparison:
    """Compare the effective series of some runs in at most ``buckets`` cells.

    Blocks that fit into a cell are told by their headers, and count for the cell that they begin in. So of a
    run no more points are unpacked than the cells have blocks, however long it is.

    Raises:
        NotFound: no such run, or none of them ever sent such a series.
    """
    rows = [run_row(connection, run) for run in runs]
    sent = {row.name: [name for name in names if name in json.loads(row.series_names)] for row in rows}
    missing = [name for name in names if not any(name in some for some in sent.values())]
    if missing:
        raise NotFound(f"none of the runs has series {', '.join(missing)}")
    outlines = {row.name: points.Outline.read(connection, row, sent[row.name]) for row in rows}
    grid = _grid([outline.ends for outline in outlines.values()], buckets)
    parts = {run: outline.told(grid.width) for run, outline in outlines.items()}
    return Comparison.model_construct(
        runs=[RunSummary(**summary(row)) for row in rows],
        differences=differences({row.name: json.loads(row.config) for row in rows}),
        grid=_told(grid),
        series={
            name: {run: _columns(grid, *told[name]) for run, told in parts.items() if name in told}
            for name in names
        },
    )


def differences(configs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted names whose values are not the same in all runs, each with the value of each run."""
    flat = {run: dict(_flat("", config)) for run, config in configs.items()}
    every = sorted({name for values in flat.values() for name in values})
    found = {name: {run: values[name] for run, values in flat.items() if name in values} for name in every}
    return {
        name: by_run
        for name, by_run in found.items()
        if len(by_run) < len(flat) or len({json.dumps(value) for value in by_run.values()}) > 1
    }


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    elif prefix:
        yield prefix, value


def _grid(ends: Iterable[tuple[int, int] | None], buckets: int) -> StepGrid:
    known = [one for one in ends if one is not None]
    if not known:
        return StepGrid(0, 1, 0)
    return StepGrid.over(min(first for first, _ in known), max(last for _, last in known), buckets)


def _told(grid: StepGrid) -> Grid:
    begins = [grid.first + cell * grid.width for cell in range(grid.cells)]
    return Grid(step_from=begins, step_to=[begin + grid.width - 1 for begin in begins])


def _columns(grid: StepGrid, headers: Headers, single: Points) -> ComparedColumns:
    cells = grid.gather(headers, single)
    columns = {name: column.tolist() for name, column in vars(cells).items()}
    bounds = {
        name: [None if math.isnan(one) else one for one in columns[name]] for name in series_forms.BOUNDS
    }
    return ComparedColumns.model_construct(cell=columns.pop("index"), **{**columns, **bounds})
