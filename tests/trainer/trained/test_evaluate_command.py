"""The command that scores a trained model: same numbers as the training's own, and it only looks."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.__main__ import main
from trainer.checkpoint import CheckpointRing, RingConfig, read
from trainer.console import counted
from trainer.evaluation import Standing
from trainer.radiodiff.metrics import MapScores

SCORES = ("nmse", "rmse", "ssim", "psnr", "peak_distance")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below the folder with its size and time of change."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {str(path): (facts.st_size, facts.st_mtime_ns) for path, facts in found.items()}


def test_the_numbers_are_those_at_the_end_of_the_training(trained: Any, told: Any) -> None:
    facts = told("evaluate", trained.config)
    summary = json.loads((trained.folder / "summary.json").read_text())["evaluation"]
    for method in ("drawn", "path_loss", "mean_map"):
        for kind in ("mean", "margin"):
            assert facts[method][kind] == pytest.approx(summary[method][kind], rel=1e-5)
    assert facts["num_maps"] == 2
    assert facts["weights"] == "averaged"
    assert "maps" not in summary


def test_each_drawn_map_has_a_row_and_their_means_are_those_told(
    trained: Any, told: Any, tmp_path: Path
) -> None:
    facts = told("evaluate", trained.config, "--csv", tmp_path / "maps.csv")
    with (tmp_path / "maps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", *SCORES, "seconds"]
    assert [row["id"] for row in rows] == [one["id"] for one in facts["maps"]]
    for score in SCORES:
        mean = sum(float(row[score]) for row in rows) / len(rows)
        assert mean == pytest.approx(facts["drawn"]["mean"][score])
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_another_split_a_few_maps_and_a_picture(trained: Any, told: Any, tmp_path: Path) -> None:
    facts = told(
        "evaluate", trained.config, "--split", "train", "--limit", "2", "--picture", tmp_path / "maps.png"
    )
    assert (facts["split"], facts["num_maps"], len(facts["maps"])) == ("train", 2, 2)
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.width > 0


def test_the_average_draws_unless_the_live_weights_are_asked_for(trained: Any, told: Any) -> None:
    one, other = (told("evaluate", trained.config, "--limit", "1", *words) for words in ([], ["--live"]))
    assert one["drawn"]["mean"] != other["drawn"]["mean"]
    assert one["mean_map"]["mean"] == other["mean_map"]["mean"]


def test_one_window_alone_has_no_margin(trained: Any, told: Any) -> None:
    assert told("evaluate", trained.config, "--limit", "1")["drawn"]["margin"] is None


def test_nothing_in_the_run_s_folder_changes(trained: Any, told: Any) -> None:
    """A training may be going on there: drafts of its saves included, all stays as it is."""
    (trained.folder / "checkpoints" / ".step-00000004-attempt-1.tmp-1-abcd").mkdir()
    before = tree(trained.folder)
    told("evaluate", trained.config, "--limit", "1")
    assert tree(trained.folder) == before


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(trained: Any, told: Any) -> None:
    record, stored = trained.newest()
    ring = CheckpointRing(trained.folder / "checkpoints", RingConfig())
    ring.save(stored.parts, stored.facts, step=1, attempt=1)
    _damage(record.path)
    before = tree(trained.folder)
    facts = told("evaluate", trained.config, "--limit", "1")
    assert facts["checkpoint"] == "step-00000001-attempt-1"
    assert tree(trained.folder) == before


def _damage(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_where_no_checkpoint_can_be_trusted_it_ends_with_4(trained: Any, refused: Any) -> None:
    _damage(trained.newest()[0].path)
    words = refused("evaluate", trained.config, code=4)
    assert "no valid checkpoint" in words
    assert "step-00000003-attempt-1" in words


def test_an_option_that_no_shape_shows_is_seen_by_the_probe(trained: Any, new_run: Any, refused: Any) -> None:
    run = new_run(changes={"[2, 2], [1, 1]": "[1, 1], [2, 2]"})
    shutil.copytree(trained.folder, run.folder)
    words = refused("evaluate", run.config)
    assert words.startswith("step-00000003-attempt-1 does not do under this configuration what it did")
    assert "probe loss" in words


def test_other_maps_than_those_of_the_training_are_scored_without_the_probe(
    trained: Any, new_run: Any, told: Any
) -> None:
    run = new_run(changes={"num_transmitters = 1": "num_transmitters = 2"})
    shutil.copytree(trained.folder, run.folder)
    assert told("evaluate", run.config, "--limit", "2")["num_maps"] == 2


def test_a_model_of_another_size_is_refused(trained: Any, new_run: Any, refused: Any) -> None:
    run = new_run(changes={"dim = 16": "dim = 24"})
    shutil.copytree(trained.folder, run.folder)
    assert "does not fit this configuration" in refused("evaluate", run.config)
    assert read(run.newest()[0].path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--limit", "0"], "--limit 0: give 1 or more maps"),
        (["--csv", "nowhere/maps.csv"], "cannot write nowhere/maps.csv: there is no folder nowhere"),
        (["--picture", "nowhere/maps.png"], "cannot write nowhere/maps.png: there is no folder nowhere"),
    ],
)
def test_what_could_not_be_done_is_refused_before_anything_is_drawn(
    new_run: Any, refused: Any, words: list[str], told: str
) -> None:
    assert refused("evaluate", new_run().config, *words).startswith(told)


def test_people_get_a_table_with_the_two_guesses(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained.config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step-00000003-attempt-1, averaged weights, 1 sampling steps"
    assert lines[1].split() == [
        "2",
        "test",
        "maps",
        "NMSE",
        "RMSE",
        "SSIM",
        "PSNR",
        "dB",
        "peak",
        "px",
        "off",
    ]
    assert [line[:17].rstrip() for line in lines[2:5]] == [
        "drawn maps",
        "path-loss model",
        "mean training map",
    ]
    assert lines[5].startswith("NMSE of the drawn maps is ")


def test_margins_are_those_of_the_windows_and_not_of_the_maps() -> None:
    """Four maps of two windows: two numbers, of which Student's t with one degree of freedom speaks."""
    scores = [MapScores(nmse, 0, 0, 0, 0) for nmse in (1.0, 3.0, 5.0, 7.0)]
    standing = Standing.of(scores, ["4_0", "4_1", "9_0", "9_1"])
    assert standing.mean.nmse == 4
    assert standing.margin is not None
    assert standing.margin.nmse == pytest.approx(12.7062 * 8**0.5 / 2**0.5, rel=1e-4)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_people_see_how_far_the_drawing_is(is_terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with counted(is_terminal) as progress:
        progress(2, 6)
    shown = capsys.readouterr()
    assert ("2/6" if is_terminal else "2 of 6 maps drawn") in shown.err
    assert shown.out == ""
