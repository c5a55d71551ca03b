"""Draws the held-out maps and says how good they are, beside the simplest guess: the mean training map."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import SamplingConfig
from trainer.data.baselines import mean_map
from trainer.data.items import collate
from trainer.data.picture import draw_maps
from trainer.data.radiomaps import RadioMaps
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.metrics import MapScores, mean_scores, score_maps

_SHOWN = 4


@dataclass(frozen=True)
class Evaluation:
    """Mean scores over the maps of one split: of the drawn maps, and of the mean training map."""

    drawn: MapScores
    mean_map: MapScores
    num_maps: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"drawn": asdict(self.drawn), "mean_map": asdict(self.mean_map), "num_maps": self.num_maps}

    def lines(self) -> Sequence[str]:
        """A table for people."""
        rows = [("drawn maps", self.drawn), ("mean training map", self.mean_map)]
        header = f"{f'{self.num_maps} held-out maps':<20}{'NMSE':>9}{'RMSE':>9}{'SSIM':>9}{'PSNR dB':>9}"
        return [
            header,
            *(f"{name:<20}{s.nmse:>9.4f}{s.rmse:>9.4f}{s.ssim:>9.4f}{s.psnr:>9.2f}" for name, s in rows),
        ]


def evaluate(
    model: LatentDiffusion,
    train: RadioMaps,
    held_out: RadioMaps,
    sampling: SamplingConfig,
    picture: Path,
) -> Evaluation:
    """Draw one map for every held-out condition, score them, and save ``picture``: truth | drawn | error."""
    batch = collate([held_out[index] for index in range(len(held_out))])
    truth = (batch["image"] + 1) / 2
    drawn = draw(model, batch["cond"], sampling)
    scores = score_maps(drawn, truth)
    guess = mean_map(train).expand_as(truth)
    shown = slice(0, _SHOWN)
    draw_maps(picture, truth[shown], drawn[shown], batch["ids"][shown], [s.nmse for s in scores[shown]])
    return Evaluation(mean_scores(scores), mean_scores(score_maps(guess, truth)), len(held_out))


def draw(model: LatentDiffusion, cond: Tensor, sampling: SamplingConfig, batch_size: int = 16) -> Tensor:
    """Maps in [0, 1] for the conditions ``cond``, (B, C, H, W), on the host; leaves global random states."""
    device = model.scale_factor.device
    generator = torch.Generator().manual_seed(sampling.seed)
    pieces = [
        model.sample(piece.to(device), sampling.steps, generator=generator).cpu()
        for piece in torch.split(cond, batch_size)
    ]
    return torch.cat(pieces)
