"""Draws a few held-out maps whenever a checkpoint is kept, so that people see what the numbers mean."""

import torch
from torch import Tensor

from trainer.config import SamplingConfig
from trainer.data.items import collate
from trainer.data.radiomaps import RadioMaps
from trainer.evaluation import draw
from trainer.loop import Loop
from trainer.passes import Phase
from trainer.pictures import picture
from trainer.radiodiff.diffusion import LatentDiffusion
from trainer.radiodiff.metrics import score_maps
from trainer.sharding import is_sharded
from trainer.watchdog import Hung


class Drawer:
    """An observer of the loop: the same ``num_maps`` maps from the same noise, with the averaged weights.

    It leaves no trace in the training: noise comes from a generator of its own, weights and random states are
    put back. What goes wrong here costs the pictures, and never the run.
    """

    def __init__(self, maps: RadioMaps, sampling: SamplingConfig, num_maps: int) -> None:
        self._sampling, self._drawn_at = sampling.model_copy(update={"draws": 1}), 0
        self._num_maps = min(num_maps, len(maps))
        self._maps = maps

    def __call__(self, phase: Phase, loop: Loop) -> None:
        """Called by the loop at the start of every phase. Costs a comparison where nothing is due."""
        kept_at = loop.recovery.saved_at
        if phase is not Phase.FETCH or kept_at is None or kept_at == self._drawn_at:
            return
        self._drawn_at = kept_at
        if not self._num_maps or not loop.reporter.is_heard or is_sharded(loop.state.model):
            return
        try:
            self._draw(loop, kept_at)
        except Hung:  # the loop's to answer: it knows what a phase that was cut short has left behind
            raise
        except Exception as error:  # no memory left, a map that can't be read
            loop.reporter.shows_no_more(loop.state.step, "maps drawn", error)
            self._num_maps = 0

    def _draw(self, loop: Loop, step: int) -> None:
        batch = collate([self._maps[index] for index in range(self._num_maps)])
        truth, drawn = (batch["image"] + 1) / 2, self._maps_from(loop, batch["cond"])
        scores = score_maps(drawn, truth)
        for number, (name, score) in enumerate(zip(batch["ids"], scores, strict=True)):
            tiles = {"truth": truth[number, 0], "drawn": drawn[number, 0]}
            tiles["difference"] = (drawn[number, 0] - truth[number, 0]).abs()
            attempt = loop.reporter.record.attempt
            event = picture(
                f"drawn-{step:08d}-{attempt}-{number}", "drawn", step, f"map {name}", tiles,
                reading={"nmse": score.nmse},
            )  # fmt: skip
            if event is not None:
                loop.reporter.picture(event)

    def _maps_from(self, loop: Loop, cond: Tensor) -> Tensor:
        model = loop.state.model
        assert isinstance(model, LatentDiffusion)
        generator = torch.Generator().manual_seed(self._sampling.seed)
        with loop.state.ema.in_place_of(model):
            return draw(model, cond, self._sampling, generator)
