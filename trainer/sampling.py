"""Draws one map for a place of the user's own."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trainer.config import Config, SamplingConfig
from trainer.data.condition import condition_for
from trainer.data.gray import SOURCE_SIZE
from trainer.data.variants import VARIANTS
from trainer.errors import ConfigError
from trainer.evaluation import draw
from trainer.files import replace_file
from trainer.radiodiff.sampler import schedule
from trainer.trained import trained_diffusion


@dataclass(frozen=True)
class Place:
    """A place to draw: the mask of its buildings, and row and column of the transmitter in it."""

    buildings: Path
    transmitter: tuple[int, int]

    @classmethod
    def parse(cls, buildings: Path, transmitter: str) -> "Place":
        """From ``ROW,COL``.

        Raises:
            ConfigError: no such pair of whole numbers.
        """
        try:
            row, column = map(int, transmitter.split(","))
        except ValueError:
            raise ConfigError(
                f"--transmitter {transmitter}: give row and column as whole numbers, for example 120,88"
            ) from None
        return cls(buildings, (row, column))


def draw_place(
    config: Config, place: Place, out: Path, sampling: SamplingConfig, *, averaged: bool = True
) -> Mapping[str, object]:
    """Draw the map of ``place`` as an 8-bit gray PNG, on the scale of the targets; answers what was done.

    Raises:
        DataError: the mask or the transmitter will not do.
        ConfigError, ResumeRefused: the sampling steps will not do, or there is no checkpoint to draw from.
    """
    try:
        schedule(sampling.steps, config.diffusion.model.eps)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    cond = condition_for(place.buildings, place.transmitter, config.data)
    trained = trained_diffusion(config)
    with trained.weights(averaged=averaged) as model:
        drawn = draw(model, cond, sampling, torch.Generator().manual_seed(sampling.seed))
    replace_file(out, _as_png(drawn[0, 0], VARIANTS[config.data.variant].full_scale))
    return {
        "map": str(out),
        "side_pixels": config.data.image_size,
        "pixel_m": SOURCE_SIZE // config.data.image_size,
        "checkpoint": trained.record.name,
        **sampling.model_dump(),
    }


def _as_png(drawn: Tensor, full_scale: int) -> bytes:
    gray = (drawn * full_scale).round().clamp(0, 255).to(torch.uint8).numpy()
    content = io.BytesIO()
    Image.fromarray(gray).save(content, format="PNG")
    return content.getvalue()
