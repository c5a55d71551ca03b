"""A checkpoint is written whole or not at all, and what is read back is what was written."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.checkpoint import CheckpointWriteFailed, read, write
from trainer.checkpoint import files as files_module

State = dict[str, dict[str, Tensor]]


def test_every_tensor_comes_back_bit_for_bit(tmp_path: Path, parts: State, facts: dict[str, Any]) -> None:
    write(tmp_path / "a", parts, facts, step=150, attempt=3)
    stored = read(tmp_path / "a")
    assert {part: set(tensors) for part, tensors in stored.parts.items()} == {
        part: set(tensors) for part, tensors in parts.items()
    }
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            back = stored.parts[part][name]
            assert back.dtype == tensor.dtype, name
            assert back.shape == tensor.shape, name
            assert torch.equal(back, tensor), name
    assert stored.facts == facts
    assert (stored.manifest.step, stored.manifest.attempt) == (150, 3)


def test_the_files_are_ordinary_safetensors(tmp_path: Path, parts: State) -> None:
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    by_library = safetensors.torch.load_file(tmp_path / "a" / "model.safetensors")
    assert set(by_library) == set(parts["model"])
    assert all(torch.equal(by_library[name], tensor) for name, tensor in parts["model"].items())


def test_every_tensor_begins_where_its_dtype_may_begin(tmp_path: Path, parts: State) -> None:
    """A reader that maps the file gets misaligned numbers otherwise."""
    parts["model"]["a_flag"] = torch.tensor([True])
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    content = (tmp_path / "a" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, tensor in parts["model"].items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0, name


def test_a_tied_model_and_its_optimizer_load_strictly(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    write(tmp_path / "a", {"model": model.state_dict()}, {}, step=1, attempt=1)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    other[1].weight = other[0].weight
    other.load_state_dict(read(tmp_path / "a").parts["model"])
    assert torch.equal(other[0].weight, model[0].weight)
    assert other[0].weight is other[1].weight


def test_what_was_read_may_be_changed_without_touching_its_neighbours(tmp_path: Path, parts: State) -> None:
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    back = read(tmp_path / "a").parts["model"]
    back["weight"].zero_()
    assert torch.equal(back["tied"], parts["model"]["tied"])


def test_an_empty_part_and_no_parts_are_states_too(tmp_path: Path) -> None:
    write(tmp_path / "a", {"ema": {}}, {}, step=0, attempt=1)
    write(tmp_path / "b", {}, {"step": 0}, step=0, attempt=1)
    assert read(tmp_path / "a").parts == {"ema": {}}
    assert read(tmp_path / "b").parts == {}


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_a_tensor_that_cannot_be_kept_is_named(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="model/strange is torch"):
        write(tmp_path / "a", {"model": {"strange": tensor}}, {}, step=0, attempt=1)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parts"):
        write(tmp_path / "a", {"x..": {}}, {}, step=0, attempt=1)
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_change_while_they_are_written_are_noticed(
    tmp_path: Path, parts: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = files_module.container.pieces

    def meddle(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
        next(iter(tensors.values())).view(-1)[0] += 1
        return honest(tensors)

    monkeypatch.setattr(files_module.container, "pieces", meddle)
    with pytest.raises(ValueError, match="model: its tensors changed"):
        write(tmp_path / "a", parts, {}, step=0, attempt=1)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gives_back_other_bytes_fails_the_write(
    tmp_path: Path, parts: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = files_module.read_from_disk

    def lie(path: Path) -> bytes:
        return honest(path)[:-1] + b"\xff"

    monkeypatch.setattr(files_module, "read_from_disk", lie)
    with pytest.raises(CheckpointWriteFailed, match=r"reads back other bytes than were written \(EIO\)"):
        write(tmp_path / "a", parts, {}, step=0, attempt=1)
    assert list(tmp_path.iterdir()) == []


def test_it_is_not_written_over_what_is_there(tmp_path: Path, parts: State) -> None:
    write(tmp_path / "a", parts, {"first": True}, step=0, attempt=1)
    with pytest.raises(CheckpointWriteFailed, match="not empty"):
        write(tmp_path / "a", parts, {}, step=0, attempt=1)
    assert read(tmp_path / "a").facts == {"first": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("failing_call", range(1, 10))
def test_a_sync_that_fails_leaves_nothing_behind(
    tmp_path: Path, parts: State, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    """Eight syncs make a checkpoint of four parts: these, facts, manifest, folder, and the folder above."""
    honest, calls = os.fsync, 0

    def fail_once(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    if failing_call > 8:
        write(tmp_path / "a", parts, {}, step=0, attempt=1)
        assert calls == 8
        return
    with pytest.raises(CheckpointWriteFailed, match=r"Input/output error \(EIO\)") as caught:
        write(tmp_path / "a", parts, {}, step=0, attempt=1)
    assert caught.value.path == tmp_path / "a"
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_written_last_and_synced_before_the_rename(
    tmp_path: Path, parts: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen at each sync: the names that exist beside the final one."""
    honest, seen = os.fsync, []

    def note(descriptor: int) -> None:
        drafts = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        files = sorted(path.name for draft in drafts for path in draft.iterdir())
        seen.append(("manifest.json" in files, (tmp_path / "a").exists()))
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    files, manifest, folder, parent = seen[:-3], seen[-3], seen[-2], seen[-1]
    assert set(files) == {(False, False)}
    assert (manifest, folder, parent) == ((True, False), (True, False), (False, True))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_reported_and_older_checkpoints_stand(tiny_disk: Path) -> None:
    small, large = {"model": {"w": torch.ones(100)}}, {"model": {"w": torch.ones(200_000)}}
    write(tiny_disk / "old", small, {}, step=1, attempt=1)
    with pytest.raises(CheckpointWriteFailed, match=r"No space left on device \(ENOSPC\)") as caught:
        write(tiny_disk / "new", large, {}, step=2, attempt=1)
    assert caught.value.path == tiny_disk / "new"
    assert [path.name for path in tiny_disk.iterdir()] == ["old"]
    assert torch.equal(read(tiny_disk / "old").parts["model"]["w"], torch.ones(100))
    write(tiny_disk / "next", small, {}, step=3, attempt=1)
