"""Whether a damaged checkpoint is ever loaded: random damage to real ones, and what the ring then hands out.

    python benchmarks/checkpoint_damage.py [--rounds 10000] [--seed 0] [--json]

A small model's checkpoint with moments lies beside an older one. Each round damages a fresh copy of the newer
one in one way and asks the ring for its newest. Right is the older one, or the newer with every bit as it was
saved (damage to bytes that carry nothing). Anything else counts as loaded. The last kind of damage is done
before saving: a NaN in the state, which must never be sealed.
"""

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from trainer.checkpoint import CheckpointRing, NoValidCheckpoint, Parts, RingConfig, SaveRefused
from trainer.checkpoint.container import parse, pieces

PAGE_BYTES = 4096
Damage = Callable[[Path, random.Random], None]


def flip_a_bit(folder: Path, chance: random.Random) -> None:
    """In any file of the checkpoint."""
    _change(_any_file(folder, chance), lambda content: _with_bit(content, chance.randrange(8 * len(content))))


def zero_a_page(folder: Path, chance: random.Random) -> None:
    """Of a tensor file: what a disk that lost a write gives back."""

    def zeroed(content: bytes) -> bytes:
        begin = chance.randrange(0, len(content), PAGE_BYTES)
        size = min(PAGE_BYTES, len(content) - begin)
        return content[:begin] + bytes(size) + content[begin + size :]

    _change(_tensor_file(folder, chance), zeroed)


def truncate(folder: Path, chance: random.Random) -> None:
    """Any file, at any place."""
    _change(_any_file(folder, chance), lambda content: content[: chance.randrange(len(content))])


def swap_tensors(folder: Path, chance: random.Random) -> None:
    """Two tensors of one shape trade places: the file stays well-formed and finite."""

    def swapped(content: bytes) -> bytes:
        tensors = parse(content)
        names = sorted(tensors)
        pairs = [
            (one, other)
            for one in names
            for other in names
            if one < other and tensors[one].shape == tensors[other].shape and tensors[one].numel() > 1
        ]
        one, other = chance.choice(pairs)
        tensors[one], tensors[other] = tensors[other], tensors[one]
        return b"".join(bytes(piece) for piece in pieces(tensors))

    _change(folder / "optimizer.safetensors", swapped)


def put_a_nan(folder: Path, chance: random.Random) -> None:
    """In one tensor, in a file written anew."""

    def with_nan(content: bytes) -> bytes:
        tensors = parse(content)
        name = chance.choice(sorted(name for name in tensors if tensors[name].is_floating_point()))
        tensors[name].view(-1)[chance.randrange(tensors[name].numel())] = torch.nan
        return b"".join(bytes(piece) for piece in pieces(tensors))

    _change(_tensor_file(folder, chance), with_nan)


def take_an_older_manifest(folder: Path, chance: random.Random) -> None:
    """That of the checkpoint before it."""
    older = min(path for path in folder.parent.iterdir() if path.is_dir())
    shutil.copy(older / "manifest.json", folder / "manifest.json")


def lose_the_manifest(folder: Path, chance: random.Random) -> None:
    """A save that never came to its end."""
    (folder / "manifest.json").unlink()


def lose_a_part(folder: Path, chance: random.Random) -> None:
    """One of its tensor files."""
    _tensor_file(folder, chance).unlink()


DAMAGES: dict[str, Damage] = {
    "bit flipped": flip_a_bit,
    "page zeroed": zero_a_page,
    "truncated": truncate,
    "tensors swapped": swap_tensors,
    "NaN written": put_a_nan,
    "stale manifest": take_an_older_manifest,
    "manifest missing": lose_the_manifest,
    "part missing": lose_a_part,
}
AT_SAVE = "NaN at save"


def main() -> int:
    """Damage, ask, count; exit code 1 if anything damaged came back."""
    arguments = _arguments()
    torch.set_num_threads(1)
    logging.getLogger("trainer").setLevel(logging.ERROR)  # each round's refusal is a warning there
    chance = random.Random(arguments.seed)
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as room:
        states = {step: _state(step) for step in (100, 200)}
        template = CheckpointRing(Path(room) / "template", RingConfig())
        for step, parts in states.items():
            template.save(parts, {"step": step}, step=step, attempt=1)
        kinds = [*DAMAGES, AT_SAVE]
        for number in range(arguments.rounds):
            kind = kinds[number % len(kinds)]
            root = Path(room) / "copy"
            shutil.copytree(template.root, root)
            outcome = (
                _save_with_nan(root, states[200], chance)
                if kind == AT_SAVE
                else _load_damaged(root, DAMAGES[kind], states, chance)
            )
            counts[kind, outcome] += 1
            shutil.rmtree(root)
    return _tell(arguments, counts, kinds)


def _load_damaged(root: Path, damage: Damage, states: dict[int, Parts], chance: random.Random) -> str:
    damage(max(root.iterdir()), chance)
    try:
        stored = CheckpointRing(root, RingConfig()).load_newest().stored
    except NoValidCheckpoint:
        return "nothing loaded"
    step = stored.manifest.step
    if not _same(states[step], stored.parts) or stored.facts != {"step": step}:
        return "LOADED"
    return "older one" if step == 100 else "unhurt"


def _save_with_nan(root: Path, parts: Parts, chance: random.Random) -> str:
    spoiled = {part: {name: one.clone() for name, one in ones.items()} for part, ones in parts.items()}
    part = chance.choice(sorted(spoiled))
    name = chance.choice(sorted(name for name in spoiled[part] if spoiled[part][name].is_floating_point()))
    spoiled[part][name].view(-1)[-1] = torch.nan
    ring = CheckpointRing(root, RingConfig())
    try:
        ring.save(spoiled, {"step": 300}, step=300, attempt=1)
    except SaveRefused:
        return "not sealed"
    return "LOADED"


def _state(seed: int) -> Parts:
    """A model that took a few steps, its moments and an average, a quarter of a megabyte."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.SiLU(), nn.Conv2d(24, 48, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    moments = {
        f"{index}/{key}": value.clone()
        for index, one in enumerate(optimizer.state.values())
        for key, value in one.items()
    }
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"model": live, "ema": {n: t.detach() * 0.9 for n, t in live.items()}, "optimizer": moments}


def _same(one: Parts, other: Parts) -> bool:
    if {part: set(tensors) for part, tensors in one.items()} != {p: set(ts) for p, ts in other.items()}:
        return False
    return all(torch.equal(t, other[part][name]) for part, ts in one.items() for name, t in ts.items())


def _any_file(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.iterdir()))


def _tensor_file(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.glob("*.safetensors")))


def _with_bit(content: bytes, at: int) -> bytes:
    place, bit = divmod(at, 8)
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def _change(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _tell(arguments: argparse.Namespace, counts: Counter[tuple[str, str]], kinds: list[str]) -> int:
    outcomes = ["older one", "unhurt", "not sealed", "nothing loaded", "LOADED"]
    rows = {kind: {outcome: counts[kind, outcome] for outcome in outcomes} for kind in kinds}
    loaded = sum(row["LOADED"] for row in rows.values())
    if arguments.json:
        sys.stdout.write(json.dumps({"rounds": arguments.rounds, "loaded": loaded, "kinds": rows}) + "\n")
    else:
        lines = [f"| damage | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 1) + "|"]
        lines += [f"| {kind} | {' | '.join(map(str, row.values()))} |" for kind, row in rows.items()]
        lines.append(f"{loaded} of {arguments.rounds} damaged checkpoints were loaded")
        sys.stdout.write("\n".join(lines) + "\n")
    return int(loaded > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
