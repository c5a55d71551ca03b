"""What loading costs: seconds of a batch with each way of keeping maps, side by side in one run.

    python benchmarks/loading.py [--rounds 10] [--image-size 256] [--batch-size 8] [--workers 2] [--json]

Five loaders hand out the same batches of the embedded maps, a few each in turn, so that a busy machine slows
all of them alike:

    decode             cache = "none": every image is decoded when it is asked for
    decode, workers    the same in loader processes; wall time, as the trainer waits
    memory             what others are compared with
    disk               mapped files
    disk, workers

A last line tells how long a start takes: decoding all maps, and finding them on disk.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from trainer.data.batches import LoadingConfig
from trainer.data.loading import Loader
from trainer.data.radiomaps import RadioMaps, RadioMapsConfig
from trainer.data.stacks import Cache

BATCHES = 12
"""Taken from a loader before it is the next one's turn."""


def loaders(arguments: argparse.Namespace, folder: Path) -> dict[str, Loader]:
    """All five, over the same maps."""
    ways: dict[str, tuple[Cache, int]] = {
        "decode": ("none", 0),
        "decode, workers": ("none", arguments.workers),
        "memory": ("memory", 0),
        "disk": ("disk", 0),
        "disk, workers": ("disk", arguments.workers),
    }
    return {
        name: Loader(
            RadioMaps(config(arguments, cache, folder), "train"),
            LoadingConfig(batch_size=arguments.batch_size, num_workers=workers),
        )
        for name, (cache, workers) in ways.items()
    }


def config(arguments: argparse.Namespace, cache: Cache, folder: Path) -> RadioMapsConfig:
    """The embedded maps at the size that is asked for."""
    return RadioMapsConfig(image_size=arguments.image_size, cache=cache, cache_folder=folder)


def seconds(loader: Loader) -> float:
    """Wall seconds of a batch; workers end with their turn, so they load nothing on others' time."""
    loader.next_batch()  # starting processes is paid once a run, not once a batch
    begun = time.perf_counter()
    for _ in range(BATCHES):
        loader.next_batch()
    taken = (time.perf_counter() - begun) / BATCHES
    loader.close()
    return taken


def measure(named: dict[str, Loader], rounds: int) -> dict[str, float]:
    """Median over rounds, after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in named}
    for round_ in range(rounds + 1):
        for name, loader in named.items():
            found = seconds(loader)
            if round_:
                taken[name].append(found)
    return {name: statistics.median(values) for name, values in taken.items()}


def starts(arguments: argparse.Namespace, folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds until the training maps are there, with the cache on disk made already."""
    taken: dict[Cache, list[float]] = {"memory": [], "disk": []}
    for _ in range(rounds):
        for cache, values in taken.items():
            begun = time.perf_counter()
            RadioMaps(config(arguments, cache, folder), "train")
            values.append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in taken.items()}


def table(batches: dict[str, float], began: dict[str, float]) -> Iterable[str]:
    """Lines of the table in docs/benchmarks.md."""
    yield "| loader | ms a batch | x memory |"
    yield "|---|---|---|"
    for name, value in batches.items():
        yield f"| {name} | {1000 * value:.2f} | {value / batches['memory']:.2f} |"
    yield ""
    decoding, mapping = 1000 * began["memory"], 1000 * began["disk"]
    yield f"start: {decoding:.0f} ms decoding, {mapping:.0f} ms from disk ({decoding / mapping:.0f}x)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        named = loaders(arguments, Path(folder))
        batches = measure(named, arguments.rounds)
        began = starts(arguments, Path(folder), arguments.rounds)
    if arguments.json:
        sys.stdout.write(json.dumps({"batch_s": batches, "start_s": began}) + "\n")
        return
    sys.stdout.writelines(f"{line}\n" for line in table(batches, began))


if __name__ == "__main__":
    main()
