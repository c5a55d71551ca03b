"""A run's series as a TensorBoard event file, with the package ``tensorboard`` itself (extra of that name).

Steps, times and values are those of the effective series. TensorBoard keeps a value as float32: NaN and
infinity stay what they are, and a double loses its last digits; ``export`` keeps every bit.
"""

from pathlib import Path
from typing import Any

from monitor_service.client import Client
from monitor_service.errors import MonitorError


class TensorBoardMissing(MonitorError):
    """The package that writes event files is not installed."""

    def __init__(self) -> None:
        super().__init__("event files need the package tensorboard: pip install 'trainhealth[tensorboard]'")


def write_event_file(client: Client, run: str, folder: Path) -> int:
    """Write all series of ``run`` into a new event file in ``folder``; returns the number of points.

    Raises:
        TensorBoardMissing, Unreachable, Refused. OSError: the folder can't be written to.
    """
    event, summary, event_file_writer = _tensorboard()
    names = client.run(run).series
    folder.mkdir(parents=True, exist_ok=True)
    writer = event_file_writer(str(folder))
    points = 0
    try:
        for name in names:
            columns = client.series(run, name)[name]
            rows = zip(*(columns[key].tolist() for key in ("step", "time", "value")), strict=True)
            points += len(columns["step"])
            for step, time, value in rows:
                scalar = summary.Value(tag=name, simple_value=value)
                writer.add_event(event(step=step, wall_time=time, summary=summary(value=[scalar])))
    finally:
        writer.close()
    return points


def _tensorboard() -> tuple[Any, Any, Any]:
    """Event, Summary and EventFileWriter: imported when asked for, since they load protobuf and gRPC."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise TensorBoardMissing from error
    return Event, Summary, EventFileWriter
