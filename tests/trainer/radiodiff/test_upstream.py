"""Upstream's checkpoints: every name, files of both stages there and back, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.radiodiff.autoencoder import Autoencoder
from trainer.radiodiff.diffusion import DiffusionConfig, LatentDiffusion
from trainer.radiodiff.first_stage import FirstStage, FirstStageConfig
from trainer.radiodiff.perceptual import Lpips
from trainer.radiodiff.swin import SwinEncoder
from trainer.radiodiff.upstream import (
    NO_PLACE,
    SCHEDULE_BUFFERS,
    UpstreamMismatch,
    load_autoencoder,
    load_diffusion,
    load_first_stage,
    load_torchvision_swin,
    read_file,
    write_file,
)
from trainer.radiodiff.upstream_names import Kind, to_ours, to_upstream

VAE = "first_stage_model."
CARS = ("model.init_conv_carK.weight", "model.init_conv_carK.bias")


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def with_constants(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_buffers()), **module.state_dict()}


@pytest.fixture(scope="module")
def published() -> LatentDiffusion:
    """The published size, without memory for its weights."""
    with torch.device("meta"):
        return LatentDiffusion(DiffusionConfig())


@pytest.fixture(scope="module")
def published_first_stage() -> FirstStage:
    with torch.device("meta"):
        stage = FirstStage(FirstStageConfig())
        stage.perceptual = Lpips()
    return stage


# -- names --------------------------------------------------------------------------------------------------


def kinds_of_names(upstream_tensors: Any) -> dict[Kind, dict[str, tuple[tuple[int, ...], torch.dtype]]]:
    whole = {tensor.name: (tensor.shape, tensor.dtype) for tensor in upstream_tensors}
    return {
        "diffusion": whole,
        "first_stage": {name.removeprefix(VAE): form for name, form in whole.items() if name.startswith(VAE)},
    }


@pytest.mark.parametrize(("kind", "count"), [("diffusion", 1536), ("first_stage", 372)])
def test_every_published_tensor_has_one_name_here(
    upstream_tensors: Any,
    published: LatentDiffusion,
    published_first_stage: FirstStage,
    kind: Kind,
    count: int,
) -> None:
    names = kinds_of_names(upstream_tensors)[kind]
    assert len(names) == count
    ours = {to_ours(name, kind): form for name, form in names.items()}
    assert len(ours) == count
    assert {to_upstream(name, kind) for name in ours} == set(names)

    model = published if kind == "diffusion" else published_first_stage
    held = {name: (tuple(t.shape), t.dtype) for name, t in with_constants(model).items()}
    assert {name: form for name, form in ours.items() if name in held} == held
    assert all(NO_PLACE.match(name) for name in ours if name not in held)


def test_the_tensors_without_a_place_are_the_known_ones(
    upstream_tensors: Any, published: LatentDiffusion
) -> None:
    names = [to_ours(tensor.name, "diffusion") for tensor in upstream_tensors]
    held = with_constants(published)
    groups = {".".join(name.split(".")[:2]) for name in names if name not in held}
    assert {name for name in groups if "." in name} == {
        f"{VAE}loss",
        f"{VAE}loss_pinn",
        f"{VAE}loss_pinn_dpm2irt4",
    }
    assert {name for name in groups if "." not in name} == set(SCHEDULE_BUFFERS)


def test_parameters_are_counted_as_published(
    published: LatentDiffusion, published_first_stage: FirstStage
) -> None:
    def count(*parameters: nn.Parameter) -> int:
        return sum(parameter.numel() for parameter in parameters)

    unet, stage = published.unet, published_first_stage
    assert count(*unet.parameters()) == 224_869_496
    assert count(*unet.condition_encoder.parameters()) == 87_768_224
    assert count(*(p for p in published.parameters() if p.requires_grad)) == 224_869_432
    assert count(*stage.autoencoder.encoder.parameters()) == 22_348_934
    assert count(*stage.autoencoder.decoder.parameters()) == 32_958_465
    assert count(*stage.discriminator.parameters()) == 2_763_585
    assert stage.perceptual is not None
    assert count(*stage.perceptual.parameters()) == 14_716_160
    loss = count(*stage.parameters()) - count(*stage.autoencoder.parameters())
    assert loss == 17_479_746
    # upstream keeps three copies of the loss in every model, ours none
    assert count(*published.parameters()) + 3 * loss == 332_616_187


# -- files --------------------------------------------------------------------------------------------------


def as_upstream(module: nn.Module, kind: Kind) -> dict[str, Tensor]:
    """What upstream's state dict would hold of ours."""
    return {to_upstream(name, kind): tensor.clone() for name, tensor in with_constants(module).items()}


@pytest.fixture
def full_file(
    tmp_path: Path, upstream_tensors: Any, tiny_diffusion: DiffusionConfig
) -> tuple[Path, dict[str, Any]]:
    """A file of the second stage with exactly the published keys, in reduced widths, with an EMA."""
    swin = tiny_diffusion.unet.swin.model_copy(update={"depths": (2, 2, 18, 2)})
    unet = tiny_diffusion.unet.model_copy(update={"swin": swin})
    torch.manual_seed(11)
    held = as_upstream(LatentDiffusion(tiny_diffusion.model_copy(update={"unet": unet})), "diffusion")
    tensors = {t.name: held.get(t.name, torch.rand(2).to(t.dtype)) for t in upstream_tensors}
    assert set(held) <= set(tensors)
    ema = {f"ema_model.{name}": t * 2 if t.is_floating_point() else t for name, t in tensors.items()}
    content = {
        "step": 24_000,
        "model": tensors,
        "opt": {},
        "scaler": None,
        "ema": {"initted": torch.tensor([True]), **ema},
    }
    torch.save(content, tmp_path / "model-24.pt")
    return tmp_path / "model-24.pt", content


def fitting(config: DiffusionConfig) -> LatentDiffusion:
    swin = config.unet.swin.model_copy(update={"depths": (2, 2, 18, 2)})
    return LatentDiffusion(config.model_copy(update={"unet": config.unet.model_copy(update={"swin": swin})}))


def test_a_file_of_the_second_stage_comes_back_as_it_was(
    full_file: tuple[Path, dict[str, Any]], tiny_diffusion: DiffusionConfig, tmp_path: Path
) -> None:
    path, content = full_file
    file, model = read_file(path), fitting(tiny_diffusion)
    assert (file.kind, file.step, file.release) == ("diffusion", 24_000, "2025")
    leftovers = load_diffusion(model, file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, content["model"][to_upstream(name, "diffusion")]), name

    write_file(tmp_path / "back.pt", model, leftovers=leftovers, ema=file.ema, step=24_000)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert_same(back["model"], content["model"])
    averaged = {name: tensor for name, tensor in back["ema"].items() if name.startswith("ema_model.")}
    assert all(torch.equal(tensor, content["ema"][name]) for name, tensor in averaged.items())
    assert len(averaged) == 1536
    assert back["step"] == 24_000


def test_the_average_is_loaded_where_it_is_asked_for(
    full_file: tuple[Path, dict[str, Any]], tiny_diffusion: DiffusionConfig
) -> None:
    path, content = full_file
    model = fitting(tiny_diffusion)
    load_diffusion(model, read_file(path), use_ema=True)
    name = "model.final_conv.weight"
    torch.testing.assert_close(model.unet.drift_decoder.final_conv.weight.data, 2 * content["model"][name])


def test_an_autoencoder_comes_out_of_either_stage(
    full_file: tuple[Path, dict[str, Any]], tiny_first_stage: FirstStageConfig, tmp_path: Path
) -> None:
    path, content = full_file
    target = Autoencoder(tiny_first_stage.autoencoder)
    load_autoencoder(target, read_file(path), use_ema=False)
    assert torch.equal(target.quant_conv.weight, content["model"][f"{VAE}quant_conv.weight"])
    load_autoencoder(target, read_file(path))
    assert torch.equal(target.quant_conv.weight, 2 * content["model"][f"{VAE}quant_conv.weight"])

    stage = FirstStage(tiny_first_stage)
    write_file(tmp_path / "first.pt", stage)
    load_autoencoder(target, read_file(tmp_path / "first.pt"))
    assert torch.equal(target.quant_conv.weight, stage.autoencoder.quant_conv.weight)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_of_the_first_stage_comes_back_as_it_was(
    tiny_first_stage: FirstStageConfig, upstream_tensors: Any, tmp_path: Path, wrapped: bool
) -> None:
    torch.manual_seed(12)
    held = as_upstream(FirstStage(tiny_first_stage), "first_stage")
    names = kinds_of_names(upstream_tensors)["first_stage"]
    tensors = {name: held.get(name, torch.rand(2)) for name in names}
    torch.save({"model": tensors} if wrapped else tensors, tmp_path / "model-1.pt")
    file, stage = read_file(tmp_path / "model-1.pt"), FirstStage(tiny_first_stage)
    assert (file.kind, file.step, file.ema) == ("first_stage", None, None)
    leftovers = load_first_stage(stage, file)
    write_file(tmp_path / "back.pt", stage, leftovers=leftovers)
    back = torch.load(tmp_path / "back.pt", weights_only=True)["model"]
    assert_same(back, tensors)


def test_our_own_model_is_written_and_read_without_leftovers(
    model: LatentDiffusion, tiny_diffusion: DiffusionConfig, tmp_path: Path
) -> None:
    write_file(tmp_path / "ours.pt", model)
    other = LatentDiffusion(tiny_diffusion)
    assert load_diffusion(other, read_file(tmp_path / "ours.pt")) == {}
    assert_same(other.state_dict(), model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["ours.pt"]


def test_torchvision_s_swin_becomes_the_condition_encoder(
    tiny_diffusion: DiffusionConfig, tmp_path: Path
) -> None:
    torch.manual_seed(13)
    source, target = (SwinEncoder(tiny_diffusion.unet.swin) for _ in range(2))
    tensors = {}
    for name, tensor in with_constants(source).items():
        upstream = to_upstream(f"unet.condition_encoder.{name}", "diffusion").removeprefix(
            "model.init_conv_mask."
        )
        kind, _, rest = upstream.partition(".")
        if kind == "first_coonv":
            upstream = f"features.0.{rest}"
        elif kind == "features":
            index, _, rest = rest.partition(".")
            upstream = f"features.{int(index) + 1}.{rest}"
        tensors[upstream] = tensor
    assert "features.1.0.attn.relative_position_bias_table" in tensors
    torch.save(tensors, tmp_path / "swin_b.pth")
    load_torchvision_swin(target, tmp_path / "swin_b.pth")
    assert_same(target.state_dict(), source.state_dict())


# -- what is allowed and what is refused ---------------------------------------------------------------------


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save({"model": tensors}, path)
    return path


@pytest.fixture
def bare(model: LatentDiffusion) -> dict[str, Tensor]:
    """Upstream's tensors of a reduced model, with nothing that has no place here."""
    return as_upstream(model, "diffusion")


def test_missing_and_extra_tensors_are_named(
    model: LatentDiffusion, bare: dict[str, Tensor], tmp_path: Path
) -> None:
    del bare["model.time_mlp.0.W"], bare["model.downs.1.2.fn.norm.g"]
    bare["model.downs.9.0.weight"] = bare["surprise"] = torch.zeros(1)
    with pytest.raises(UpstreamMismatch) as caught:
        load_diffusion(model, read_file(saved(tmp_path / "model-3.pt", bare)))
    assert set(caught.value.missing) == {"model.time_mlp.0.W", "model.downs.1.2.fn.norm.g"}
    assert set(caught.value.extra) == {"model.downs.9.0.weight", "surprise"}
    for name in (*caught.value.missing, *caught.value.extra):
        assert name in str(caught.value)


def test_a_refused_file_leaves_the_model_as_it_was(
    model: LatentDiffusion, bare: dict[str, Tensor], tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken = {name: tensor + 1 for name, tensor in bare.items() if "final_conv2" not in name}
    with pytest.raises(UpstreamMismatch):
        load_diffusion(model, read_file(saved(tmp_path / "model-3.pt", broken)))
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize(
    "name",
    [
        "model.init_conv.0.weight",
        "model.init_conv_mask.features.0.0.attn.relative_position_index",
        "scale_factor",
    ],
)
def test_a_tensor_of_another_form_is_named(
    model: LatentDiffusion, bare: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    bare[name] = torch.zeros(3, 3)
    with pytest.raises(UpstreamMismatch, match="differs in " + name.replace(".", r"\.")):
        load_diffusion(model, read_file(saved(tmp_path / "model-3.pt", bare)))


def test_a_first_stage_of_another_configuration_is_refused(
    tiny_first_stage: FirstStageConfig, tmp_path: Path
) -> None:
    write_file(tmp_path / "first.pt", FirstStage(tiny_first_stage))
    wider = Autoencoder(tiny_first_stage.autoencoder.model_copy(update={"base_channels": 16}))
    with pytest.raises(
        UpstreamMismatch, match=r"differs in encoder\.conv_in\.weight.*Give the configuration"
    ):
        load_autoencoder(wider, read_file(tmp_path / "first.pt"))


def test_the_cars_convolution_may_be_missing_where_it_is_unused(
    model: LatentDiffusion, bare: dict[str, Tensor], tmp_path: Path
) -> None:
    bare[f"{VAE}loss_pinn.logvar"] = torch.zeros(())
    load_diffusion(
        model, read_file(saved(tmp_path / "model-3.pt", {n: t for n, t in bare.items() if n not in CARS}))
    )


def test_the_cars_convolution_may_not_be_missing_with_five_channels(
    tiny_diffusion: DiffusionConfig, tmp_path: Path
) -> None:
    unet = tiny_diffusion.unet.model_copy(update={"cond_channels": 5})
    model = LatentDiffusion(tiny_diffusion.model_copy(update={"unet": unet}))
    tensors = {name: t for name, t in as_upstream(model, "diffusion").items() if name not in CARS}
    tensors[f"{VAE}loss_pinn.logvar"] = torch.zeros(())
    with pytest.raises(UpstreamMismatch) as caught:
        load_diffusion(model, read_file(saved(tmp_path / "model-3.pt", tensors)))
    assert set(caught.value.missing) == set(CARS)


def test_the_release_of_2024_12_needs_its_own_options(
    model: LatentDiffusion, bare: dict[str, Tensor], tiny_diffusion: DiffusionConfig, tmp_path: Path
) -> None:
    old = read_file(saved(tmp_path / "model-3.pt", {n: t for n, t in bare.items() if n not in CARS}))
    assert old.release == "2024-12"
    with pytest.raises(ValueError, match=r'set unet\.apply_aft = false and weighting = "2024-12"'):
        load_diffusion(model, old)
    unet = tiny_diffusion.unet.model_copy(update={"apply_aft": False})
    fitting_model = LatentDiffusion(tiny_diffusion.model_copy(update={"unet": unet, "weighting": "2024-12"}))
    load_diffusion(fitting_model, old)
    write_file(tmp_path / "back.pt", fitting_model)
    assert read_file(tmp_path / "back.pt").release == "2024-12"


def test_a_file_of_the_other_stage_is_refused(
    model: LatentDiffusion, bare: dict[str, Tensor], tiny_first_stage: FirstStageConfig, tmp_path: Path
) -> None:
    stage = FirstStage(tiny_first_stage)
    write_file(tmp_path / "first.pt", stage)
    with pytest.raises(
        ValueError, match=r"first\.pt is a first_stage checkpoint; give one of the diffusion stage"
    ):
        load_diffusion(model, read_file(tmp_path / "first.pt"))
    with pytest.raises(ValueError, match="give one of the first_stage stage"):
        load_first_stage(stage, read_file(saved(tmp_path / "model-3.pt", bare)))


def test_an_average_that_is_not_there_is_refused(
    model: LatentDiffusion, bare: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no EMA"):
        load_diffusion(model, read_file(saved(tmp_path / "model-3.pt", bare)), use_ema=True)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize("content", ["truncated", "code", "other"])
def test_a_file_that_holds_no_model_is_refused(
    bare: dict[str, Tensor], tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "model-3.pt", bare)
    if content == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        torch.save({"model": Evil()} if content == "code" else {"weights": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"no PyTorch file that can be read|holds no RadioDiff model"):
        read_file(path)
    assert capsys.readouterr().out == ""
