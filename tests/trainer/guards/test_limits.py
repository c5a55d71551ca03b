import numpy as np
import pytest
import torch

from trainer.guards.limits import BINS, Limits, bins_of

TIMES = [1e-9, 1e-4, 0.001, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999, 0.9999999, 1.0]


def test_bins_rise_with_time_and_cover_the_ends() -> None:
    bins = bins_of(TIMES)
    assert (bins[0], bins[-1]) == (0, BINS - 1)
    assert bins == sorted(bins)
    assert bins_of([0.499, 0.501]) == [BINS // 2 - 1, BINS // 2]


def test_bins_divide_the_log_odds_evenly() -> None:
    log_odds = np.linspace(-6.9, 6.9, 100)
    by_hand = ((log_odds + 7) / 14 * BINS).astype(int)
    assert bins_of(1 / (1 + np.exp(-log_odds))) == by_hand.tolist()


def test_device_and_host_expect_the_same_of_a_batch() -> None:
    rng = np.random.default_rng(0)
    expected, factors, powers = rng.random(BINS), rng.random(3), rng.normal(size=3)
    limits = Limits()
    limits.publish(expected.tolist(), factors.tolist(), powers.tolist())
    losses = expected[bins_of(TIMES)]
    mean, rms = losses.mean(), np.sqrt((losses**2).mean())
    by_hand = factors * np.array([mean, rms, rms]) ** powers
    # 1e-5: powers of numbers around 1 in float32
    np.testing.assert_allclose(limits.ceilings(torch.tensor(TIMES)).numpy(), by_hand, rtol=1e-5)


def test_without_times_the_first_bin_speaks_for_all() -> None:
    limits = Limits()
    limits.publish([2.0, *[99.0] * (BINS - 1)], [1.0, 2.0, 3.0], [1.0, 0.0, 2.0])
    assert limits.ceilings(None).tolist() == pytest.approx([2.0, 2.0, 12.0])


@pytest.mark.parametrize("times", [None, torch.tensor([0.1, 0.9]), torch.tensor([torch.nan, 0.5])])
def test_a_new_table_allows_everything(times: torch.Tensor | None) -> None:
    assert Limits().ceilings(times).tolist() == [torch.inf] * 3


def test_the_table_keeps_its_address() -> None:
    limits = Limits()
    address = limits.table.data_ptr()
    limits.publish([0.0] * BINS, [0.0] * 3, [0.0] * 3)
    assert limits.table.data_ptr() == address
