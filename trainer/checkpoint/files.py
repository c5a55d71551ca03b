"""One checkpoint on disk: a folder with a safetensors file per part, the facts, and a manifest written last.

    step-00000150-attempt-3/
        model.safetensors  ema.safetensors  optimizer.safetensors    the parts
        state.json                                                   the facts: step, generators, position
        manifest.json                                                what all this is, with hashes

Nothing is pickled: reading a checkpoint runs no code from it.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.checkpoint import container
from trainer.checkpoint.checks import Opened, first_failure
from trainer.checkpoint.durable import atomic_directory, read_from_disk, write_file
from trainer.checkpoint.errors import CheckpointInvalid
from trainer.checkpoint.facts import Facts, encode
from trainer.checkpoint.manifest import (
    FACTS_FILE,
    FORMAT,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    describe,
    part_file,
    part_of,
)
from trainer.checkpoint.tensors import HostParts, Parts, digest_bytes, on_host


@dataclass(frozen=True)
class Stored:
    """What a verified checkpoint holds; the tensors are on the host and share memory with nothing."""

    parts: HostParts
    facts: dict[str, Any]
    manifest: Manifest


def write(
    folder: Path,
    parts: Parts,
    facts: Facts,
    *,
    step: int,
    attempt: int,
    probe_loss: float | None = None,
) -> Manifest:
    """Make a checkpoint, whole and synced, or none. Its values are not judged here; the ring does that.

    Costs three hashes (25 GB/s each), a write and a read of all bytes, and one fsync a file; in memory twice
    the largest part while that is read back, and a copy of what is not yet contiguous on the host.

    Raises:
        CheckpointWriteFailed: the disk is full or fails, gave back other bytes, or ``folder`` exists.
        ValueError: a tensor or a fact that can't be kept.
    """
    with atomic_directory(folder) as draft:
        return write_draft(draft, on_host(parts), facts, step=step, attempt=attempt, probe_loss=probe_loss)


def read(folder: Path) -> Stored:
    """Read a checkpoint and prove it: nothing reaches the caller before every check has passed.

    Raises:
        CheckpointInvalid: with the check that failed and what it found.
        OSError: the process may not read it, or has run out of handles: no word about the checkpoint.
    """
    opened = Opened(folder)
    failure = first_failure(opened)
    if failure is not None:
        raise CheckpointInvalid(folder, failure.check, failure.found)
    return Stored(opened.parts, opened.facts, opened.manifest)


def write_draft(
    draft: Path,
    parts: HostParts,
    facts: Facts,
    *,
    step: int,
    attempt: int,
    probe_loss: float | None,
) -> Manifest:
    """Fill a draft folder and read it back from the disk. See ``write``; raises ``OSError`` as it comes."""
    entries = {part: describe(tensors) for part, tensors in parts.items()}
    files = {FACTS_FILE: _write(draft / FACTS_FILE, [encode(facts)])}
    for part, tensors in parts.items():
        files[part_file(part)] = _write(draft / part_file(part), container.pieces(tensors))
    manifest = Manifest(
        format=FORMAT,
        step=step,
        attempt=attempt,
        created=datetime.now(UTC),
        probe_loss=probe_loss,
        files=files,
        parts=entries,
    )
    _prove(draft, manifest)
    write_file(draft / MANIFEST_FILE, [manifest.seal()])
    return manifest


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> FileEntry:
    size_bytes, xxh3_128 = write_file(path, pieces)
    return FileEntry(size_bytes=size_bytes, xxh3_128=xxh3_128)


def _prove(draft: Path, manifest: Manifest) -> None:
    """Read every file back, one at a time, and compare it with what was to be written.

    Raises:
        OSError: a disk that took the bytes and gives back others.
        ValueError: the caller's tensors changed meanwhile, or a name that safetensors can't hold.
    """
    for file, entry in manifest.files.items():
        content = read_from_disk(draft / file)
        if FileEntry(size_bytes=len(content), xxh3_128=digest_bytes(content)) != entry:
            raise OSError(errno.EIO, f"{file} reads back other bytes than were written")
        part = part_of(file)
        if part is not None and describe(container.parse(content)) != manifest.parts[part]:
            raise ValueError(f"{part}: its tensors changed while they were written; stage them first")
