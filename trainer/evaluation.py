"""Draws held-out maps and says how good they are, beside two guesses: path loss and the mean map."""

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from trainer.config import SamplingConfig
from trainer.data.baselines import PathLoss, mean_map
from trainer.data.items import Batch, collate
from trainer.data.picture import draw_maps
from trainer.data.radiomaps import RadioMaps
from trainer.intervals import margin
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.metrics import MapScores, mean_scores, score_maps

_SHOWN = 4
_BATCH = 16

Progress = Callable[[int, int], None]
"""Called with how many maps are done, and of how many."""


@dataclass(frozen=True)
class DrawnMap:
    """Scores of one drawn map, and its share of the seconds that its batch took to draw."""

    id: str
    scores: MapScores
    seconds: float


@dataclass(frozen=True)
class Standing:
    """Mean scores over maps; ``margin`` is half of their 95 % interval (Student's t over windows)."""

    mean: MapScores
    margin: MapScores | None

    @classmethod
    def of(cls, scores: Sequence[MapScores], ids: Sequence[str]) -> "Standing":
        """From each map's scores; an id is ``{window}_{transmitter}``."""
        windows = [one.split("_")[0] for one in ids]
        margins = [margin([getattr(s, f.name) for s in scores], windows) for f in fields(MapScores)]
        known = [one for one in margins if one is not None]
        return cls(mean_scores(scores), MapScores(*known) if len(known) == len(margins) else None)

    def line(self, name: str) -> str:
        """A row of the table for people: each mean, and its margin."""
        places = zip(fields(MapScores), (4, 4, 4, 2, 1), strict=True)
        return f"{name:<18}" + "".join(self._cell(field.name, digits) for field, digits in places)

    def _cell(self, name: str, digits: int) -> str:
        text = f"{getattr(self.mean, name):.{digits}f}"
        if self.margin is not None:
            text += f" ±{getattr(self.margin, name):.{digits}f}"
        return f"{text:>17}"


class Evaluation(BaseModel):
    """How good the maps of one split are: drawn, guessed from the distance, and the mean training map."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    split: str
    drawn: Standing
    path_loss: Standing
    mean_map: Standing
    num_maps: int
    seconds_per_map: float
    maps: list[DrawnMap]

    def lines(self) -> Sequence[str]:
        """A table for people."""
        columns = ("NMSE", "RMSE", "SSIM", "PSNR dB", "peak px off")
        rows = {
            "drawn maps": self.drawn,
            "path-loss model": self.path_loss,
            "mean training map": self.mean_map,
        }
        header = f"{f'{self.num_maps} {self.split} maps':<18}" + "".join(f"{name:>17}" for name in columns)
        return [header, *(standing.line(name) for name, standing in rows.items()), self._comparison()]

    def _comparison(self) -> str:
        def against(guess: Standing) -> str:
            share = self.drawn.mean.nmse / guess.mean.nmse - 1
            return f"{abs(share):.0%} {'below' if share < 0 else 'above'}"

        return (
            f"NMSE of the drawn maps is {against(self.path_loss)} the path-loss model's and "
            f"{against(self.mean_map)} the mean map's; {self.seconds_per_map:.3g} s a map"
        )

    def as_csv(self) -> bytes:
        """A row for each drawn map: PSNR in dB, the distance of the brightest points in pixels, seconds."""
        text = io.StringIO()
        names = ["id", *(field.name for field in fields(MapScores)), "seconds"]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for one in self.maps:
            writer.writerow({"id": one.id, **asdict(one.scores), "seconds": one.seconds})
        return text.getvalue().encode()


def evaluate(
    model: LatentDiffusion,
    train: RadioMaps,
    held_out: RadioMaps,
    sampling: SamplingConfig,
    picture: Path | None = None,
    *,
    limit: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Draw one map for every held-out condition (or the first ``limit``), score them, and save ``picture``.

    Maps pass through in batches of 16, so memory does not grow with the split.
    """
    total = min(limit or len(held_out), len(held_out))
    path_loss, mean = PathLoss.fit(train), mean_map(train)
    generator = torch.Generator().manual_seed(sampling.seed)
    maps: list[DrawnMap] = []
    by_distance: list[MapScores] = []
    by_mean: list[MapScores] = []
    for batch in _batches(held_out, total):
        truth, begun = (batch["image"] + 1) / 2, time.perf_counter()
        drawn = draw(model, batch["cond"], sampling, generator)
        seconds = (time.perf_counter() - begun) / len(drawn)
        if picture is not None and not maps:
            _save_picture(picture, batch["ids"], truth, drawn)
        scores = score_maps(drawn, truth)
        maps += [DrawnMap(*one, seconds) for one in zip(batch["ids"], scores, strict=True)]
        by_distance += score_maps(path_loss.predict(batch["cond"]), truth)
        by_mean += score_maps(mean.expand_as(truth), truth)
        progress(len(maps), total)
    ids = [one.id for one in maps]
    return Evaluation(
        split=held_out.split,
        drawn=Standing.of([one.scores for one in maps], ids),
        path_loss=Standing.of(by_distance, ids),
        mean_map=Standing.of(by_mean, ids),
        num_maps=total,
        seconds_per_map=sum(one.seconds for one in maps) / total,
        maps=maps,
    )


def draw(
    model: LatentDiffusion, cond: Tensor, sampling: SamplingConfig, generator: torch.Generator | None = None
) -> Tensor:
    """Maps in [0, 1], (B, 1, H, W), on the host, for the conditions ``cond``, (B, C, H, W) in [-1, 1].

    With several draws, the mean of them: nearer to the truth in square than any one, and smoother. The
    generator's seed is the caller's: ``sampling.seed`` is not read here.
    """
    cond = cond.to(model.scale_factor.device)
    drawn = model.sample(cond, sampling.steps, generator=generator)
    for _ in range(1, sampling.draws):
        drawn = drawn + model.sample(cond, sampling.steps, generator=generator)
    return (drawn / sampling.draws).cpu()


def _batches(maps: RadioMaps, total: int) -> Iterator[Batch]:
    for start in range(0, total, _BATCH):
        yield collate([maps[index] for index in range(start, min(start + _BATCH, total))])


def _save_picture(path: Path, ids: Sequence[str], truth: Tensor, drawn: Tensor) -> None:
    shown = slice(0, _SHOWN)
    scores = score_maps(drawn[shown], truth[shown])
    draw_maps(path, truth[shown], drawn[shown], ids[shown], [one.nmse for one in scores])
