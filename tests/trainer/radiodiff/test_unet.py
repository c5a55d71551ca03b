"""The U-Net's frame: what it takes, what it refuses, and which parameters take part."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.radiodiff.unet import Unet, UnetConfig, input_size_for


def run(unet: Unet, height: int = 64, width: int = 64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    x, cond = (
        torch.randn(2, 3, height // 4, width // 4),
        torch.rand(2, unet.config.cond_channels, height, width),
    )
    return unet(x, torch.tensor([0.1, 0.9]), cond)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (32, 160)])
def test_the_outputs_have_the_latent_s_shape(tiny_unet: UnetConfig, height: int, width: int) -> None:
    unet = Unet(tiny_unet.model_copy(update={"input_size": input_size_for((height, width))})).eval()
    assert [tuple(out.shape) for out in run(unet, height, width)] == [(2, 3, height // 4, width // 4)] * 2


def test_the_published_size_takes_maps_of_256_pixels() -> None:
    with torch.device("meta"):
        unet = Unet(UnetConfig())
        outputs = unet(torch.empty(1, 3, 64, 64), torch.empty(1), torch.empty(1, 3, 256, 256))
    assert [tuple(out.shape) for out in outputs] == [(1, 3, 64, 64)] * 2


@pytest.mark.parametrize(
    ("image", "size"),
    [((256, 256), (80, 80)), ((64, 64), (32, 32)), ((128, 128), (48, 48)), ((128, 96), (48, 40))],
)
def test_the_input_size_for_a_map_makes_filters_that_fit(
    image: tuple[int, int], size: tuple[int, int]
) -> None:
    assert input_size_for(image) == size
    assert UnetConfig(input_size=size).filter_size == (image[0] // 32, image[1] // 64 + 1)


def test_at_the_ends_of_time_each_output_rests_on_the_input(tiny_unet: UnetConfig) -> None:
    unet, x = Unet(tiny_unet).eval(), torch.randn(2, 3, 16, 16)
    cond = torch.rand(2, 3, 64, 64)
    _, noise = unet(x, torch.ones(2), cond)
    torch.testing.assert_close(noise, x)
    drift, _ = unet(x, torch.full((2,), 1e-7), cond)
    torch.testing.assert_close(drift, x, atol=1e-4, rtol=0)


def test_one_encoding_of_the_condition_serves_every_time(tiny_unet: UnetConfig) -> None:
    unet, x, cond = Unet(tiny_unet).eval(), torch.randn(2, 3, 16, 16), torch.rand(2, 3, 64, 64)
    pyramid = unet.encode_condition(cond)
    for t in (torch.full((2,), 0.3), torch.full((2,), 0.7)):
        assert torch.equal(unet.denoise(x, t, pyramid)[0], unet(x, t, cond)[0])


def test_without_the_filters_their_weights_do_not_matter(tiny_unet: UnetConfig) -> None:
    unet = Unet(tiny_unet.model_copy(update={"apply_aft": False})).eval()
    before = run(unet)
    for decoder in (unet.drift_decoder, unet.noise_decoder):
        for parameter in decoder.decouple.parameters():
            torch.nn.init.normal_(parameter)
    assert all(torch.equal(one, other) for one, other in zip(run(unet), before, strict=True))


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, {"condition_encoder.norm", "condition_encoder.head", "cars_conv"}),
        ({"cond_channels": 5}, {"condition_encoder.norm", "condition_encoder.head"}),
        (
            {"apply_aft": False},
            {
                "condition_encoder.norm",
                "condition_encoder.head",
                "cars_conv",
                *(f"{side}_decoder.decouple.{part}" for side in ("drift", "noise") for part in (0, 1, 2)),
            },
        ),
    ],
)
def test_gradients_reach_every_parameter_but_the_idle_and_frozen_ones(
    tiny_unet: UnetConfig, changes: dict[str, object], idle: set[str]
) -> None:
    unet = Unet(tiny_unet.model_copy(update=changes))
    drift, noise = run(unet)
    (drift.square().sum() + noise.square().sum()).backward()
    without = {name for name, p in unet.named_parameters() if p.grad is None}
    assert {name.rpartition(".")[0] for name in without} == {*idle, "time_embedding"}
    ids = {id(p) for p in unet.idle_parameters()}
    assert without == {name for name, p in unet.named_parameters() if id(p) in ids} | {
        "time_embedding.frequencies"
    }


def test_a_frozen_condition_encoder_gets_no_gradient(tiny_unet: UnetConfig) -> None:
    unet = Unet(tiny_unet.model_copy(update={"freeze_condition_encoder": True}))
    run(unet)[0].sum().backward()
    assert all(p.grad is None for p in unet.condition_encoder.parameters())
    assert unet.projections[0].weight.grad is not None


@pytest.mark.parametrize(
    ("x", "t", "cond", "message"),
    [
        ((1, 3, 16, 16), (1,), (1, 5, 64, 64), r"wants \(B, 3, H, W\); set unet.cond_channels"),
        (
            (1, 3, 16, 16),
            (1,),
            (1, 3, 64, 80),
            "64x80; give sides that are multiples of 32, because the Swin",
        ),
        ((1, 3, 16, 16), (1,), (1, 3, 128, 128), r"wants \(1, 3, 32, 32\) and \(1,\)"),
        ((2, 3, 16, 16), (1,), (2, 3, 64, 64), r"t \(1,\)"),
        ((1, 4, 16, 16), (1,), (1, 3, 64, 64), r"latent has shape \(1, 4, 16, 16\)"),
        (
            (1, 3, 32, 24),
            (1,),
            (1, 3, 128, 96),
            r"map is 128x96, which the .* do not fit; set it to \(48, 40\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_what_would(
    tiny_unet: UnetConfig, x: tuple[int, ...], t: tuple[int, ...], cond: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Unet(tiny_unet)(torch.zeros(x), torch.full(t, 0.5), torch.zeros(cond))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim_mults": (1, 2, 4)}, "dim_mults has 3 levels, windows 4, swin.depths 4; give all the same"),
        ({"dim": 20}, "give multiples of 8"),
        ({"cond_channels": 4}, "cond_channels is 4; give 3, or 5"),
        ({"input_size": (16, 80)}, "leaves no frequency"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UnetConfig.model_validate(values)
