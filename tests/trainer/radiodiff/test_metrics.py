"""The scores against plain numpy."""

import math

import numpy as np
import pytest
import torch

from trainer.radiodiff.metrics import mean_scores, score_map, score_maps


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Gaussian windows of 11 pixels around every pixel; beyond its edges the map is mirrored."""
    offsets = np.arange(11) - 5
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    span = max(x.max() - x.min(), y.max() - y.min())
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    x, y = (np.pad(one, 5, mode="reflect") for one in (x, y))
    scores = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            both = (window * a * b).sum() - mean_a * mean_b
            top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            scores.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(scores))


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth map and a noisy guess."""
    truth = torch.nn.functional.interpolate(torch.rand(1, 1, 5, 5), (32, 24), mode="bilinear")[0]
    return (truth + 0.05 * torch.randn_like(truth)).clamp(0, 1), truth


def test_scores_are_numpy_s(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    p, g = (one[0].double().numpy() for one in pair)
    scores, error = score_map(*pair), ((p - g) ** 2).mean()
    assert scores.nmse == pytest.approx(((p - g) ** 2).sum() / (g**2).sum(), rel=1e-5)
    assert scores.rmse == pytest.approx(math.sqrt(error), rel=1e-5)
    assert scores.psnr == pytest.approx(10 * math.log10((g.max() - g.min()) ** 2 / error), rel=1e-5)
    assert scores.ssim == pytest.approx(ssim_by_hand(p, g), abs=2e-4)


def test_a_perfect_map_has_no_error_and_full_similarity(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores = score_map(pair[1], pair[1])
    assert (scores.nmse, scores.rmse, scores.peak_distance) == (0.0, 0.0, 0.0)
    assert scores.ssim == pytest.approx(1.0)
    assert scores.psnr == math.inf


def test_the_distance_of_the_brightest_points_is_euclidean() -> None:
    prediction, truth = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    prediction[0, 2, 3], truth[0, 5, 7] = 1.0, 1.0
    assert score_map(prediction, truth).peak_distance == 5.0


def test_each_map_is_scored_by_itself(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    worse = pair[0] / 2
    scores = score_maps(torch.stack([pair[0], worse]), torch.stack([pair[1], pair[1]]))
    assert scores == [score_map(*pair), score_map(worse, pair[1])]
    assert mean_scores(scores).nmse == pytest.approx((scores[0].nmse + scores[1].nmse) / 2)


@pytest.mark.parametrize(
    ("one", "other"), [((1, 16, 16), (1, 16, 17)), ((16, 16), (16, 16)), ((1, 8, 16), (1, 8, 16))]
)
def test_maps_that_cannot_be_compared_are_refused(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give two maps of one shape"):
        score_map(torch.zeros(one), torch.zeros(other))


def test_no_maps_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no maps were scored"):
        mean_scores([])
