"""Facts come back exactly, or are refused with the place of what would not."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoint.facts import decode, encode

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text().filter(lambda key: not key.startswith("$"))
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_facts_come_back_as_they_were(facts: dict[str, Any]) -> None:
    back = decode(encode(facts))
    assert back == facts
    assert repr(back) == repr(facts)  # tells 1 from 1.0 and from True, a tuple from a list, -0.0 from 0.0


def test_nan_is_kept_and_stays_apart_from_the_text_nan() -> None:
    back = decode(encode({"loss": float("nan"), "name": "nan", "low": float("-inf")}))
    assert math.isnan(back["loss"])
    assert back["name"] == "nan"
    assert back["low"] == float("-inf")


def test_a_generators_state_restores_the_generator() -> None:
    generator = random.Random(1)
    generator.gauss(0, 1)
    raw = encode({"python": generator.getstate()})
    expected = [generator.random() for _ in range(3)]
    generator.setstate(decode(raw)["python"])
    assert [generator.random() for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"guards": {"spike": [1.0, {2.0}]}}, r"facts\.guards\.spike\[1\] is a set"),
        ({"counts": {3: 1}}, "facts.counts has the key 3"),
        ({"$float": "nan"}, r"key '\$float'"),
        ({"rng": b"abc"}, "facts.rng is a bytes"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_place(facts: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        encode(facts)
