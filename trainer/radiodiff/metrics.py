"""How far a drawn map is from the truth: NMSE, RMSE, SSIM, PSNR, and where the brightest point lies."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


@dataclass(frozen=True, slots=True)
class MapScores:
    """The scores of one map, or their means over several.

    Attributes:
        nmse: squared error over the truth's own square.
        rmse: root of the mean squared error, in units of the map, which lies in [0, 1].
        ssim: structural similarity, Gaussian window of 11 pixels, edges mirrored, range taken from the maps.
        psnr: peak signal to noise ratio in dB, peak being the truth's range.
        peak_distance: pixels between the brightest points.
    """

    nmse: float
    rmse: float
    ssim: float
    psnr: float
    peak_distance: float


def score_map(prediction: Tensor, truth: Tensor) -> MapScores:
    """Scores of one map, both (1, H, W) in [0, 1]; pixels of buildings count. Waits for the device.

    Raises:
        ValueError: shapes that differ, or a map smaller than SSIM's window.
    """
    if prediction.shape != truth.shape or truth.ndim != 3 or min(truth.shape[1:]) < 11:
        raise ValueError(
            f"prediction is {tuple(prediction.shape)} and truth {tuple(truth.shape)}; "
            "give two maps of one shape (1, H, W), 11 pixels or more each way"
        )
    prediction, truth = prediction.detach().float(), truth.detach().float()
    error = (prediction - truth).square().mean()
    ssim = structural_similarity_index_measure(prediction[None], truth[None])
    assert isinstance(ssim, Tensor)
    return MapScores(
        nmse=float(error / truth.square().mean()),
        rmse=float(error.sqrt()),
        ssim=float(ssim),
        psnr=float(peak_signal_noise_ratio(prediction, truth, data_range=float(truth.max() - truth.min()))),
        peak_distance=_peak_distance(prediction[0], truth[0]),
    )


def score_maps(predictions: Tensor, truths: Tensor) -> list[MapScores]:
    """Scores of each map of two batches (B, 1, H, W)."""
    return [score_map(*pair) for pair in zip(predictions, truths, strict=True)]


def mean_scores(scores: Sequence[MapScores]) -> MapScores:
    """Mean of each score over the maps.

    Raises:
        ValueError: no maps.
    """
    if not scores:
        raise ValueError("no maps were scored; give at least one")
    return MapScores(
        **{
            field.name: sum(getattr(s, field.name) for s in scores) / len(scores)
            for field in fields(MapScores)
        }
    )


def _peak_distance(prediction: Tensor, truth: Tensor) -> float:
    """Distance of the brightest pixels of two (H, W) maps, the first one where several are equal."""
    row, column = (
        peak.float()
        for peak in torch.unravel_index(torch.stack([prediction.argmax(), truth.argmax()]), truth.shape)
    )
    return float(torch.hypot(row[0] - row[1], column[0] - column[1]))
