"""Training logs of others, as rows: CSV, Hugging Face's ``trainer_state.json``, TensorBoard event files.

The event file is read by its published layout (TFRecord frames around protobuf messages), some forty lines,
so that reading a log needs neither TensorFlow nor the tensorboard package.
"""

import csv
import io
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import ConfigError

_KINDS = "a CSV with columns step,loss[,grad_norm][,lr], a trainer_state.json, or a TensorBoard event file"
_NORMS = ("grad_norm", "gradient_norm", "grad-norm")
_RATES = ("lr", "learning_rate", "learning-rate")


class Row(NamedTuple):
    """One logged point. ``number`` counts the log's points from 0 on; what was not logged is ``None``."""

    number: int
    step: float
    loss: float | None
    grad_norm: float | None
    lr: float | None


def read_log(path: Path, loss: str | None = None) -> list[Row]:
    """The rows of a log, in the file's order; ``loss`` names the column or tag if it isn't the usual one.

    Raises:
        ConfigError: the file can't be read, is none of the three kinds, or has no loss.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the log {path}: {error.strerror}") from error
    if _is_event_file(content):
        rows = _of_scalars(path, list(_scalars(path, content)), loss)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is neither text nor an event file; give {_KINDS}") from error
        looks_like_json = text.lstrip().startswith(("{", "["))
        rows = _of_trainer_state(path, text, loss) if looks_like_json else _of_csv(path, text, loss)
    if not rows:
        raise ConfigError(f"{path} holds no row with a loss")
    return rows


def _of_csv(path: Path, text: str, loss: str | None) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, restval="")
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    wanted = loss or "loss"
    missing = [name for name in ("step", wanted) if name not in columns]
    if missing:
        found = ", ".join(columns)[:200] or "an empty file"
        raise ConfigError(f"{path} has no column {missing[0]!r}, but: {found}; give {_KINDS}")
    rows = []
    for number, cells in enumerate(reader):
        where = f"{path}, line {reader.line_num}"
        values = {name: _number(where, name, cells[name]) for name in columns if _is_wanted(name, wanted)}
        step = values["step"]
        if step is None or not math.isfinite(step):
            raise ConfigError(f"{where}: the step is {'missing' if step is None else step}")
        rows.append(Row(number, step, values[wanted], _first(values, _NORMS), _first(values, _RATES)))
    return rows


def _is_wanted(column: str, loss: str) -> bool:
    return column in ("step", loss, *_NORMS, *_RATES)


def _number(where: str, name: str, cell: str | None) -> float | None:
    if cell is None or not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError as error:
        raise ConfigError(f"{where}: {name} is {cell!r}, which is no number") from error


def _of_trainer_state(path: Path, text: str, loss: str | None) -> list[Row]:
    try:
        history = json.loads(text)["log_history"]
        entries = [entry for entry in history if (loss or "loss") in entry]
        return [_row_of_entry(number, entry, loss or "loss") for number, entry in enumerate(entries)]
    except ValueError as error:
        raise ConfigError(f"{path} looks like JSON but is not: {error}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no trainer_state.json: no log_history with steps; give {_KINDS}"
        ) from error


def _row_of_entry(number: int, entry: Mapping[str, Any], loss: str) -> Row:
    values = {
        name: float(entry[name]) for name in entry if _is_wanted(name, loss) and entry[name] is not None
    }
    return Row(number, values["step"], values.get(loss), _first(values, _NORMS), _first(values, _RATES))


def _first(values: Mapping[str, float | None], names: tuple[str, ...]) -> float | None:
    return next((values[name] for name in names if values.get(name) is not None), None)


class _Scalar(NamedTuple):
    step: int
    tag: str
    value: float


def _of_scalars(path: Path, scalars: list[_Scalar], loss: str | None) -> list[Row]:
    tags = sorted({scalar.tag for scalar in scalars})
    wanted = loss if loss in tags else None if loss else _loss_tag(tags)
    if wanted is None:
        raise ConfigError(f"{path} has no {loss or 'training loss'}; its tags: {', '.join(tags) or 'none'}")
    others: dict[int, dict[str, float]] = {scalar.step: {} for scalar in scalars}
    for scalar in scalars:
        others[scalar.step][scalar.tag.rsplit("/", 1)[-1]] = scalar.value
    losses = [scalar for scalar in scalars if scalar.tag == wanted]
    return [
        Row(number, one.step, one.value, _first(others[one.step], _NORMS), _first(others[one.step], _RATES))
        for number, one in enumerate(losses)
    ]


def _loss_tag(tags: list[str]) -> str | None:
    """The training loss among the tags: the shortest that ends in ``loss`` and is of no evaluation."""
    named = [tag for tag in tags if "loss" in tag.lower() and not _is_of_evaluation(tag)]
    return min(named, key=lambda tag: (not tag.lower().endswith("loss"), len(tag)), default=None)


def _is_of_evaluation(tag: str) -> bool:
    return any(word in tag.lower() for word in ("val", "eval", "test"))


def _is_event_file(content: bytes) -> bool:
    """The first record names the layout's version."""
    return b"brain.Event:" in content[:64]


def _scalars(path: Path, content: bytes) -> Iterator[_Scalar]:
    """A record is its length (8 bytes), a checksum (4), the event, and another checksum."""
    place = 0
    while place + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        event = content[place + 12 : place + 12 + size]
        if len(event) < size:
            return  # the writer is not done, or was killed: what is whole counts
        try:
            yield from _scalars_of_event(event)
        except (IndexError, ValueError, struct.error) as error:
            raise ConfigError(f"{path}: the record at byte {place} is damaged") from error
        place += 12 + size + 4


def _scalars_of_event(event: bytes) -> Iterator[_Scalar]:
    """``Event``: step = 2, summary = 5; ``Summary``: value = 1, with tag = 1, number = 2, tensor = 8."""
    fields = dict(_fields(event))
    for number, value in _fields(fields.get(5, b"")):
        parts = dict(_fields(value)) if number == 1 else {}
        scalar = _float(parts.get(2)) if 2 in parts else _float_of_tensor(parts.get(8, b""))
        if 1 in parts and scalar is not None:
            yield _Scalar(fields.get(2, 0), parts[1].decode(), scalar)


def _float_of_tensor(tensor: bytes) -> float | None:
    """``TensorProto``: dtype = 1, tensor_content = 4, float_val = 5; only a single float32 is a scalar."""
    parts = dict(_fields(tensor))
    return _float(parts.get(5, parts.get(4))) if parts.get(1) == 1 else None


def _float(four: bytes | None) -> float | None:
    if four is None or len(four) != 4:
        return None
    (number,) = struct.unpack("<f", four)
    return float(number)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each protobuf field: an int for a varint, else the raw bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        else:
            size = {1: 8, 5: 4}.get(kind, len(message) + 1)
        if place + size > len(message):
            raise ValueError("a field is longer than its message")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
