"""Intervals of means: Student's t as in the tables, and groups instead of maps."""

import numpy as np
import pytest

from trainer.intervals import margin, student_t


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.70620), (2, 4.30265), (5, 2.57058), (29, 2.04523)])
def test_student_s_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert student_t(degrees) == pytest.approx(t, abs=2e-5)


def test_another_confidence_has_another_t() -> None:
    assert student_t(10, 0.99) == pytest.approx(3.16927, abs=2e-5)


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    """Six windows of ten maps that share most of their luck: as 60 maps a third would hold."""
    rng = np.random.default_rng(0)
    groups = [str(window) for window in range(6) for _ in range(10)]
    held = 0
    for _ in range(400):
        values = np.repeat(rng.normal(size=6), 10) + 0.3 * rng.normal(size=60)
        held += abs(values.mean()) <= (margin(values.tolist(), groups) or 0)
    assert 367 <= held <= 393  # 380 +- 3 deviations


def test_one_group_says_nothing_about_the_spread() -> None:
    assert margin([1.0, 2.0], ["a", "a"]) is None
