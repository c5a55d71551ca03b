"""Upstream's files come in as checkpoints that a run goes on from, and go out again to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.checkpoint import read
from trainer.config import load
from trainer.importing import import_model
from trainer.pipeline import train
from trainer.radiodiff.upstream import NO_PLACE

LOSSES = ("loss", "loss_pinn", "loss_pinn_dpm2irt4")
WITHOUT_FILTERS = {"input_size = [48, 48]": "input_size = [48, 48]\napply_aft = false"}
RELEASE_2024_12 = {
    **WITHOUT_FILTERS,
    "[diffusion.model.unet]\n": '[diffusion.model]\nweighting = "2024-12"\n\n[diffusion.model.unet]\n',
}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name].numpy().tobytes() != other[name].numpy().tobytes()]


@pytest.fixture
def exported(trained: Any, told: Any, tmp_path: Path) -> Path:
    """The trained run's second stage as upstream's file."""
    told("export", trained.config, tmp_path / "model-3.pt")
    return tmp_path / "model-3.pt"


@pytest.fixture
def edited(exported: Path) -> Callable[..., Path]:
    """That file after ``change`` has worked on its content."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> Path:
        content = torch.load(exported, weights_only=True)
        change(content)
        torch.save(content, exported)
        return exported

    return edit


@pytest.mark.parametrize("stage", ["", "first-stage"])
def test_what_went_out_comes_in_to_the_bit(
    trained: Any, new_run: Any, told: Any, tmp_path: Path, stage: str
) -> None:
    told("export", trained.config, tmp_path / "out.pt", *(["--first-stage"] if stage else []))
    run = new_run()
    facts = told("import", tmp_path / "out.pt", run.config)
    (before, left), (after, came) = trained.newest(stage), run.newest(stage)
    assert after.name == facts["checkpoint"]["name"]
    assert (after.step, after.state) == (before.step, "sealed")
    assert [differing(came.parts[part], left.parts[part]) for part in ("model", "ema")] == [[], []]
    assert came.facts["probe"] == left.facts["probe"]


def test_a_run_goes_on_from_an_imported_file(exported: Path, new_run: Any, told: Any) -> None:
    run = new_run(changes={"steps = 3\n": "steps = 4\n"})
    told("import", exported, run.config)
    record, stored = run.newest()
    moments = stored.parts["optimizer"]
    assert all(not moments[name].any() for name in moments)
    assert (stored.facts["step"], stored.facts["applied"]) == (3, {"diffusion": 3})
    assert record.probe_loss is not None

    summary = train(load(run.config))
    assert (summary.status, summary.steps, summary.attempts) == ("finished", 4, 2)
    assert not (run.folder / "first-stage").exists(), "the imported autoencoder needs no training"
    assert summary.findings == []


def test_an_imported_first_stage_is_what_the_diffusion_is_trained_on(
    trained: Any, new_run: Any, told: Any, tmp_path: Path
) -> None:
    told("export", trained.config, tmp_path / "vae.pt", "--first-stage")
    run = new_run(changes={"steps = 3\n": "steps = 1\n"})
    told("import", tmp_path / "vae.pt", run.config)
    train(load(run.config))
    averages = trained.newest("first-stage")[1].parts["ema"]
    weights = run.newest()[1].parts["model"]
    autoencoder = {name: tensor for name, tensor in averages.items() if name.startswith("autoencoder.")}
    assert differing({name: weights[name] for name in autoencoder}, autoencoder) == []


def test_a_file_with_a_model_only_starts_at_step_0_with_its_own_average(
    edited: Any, new_run: Any, told: Any
) -> None:
    run = new_run()
    facts = told("import", edited(lambda content: (content.pop("step"), content.pop("ema"))), run.config)
    assert not facts["has_ema"]
    record, stored = run.newest()
    weights, average = stored.parts["model"], stored.parts["ema"]
    assert record.step == 0
    assert differing({name: weights[name] for name in average}, average) == []


def test_the_average_alone_goes_out_as_the_model_itself(trained: Any, told: Any, tmp_path: Path) -> None:
    """Upstream's test script reads ``model`` and looks for nothing else."""
    told("export", trained.config, tmp_path / "both.pt")
    told("export", trained.config, tmp_path / "average.pt", "--ema")
    both, average = (torch.load(tmp_path / name, weights_only=True) for name in ("both.pt", "average.pt"))
    assert set(average) == {"model"}
    expected = {name: both["ema"][f"ema_model.{name}"] for name in both["model"]}
    assert differing(average["model"], expected) == []
    assert differing(both["model"], expected) != []


def test_loading_the_average_leaves_the_live_weights_alone(exported: Path, new_run: Any) -> None:
    """Upstream loads ``online_model`` over the live model; here each has its own tensors."""
    content = torch.load(exported, weights_only=True)
    for name in content["model"]:
        content["ema"][f"online_model.{name}"] = torch.zeros(())
    torch.save(content, exported)
    run = new_run()
    import_model(exported, load(run.config))
    name = "unet.drift_decoder.final_conv.weight"
    stored = run.newest()[1].parts
    assert torch.equal(stored["model"][name], content["model"]["model.final_conv.weight"])
    assert torch.equal(stored["ema"][name], content["ema"]["ema_model.model.final_conv.weight"])
    assert not torch.equal(stored["model"][name], stored["ema"][name])


def test_what_has_no_place_here_is_counted_and_left_out(edited: Any, new_run: Any, told: Any) -> None:
    """A published file holds three copies of the first stage's loss, and buffers that nobody reads."""
    keys = (Path(__file__).parents[1] / "radiodiff/upstream_keys.txt").read_text().splitlines()
    idle = [name for name in (line.split()[0] for line in keys) if NO_PLACE.match(name)]
    assert {name.split(".")[1] for name in idle if "." in name} == set(LOSSES)
    run = new_run()
    path = edited(lambda content: content["model"].update({name: torch.ones(1) for name in idle}))
    assert told("import", path, run.config)["left_out"] == len(idle) == 181


def test_the_release_of_2024_12_comes_in_with_its_options(edited: Any, new_run: Any, told: Any) -> None:
    path = edited(lambda content: _drop(content, "model.init_conv_carK."))
    told("import", path, new_run(changes=RELEASE_2024_12).config)


def _drop(content: dict[str, Any], prefix: str) -> None:
    for part, beginning in (("model", ""), ("ema", "ema_model."), ("ema", "online_model.")):
        for name in [name for name in content[part] if name.startswith(beginning + prefix)]:
            del content[part][name]


def _rename(content: dict[str, Any]) -> None:
    content["model"]["model.surprise"] = content["model"].pop("model.final_conv.weight")


def _poison(content: dict[str, Any]) -> None:
    content["model"]["model.final_conv.weight"][0, 0] = torch.nan


REFUSED: dict[str, tuple[Any, dict[str, str], str, int]] = {
    "another name": (
        _rename,
        {},
        "model-3.pt does not fit this configuration: lacks model.final_conv.weight; has no place for "
        "model.surprise; give the one that it was trained with",
        2,
    ),
    "another size": (
        lambda content: None,
        {"dim = 16": "dim = 24"},
        " more; give the one that it was trained with",
        2,
    ),
    "an average that lacks something": (
        lambda content: content["ema"].pop("ema_model.model.final_conv.bias"),
        {},
        "lacks model.final_conv.bias",
        2,
    ),
    "the release of 2024-12": (
        lambda content: _drop(content, "model.init_conv_carK."),
        {},
        'set unet.apply_aft = false and weighting = "2024-12"',
        2,
    ),
    "a later release without its filters": (
        lambda content: None,
        WITHOUT_FILTERS,
        "set unet.apply_aft = true",
        2,
    ),
    "a NaN": (_poison, {}, "model/unet.drift_decoder.final_conv.weight", 1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_left(
    edited: Any, new_run: Any, refused: Any, case: str
) -> None:
    change, changes, words, code = REFUSED[case]
    run = new_run(changes=changes)
    assert words in refused("import", edited(change), run.config, code=code)
    checkpoints = run.folder / "checkpoints"
    assert not checkpoints.exists() or not list(checkpoints.iterdir())


def test_a_first_stage_of_another_configuration_is_refused(
    trained: Any, new_run: Any, told: Any, refused: Any, tmp_path: Path
) -> None:
    told("export", trained.config, tmp_path / "vae.pt", "--first-stage")
    run = new_run(changes={"base_channels = 8": "base_channels = 16"})
    words = refused("import", tmp_path / "vae.pt", run.config)
    assert words.startswith("vae.pt does not fit this configuration: differs in encoder.conv_in.weight, ")


def test_a_run_that_has_begun_is_not_imported_into(trained: Any, exported: Path, refused: Any) -> None:
    before = read(trained.newest()[0].path).manifest
    words = refused("import", exported, trained.config)
    assert words.startswith(f"run reduced has checkpoints already, in {trained.folder}; give another run.fol")
    assert read(trained.newest()[0].path).manifest == before


def test_what_is_no_checkpoint_is_refused(new_run: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 not a zip")
    assert "is no PyTorch file that can be read" in refused("import", tmp_path / "model.pt", new_run().config)
    assert "is no PyTorch file that can be read" in refused("import", tmp_path / "none.pt", new_run().config)


def test_a_flipped_bit_is_seen(exported: Path, new_run: Any, refused: Any) -> None:
    """torch.load would take it for a weight."""
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 1
    exported.write_bytes(content)
    assert "does not agree with its checksum" in refused("import", exported, new_run().config)


def test_a_run_without_checkpoints_is_not_exported(new_run: Any, refused: Any, tmp_path: Path) -> None:
    run = new_run()
    assert "there are no checkpoints in" in refused("export", run.config, tmp_path / "out.pt")
    words = refused("export", run.config, tmp_path / "nowhere" / "out.pt")
    assert words.endswith("there is no folder " + str(tmp_path / "nowhere") + "; make it first")
    assert not run.folder.exists()
