"""Everything of a run's state that is no tensor, as JSON that comes back exactly.

JSON has neither NaN nor tuples, and a generator's state has both at times, so these travel with a tag:
``{"$float": "nan"}`` and ``{"$tuple": [...]}``. All else is plain JSON. Finite floats are exact since Python
writes the shortest digits that read back as the same float; of a NaN the payload bits are not kept.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

Facts = Mapping[str, Any]


def encode(facts: Facts) -> bytes:
    """Facts as JSON text. Costs about 1 ms for 10,000 numbers.

    Raises:
        ValueError: something that would not come back as it was; the message says where it is.
    """
    return json.dumps(_tagged(dict(facts), "facts"), allow_nan=False).encode()


def decode(raw: bytes) -> dict[str, Any]:
    """What ``encode`` was given.

    Raises:
        ValueError: not such a text.
    """
    facts = _untagged(json.loads(raw))
    if not isinstance(facts, dict):
        raise ValueError(f"holds a {type(facts).__name__} where facts are a dict")
    return facts


def _tagged(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, list):
        return [_tagged(one, f"{place}[{i}]") for i, one in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_tagged(one, f"{place}[{i}]") for i, one in enumerate(value)]}
    if isinstance(value, dict):
        return {_key(key, place): _tagged(one, f"{place}.{key}") for key, one in value.items()}
    raise ValueError(
        f"{place} is a {type(value).__name__}; facts hold JSON values and tuples, tensors go in a part"
    )


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str) or key.startswith("$"):
        raise ValueError(f"{place} has the key {key!r}; keys are text that does not begin with $")
    return key


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(_untagged(one) for one in value["$tuple"])
    return {key: _untagged(one) for key, one in value.items()}
