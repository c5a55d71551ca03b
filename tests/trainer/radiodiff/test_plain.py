"""The plain side computes what the model computes, or its times would mean nothing."""

import torch

from benchmarks.radiodiff_step import Bench, Size
from trainer.radiodiff.diffusion import DiffusionConfig


def test_the_plain_side_draws_the_same_maps_with_the_same_gradients(tiny_diffusion: DiffusionConfig) -> None:
    bench = Bench(Size(tiny_diffusion, side=64, batch=2), torch.device("cpu"))
    found = bench.agreement()
    assert found["maps"] < 1e-4  # six evaluations in a row carry float32's rounding on
    assert found["loss"] < 2e-6
    assert found["gradient"] < 2e-5


def test_padding_after_the_projection_is_what_padding_before_it_was(tiny_diffusion: DiffusionConfig) -> None:
    bench = Bench(Size(tiny_diffusion, side=64, batch=1), torch.device("cpu"))
    cond = bench.batch["cond"]
    ours = bench.model.unet.eval().encode_condition(cond)
    bench.plain.unet.training = False
    for one, other in zip(ours, bench.plain.unet.pyramid(cond), strict=True):
        assert (one - other).abs().max() < 2e-6 * other.std()
