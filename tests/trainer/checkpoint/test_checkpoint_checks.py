"""Each check sees the one thing that it is there for, and no damage gets past all of them."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from trainer.checkpoint import CheckpointInvalid, match, read, write
from trainer.checkpoint.checks import FILE_CHECKS
from trainer.checkpoint.manifest import MANIFEST_FILE, Manifest
from trainer.checkpoint.values import VALUE_CHECKS

State = dict[str, dict[str, Tensor]]
Damage = Callable[[Path], None]


def _remove_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def _remove_part(folder: Path) -> None:
    (folder / "ema.safetensors").unlink()


def _break_header(folder: Path) -> None:
    path = folder / "ema.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def _rename_tensor(folder: Path) -> None:
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"weight"', b'"height"'))


def _change_value(folder: Path) -> None:
    path = folder / "ema.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(8, 6)}, path)


def _pad_header(folder: Path) -> None:
    path = folder / "rng.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[0, 64]", b"[0,64 ]"))


def _break_facts(folder: Path) -> None:
    (folder / "state.json").write_bytes(b'["no", "dict"]')


SINGLE_DAMAGES: list[tuple[str, Damage, bool, str]] = [
    ("manifest", _remove_manifest, False, "manifest.json is missing"),
    ("files", _remove_part, False, "ema.safetensors is missing"),
    ("container", _break_header, True, "ema.safetensors is not a readable safetensors file"),
    ("layout", _rename_tensor, True, "1 tensor missing: ema/weight; 1 tensor not expected: ema/height"),
    ("tensor_hashes", _change_value, True, "1 tensor with other bytes than were written: ema/weight"),
    ("file_hashes", _pad_header, False, "rng.safetensors"),
    ("facts", _break_facts, True, "state.json holds a list where facts are a dict"),
]


@pytest.mark.parametrize(("check", "damage", "is_resealed", "found"), SINGLE_DAMAGES)
def test_each_file_check_sees_its_damage(
    tmp_path: Path,
    parts: State,
    reseal: Callable[[Path], None],
    check: str,
    damage: Damage,
    is_resealed: bool,
    found: str,
) -> None:
    folder = tmp_path / "a"
    write(folder, parts, {}, step=0, attempt=1)
    damage(folder)
    if is_resealed:
        reseal(folder)
    with pytest.raises(CheckpointInvalid, match=found) as caught:
        read(folder)
    assert (caught.value.path, caught.value.check) == (folder, check)


@pytest.mark.parametrize(
    ("check", "part", "name", "value", "dtype"),
    [
        ("finite", "model", "weight", float("nan"), torch.float32),
        ("finite", "model", "brain", float("inf"), torch.bfloat16),
        ("finite", "model", "half", float("-inf"), torch.float16),
        ("finite", "ema", "weight", float("nan"), torch.float64),
        ("finite", "optimizer", "0.exp_avg", float("nan"), torch.float32),
        ("second_moments", "optimizer", "0.exp_avg_sq", -1e-30, torch.float32),
    ],
)
def test_each_value_check_sees_its_damage(
    tmp_path: Path, parts: State, check: str, part: str, name: str, value: float, dtype: torch.dtype
) -> None:
    damaged = parts[part][name].to(dtype).clone()
    damaged[1, 2] = value
    parts[part][name] = damaged
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    with pytest.raises(CheckpointInvalid, match=f"{part}/{name}") as caught:
        read(tmp_path / "a")
    assert caught.value.check == check


@pytest.mark.parametrize(
    ("first", "dtype", "is_refused"),
    [
        (0.1, torch.float32, True),
        (1e-15, torch.float32, True),
        (1e-15, torch.bfloat16, True),
        (2.0, torch.float16, True),
        (0.0, torch.float32, False),
        (1e-30, torch.float32, False),
        (0.01, torch.float16, False),
    ],
)
def test_second_moments_that_were_forgotten_are_seen_and_those_that_underflow_are_not(
    tmp_path: Path, parts: State, first: float, dtype: torch.dtype, is_refused: bool
) -> None:
    moments = parts["optimizer"]
    moments["0.exp_avg_sq"] = torch.zeros_like(moments["0.exp_avg_sq"], dtype=dtype)
    moments["0.exp_avg"] = torch.full_like(moments["0.exp_avg"], first, dtype=dtype)
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    if not is_refused:
        read(tmp_path / "a")
        return
    with pytest.raises(CheckpointInvalid, match="all 0 where the first moment is not") as caught:
        read(tmp_path / "a")
    assert caught.value.check == "forgotten_moments"


@pytest.mark.parametrize("size", [1e-4, 1e-3, 5e-3])
def test_what_adam_makes_of_small_gradients_in_half_precision_is_a_valid_checkpoint(
    tmp_path: Path, size: float
) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.float16))
    optimizer = torch.optim.Adam([weight], lr=0.0, eps=1e-3)
    for _ in range(50):
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
    moments = optimizer.state[weight]
    assert not moments["exp_avg_sq"].any(), "underflow, of gradients that are there"
    assert moments["exp_avg"].any()
    parts = {"optimizer": {f"0.{name}": moments[name] for name in ("exp_avg", "exp_avg_sq")}}
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    read(tmp_path / "a")


def test_every_check_has_a_case_here() -> None:
    tested = {case[0] for case in SINGLE_DAMAGES} | {"finite", "second_moments", "forgotten_moments"}
    assert tested == {check.name for check in (*FILE_CHECKS, *VALUE_CHECKS)}


def test_large_finite_values_are_not_called_infinite(tmp_path: Path) -> None:
    """A sum of these overflows in half precision; the ultralytics scan did, after a cast."""
    write(tmp_path / "a", {"ema": {"w": torch.full((9,), 65504.0).half()}}, {}, step=0, attempt=1)
    assert read(tmp_path / "a").parts["ema"]["w"].max() == 65504.0


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
        "manifest.json",
    ],
)
def test_no_flipped_bit_is_ever_loaded(
    tmp_path: Path, parts: State, facts: dict[str, Any], flip_bit: Callable[[Path, int], None], file: str
) -> None:
    folder = tmp_path / "a"
    write(folder, parts, facts, step=150, attempt=3)
    path = folder / file
    dice = random.Random(file)
    for bit in dice.sample(range(path.stat().st_size * 8), 60):
        flip_bit(path, bit)
        with pytest.raises(CheckpointInvalid):
            read(folder)
        flip_bit(path, bit)
    read(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_no_truncated_file_is_ever_loaded(
    tmp_path: Path, parts: State, facts: dict[str, Any], file: str
) -> None:
    folder = tmp_path / "a"
    write(folder, parts, facts, step=150, attempt=3)
    content = (folder / file).read_bytes()
    for length in random.Random(1).sample(range(len(content)), 20):
        (folder / file).write_bytes(content[:length])
        with pytest.raises(CheckpointInvalid):
            read(folder)


def test_a_zeroed_page_is_seen_and_the_tensor_named(tmp_path: Path) -> None:
    folder, page = tmp_path / "a", 4096
    parts = {"model": {"first": torch.ones(3000), "second": torch.ones(3000)}}
    write(folder, parts, {}, step=0, attempt=1)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[4 * page : 5 * page] = bytes(page)
    path.write_bytes(content)
    with pytest.raises(CheckpointInvalid, match="other bytes than were written: model/second"):
        read(folder)


def test_two_swapped_tensors_of_one_shape_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write(folder, {"model": {"k": torch.zeros(64), "q": torch.ones(64)}}, {}, step=0, attempt=1)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-512] + content[-256:] + content[-512:-256])
    with pytest.raises(CheckpointInvalid, match="2 tensors with other bytes"):
        read(folder)


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors", "state.json"])
def test_a_file_of_another_step_is_seen(
    tmp_path: Path, parts: State, facts: dict[str, Any], file: str
) -> None:
    write(tmp_path / "old", parts, facts | {"step": 100}, step=100, attempt=1)
    parts["model"]["weight"] = parts["model"]["weight"] + 1e-6
    write(tmp_path / "new", parts, facts, step=150, attempt=1)
    shutil.copy(tmp_path / "old" / file, tmp_path / "new" / file)
    with pytest.raises(CheckpointInvalid):
        read(tmp_path / "new")


def test_a_manifest_of_a_later_format_says_so(tmp_path: Path, parts: State) -> None:
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    path = tmp_path / "a" / MANIFEST_FILE
    manifest = Manifest.unseal(path.read_bytes())
    path.write_bytes(manifest.model_copy(update={"format": 2}).seal())
    with pytest.raises(CheckpointInvalid, match="format 2; this version reads format 1"):
        read(tmp_path / "a")


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path, parts: State) -> None:
    write(tmp_path / "a", parts, {}, step=0, attempt=1)
    (tmp_path / "a" / "manifest.json").unlink()
    (tmp_path / "a" / "manifest.json").mkdir()
    with pytest.raises(CheckpointInvalid, match=r"manifest.json cannot be read: Is a directory \(EISDIR\)"):
        read(tmp_path / "a")


def test_a_process_without_file_handles_does_not_call_a_checkpoint_damaged(
    tmp_path: Path, parts: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", parts, {}, step=0, attempt=1)

    def no_handle(path: Path) -> bytes:
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_bytes", no_handle)
    with pytest.raises(OSError, match="Too many open files"):
        read(tmp_path / "a")


def test_equal_states_match_and_values_do_not_matter(parts: State) -> None:
    other = {
        part: {name: torch.zeros_like(t) for name, t in tensors.items()} for part, tensors in parts.items()
    }
    assert match(parts, other) is None


def test_a_difference_is_told_both_ways_with_the_first_five_names(parts: State) -> None:
    expected = {
        "model": {f"block.{i}": torch.zeros(2) for i in range(7)} | {"a": torch.zeros(2), "b": torch.zeros(2)}
    }
    stored = {
        "model": {"a": torch.zeros(3), "b": torch.zeros(2).half(), "extra": torch.zeros(1)},
        "ema": {},
    }
    assert match(expected, stored) == (
        "1 part not expected: ema; "
        "7 tensors missing: model/block.0, model/block.1, model/block.2, model/block.3, model/block.4, ...; "
        "1 tensor not expected: model/extra; "
        "1 tensor of another shape: model/a (3,) for (2,); "
        "1 tensor of another dtype: model/b F16 for F32"
    )
