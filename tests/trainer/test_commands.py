"""The trainer's commands: one clear line and an exit code for all that can be wrong, JSON for who asks."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from trainer import __main__ as program
from trainer.__main__ import main
from trainer.data.errors import BadFile
from trainer.errors import ConfigError, ResumeRefused, RunStopped, StopRequested, TrainerError
from trainer.loop import Loop


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose run would live in ``tmp_path/run``."""
    path = tmp_path / "run.toml"
    path.write_text(
        f"[run]\nfolder = '{tmp_path / 'run'}'\n[diffusion.model.unet]\ninput_size = [24, 24]\n"
        "[data]\nimage_size = 32\nnum_transmitters = 1\n"
    )
    return path


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_configuration_that_will_run_is_told_with_its_maps(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answer(capsys, "check", config, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["maps"]["train"] > facts["maps"]["test"] > 0


def test_a_wrong_configuration_ends_with_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("[run]\nthread = 1\n")
    for command in ("check", "run"):
        code, out, err = answer(capsys, command, config)
        assert (code, out) == (2, "")
        assert "run.thread: no such key; there are name, project, folder" in err


def test_a_folder_that_cannot_be_written_to_ends_with_2(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    code, out, err = answer(capsys, "check", config)
    assert (code, out) == (2, "")
    assert err == f"cannot write to run.folder = {tmp_path / 'run'}: File exists; choose another folder\n"


def test_data_that_is_not_there_ends_with_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + "root = '/nowhere'\n")
    code, out, err = answer(capsys, "check", config)
    assert (code, out) == (2, "")
    assert err.startswith("/nowhere: there is no such folder")
    assert err.count("\n") == 1


def test_a_device_that_is_not_there_ends_with_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("[run]\n", "[run]\ndevice = 'cuda:99'\n"))
    code, _, err = answer(capsys, "check", config)
    assert code == 2
    assert err.startswith("run.device = cuda:99, but torch sees ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunStopped("no rung left"), 3),
        (ResumeRefused("none can be trusted"), 4),
        (StopRequested("a wish"), 0),
        (ConfigError("wrong"), 2),
        (TrainerError("else"), 1),
        (BadFile(Path("a.png"), "is empty"), 2),
        (OSError(28, "No space left on device", "summary.json"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_ending_has_its_code_and_one_line(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(program, "train", fail)
    found, out, err = answer(capsys, "run", config)
    assert (found, out) == (code, "")
    assert err == (f"{error}\n" if not isinstance(error, KeyboardInterrupt) else "")


def test_an_error_is_json_for_who_asks(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("=")
    code, _, err = answer(capsys, "run", config, "--json")
    assert code == 2
    facts = json.loads(err)
    assert facts["error"] == "ConfigError"
    assert "is not TOML" in facts["detail"]


@pytest.mark.parametrize("command", ["run", "check", "checkpoints", "deliver", "demo"])
def test_every_command_has_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main([command, "--help"])
    assert ending.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command}" in text for command in ("run", "check", "checkpoints", "deliver", "demo"))


def test_checkpoints_are_listed_and_proved(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lab.run(steps=30)
    code, out, _ = answer(capsys, "checkpoints", lab.root / "run", "--verify", "--json")
    assert code == 0
    rows = json.loads(out)["checkpoints"]
    assert [(row["step"], row["state"], row["proof"]) for row in rows] == [
        (30, "sealed", "proved"),
        (25, "sealed", "proved"),
    ]


def test_a_damaged_checkpoint_is_named_with_the_check(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    loop = lab.run(steps=30)
    part = loop.recovery.ring.root / "step-00000025-attempt-1/model.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    code, out, _ = answer(capsys, "checkpoints", lab.root / "run/checkpoints", "--verify")
    assert code == program.FELL_SHORT
    (line,) = [line for line in out.splitlines() if "step-00000025" in line]
    assert "tensor_hashes: " in line
    assert "proved" in out, "the other one is fine"
    code, _, _ = answer(capsys, "checkpoints", lab.root / "run/checkpoints")
    assert code == 0, "a list alone proves nothing, and blames nothing"


def test_a_checkpoint_that_a_rollback_abandoned_is_no_damage(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = lab.loop()
    lab.steps(loop, 28)
    loop.go_back("no reason", "guard")
    loop.go_back("no reason", "guard")
    code, out, _ = answer(capsys, "checkpoints", lab.root / "run", "--verify")
    assert code == 0
    assert "abandoned: the run went back to step 20" in out


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = answer(capsys, "checkpoints", tmp_path / "nothing")
    assert code == 2
    assert err == f"there is no folder {tmp_path / 'nothing'}; name a run's folder, or its checkpoints\n"


@pytest.mark.parametrize(
    ("url", "words"),
    [("nonsense", "--url: 'nonsense' is no address"), ("http://127.0.0.1:1", "holds no run|run.json")],
)
def test_a_delivery_that_cannot_begin_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, words: str
) -> None:
    code, _, err = answer(capsys, "deliver", tmp_path, "--url", url)
    assert code == 2
    assert re.search(words, err), err
    assert err.count("\n") == 1


def test_a_signal_ends_a_training_at_a_step_boundary_with_a_checkpoint(lab: Any) -> None:
    def terminate(phase: Any, loop: Loop) -> None:
        if phase == "backward" and loop.state.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StopRequested):
        lab.run(steps=40, observers=[program._StopOnSignal(), terminate])
    resumed = lab.loop(steps=40)
    assert resumed.state.step in (8, 9)


def test_a_second_signal_ends_it_at_once(lab: Any) -> None:
    def insist(phase: Any, loop: Loop) -> None:
        if phase == "backward" and loop.state.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        lab.run(steps=40, observers=[program._StopOnSignal(), insist])


def test_a_demo_that_is_terminated_amid_an_import_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C extension that imports another one answers each failure, and an exit, with an error of its own."""

    def demo(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit as ending:
            raise ImportError("failed to import") from ending

    monkeypatch.setattr(program, "demo", demo)
    assert main(["demo", "--port", "0"]) == 130


def test_a_demo_whose_exit_was_swallowed_in_a_callback_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_its_end(_: object) -> int:
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(program, "_demo_to_its_end", to_its_end)
    assert main(["demo", "--port", "0"]) == 130
