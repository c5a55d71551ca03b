"""A run of the reduced model that a few steps have trained, made once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.__main__ import main
from trainer.checkpoint import Record, Stored, list_records, read
from trainer.config import load
from trainer.data.radiomaps import EMBEDDED
from trainer.pipeline import train

REDUCED = Path(__file__).with_name("reduced.toml").read_text()


def write_config(folder: Path, changes: dict[str, str]) -> Path:
    """A configuration beside the run's folder; ``changes`` replace text, and each must be there."""
    text = REDUCED.replace("FOLDER", str(folder)).replace("ROOT", str(_six_maps(folder.parent)))
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder.with_suffix(".toml")
    path.write_text(text)
    return path


def _six_maps(beside: Path) -> Path:
    """Three of the embedded maps to train on, one to validate with, and two held out."""
    root = beside / "maps"
    listed = json.loads((EMBEDDED / "maps.json").read_text())["maps"]
    chosen = [
        one
        for split, count in (("train", 3), ("val", 1), ("test", 2))
        for one in [one for one in listed if one["split"] == split][:count]
    ]
    for folder in ("gain/RT", "png/buildings_complete", "png/antennas"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for one in chosen:
            for file in (EMBEDDED / folder).glob(f"{one['map']}[._]*"):
                shutil.copy(file, root / folder / file.name)
    (root / "maps.json").write_text(json.dumps({"maps": chosen}))
    return root


@dataclass(frozen=True)
class Run:
    """A configuration file, and the folder of its run."""

    config: Path
    folder: Path

    def newest(self, stage: str = "") -> tuple[Record, Stored]:
        """Its newest checkpoint."""
        record = list_records(self.folder / stage / "checkpoints")[0]
        return record, read(record.path)


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "run"
    path = write_config(folder, {})
    train(load(path))
    return Run(path, folder)


@pytest.fixture
def trained(_trained_once: Run, tmp_path: Path) -> Run:
    """A copy of the trained run that a test may change."""
    folder = tmp_path / "trained"
    shutil.copytree(_trained_once.folder, folder)
    return Run(write_config(folder, {}), folder)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """A run that has not begun; ``changes`` are texts of the configuration and what replaces them."""

    def make(name: str = "fresh", /, **changes: Any) -> Run:
        folder = tmp_path / name
        return Run(write_config(folder, changes.get("changes", {})), folder)

    return make


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command that succeeds; its answer as JSON."""

    def run(*words: str | Path) -> dict[str, Any]:
        code = main([*map(str, words), "--json"])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        facts: dict[str, Any] = json.loads(shown.out)
        return facts

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that is refused; its one sentence."""

    def run(*words: str | Path, code: int = 2) -> str:
        found = main([*map(str, words)])
        shown = capsys.readouterr()
        assert (found, shown.out) == (code, ""), shown.err
        last = shown.err.splitlines()[-1]
        assert "Traceback" not in shown.err
        return last

    return run
