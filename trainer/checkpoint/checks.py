"""What makes a checkpoint valid: small checks, each with a name, a reason, and a test that breaks it.

``FILE_CHECKS`` look at a folder on disk, in order: each may rely on those before it. Then come those of
``values.py``, which look at tensors, and run on the staged bytes before a save as well. Nothing here raises
for a bad checkpoint: a check answers what it found, or ``None``.
"""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from trainer.checkpoint import container, facts
from trainer.checkpoint.errors import os_reason
from trainer.checkpoint.layout import difference, layout_of, some
from trainer.checkpoint.manifest import FACTS_FILE, MANIFEST_FILE, Manifest, part_file
from trainer.checkpoint.tensors import HostParts, digest, digest_bytes
from trainer.checkpoint.values import Failure, first_bad_value

_NOT_ITS_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM})
"""What the system answers when the process is at fault: no reason to call a checkpoint damaged."""


class Opened:
    """A folder while it is checked: each file is read once, when a check first asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.unseal((self.folder / MANIFEST_FILE).read_bytes())

    @cached_property
    def parts(self) -> HostParts:
        """All tensors. In memory at once: the checkpoint and its largest file."""
        return {part: self._parse(part_file(part)) for part in self.manifest.parts}

    @cached_property
    def raw_facts(self) -> bytes:
        return self._content(FACTS_FILE)

    @cached_property
    def facts(self) -> dict[str, object]:
        return facts.decode(self.raw_facts)

    def _parse(self, file: str) -> dict[str, Tensor]:
        try:
            return container.parse(self._content(file))
        except ValueError as error:
            raise ValueError(f"{file} {error}") from error

    def _content(self, file: str) -> bytes:
        content = (self.folder / file).read_bytes()
        self.digests[file] = digest_bytes(content)
        return content


@dataclass(frozen=True)
class FileCheck:
    """One thing that must hold for the files; ``look`` answers what is wrong."""

    name: str
    reason: str
    look: Callable[[Opened], str | None]


def first_failure(opened: Opened) -> Failure | None:
    """Run all checks on a folder. Costs one read of the files, one hash (25 GB/s) and one scan (20 GB/s).

    Raises:
        OSError: no right to read, or this process has no memory or no file handle left.
    """
    for check in FILE_CHECKS:
        try:
            found = check.look(opened)
        except OSError as error:
            if error.errno in _NOT_ITS_FAULT:
                raise
            found = f"{Path(error.filename or '').name or 'a file'} cannot be read: {os_reason(error)}"
        if found is not None:
            return Failure(check.name, found)
    return first_bad_value(opened.parts)


def _manifest_is_intact(opened: Opened) -> str | None:
    try:
        _ = opened.manifest
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except ValueError as error:
        return f"{MANIFEST_FILE} {error}"
    return None


def _files_are_whole(opened: Opened) -> str | None:
    for file, entry in opened.manifest.files.items():
        path = opened.folder / file
        if not path.is_file():
            return f"{file} is missing"
        if (size := path.stat().st_size) != entry.size_bytes:
            return f"{file} has {size} bytes where the manifest says {entry.size_bytes}"
    return None


def _containers_parse(opened: Opened) -> str | None:
    try:
        _ = opened.parts
    except ValueError as error:
        return str(error)
    return None


def _layout_is_as_written(opened: Opened) -> str | None:
    written = {
        part: {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
        for part, entries in opened.manifest.parts.items()
    }
    return difference(written, layout_of(opened.parts))


def _tensors_have_their_hashes(opened: Opened) -> str | None:
    entries = opened.manifest.parts
    changed = [
        f"{part}/{name}"
        for part, tensors in opened.parts.items()
        for name, tensor in tensors.items()
        if digest(tensor) != entries[part][name].xxh3_128
    ]
    return some("with other bytes than were written", changed)


def _files_have_their_hashes(opened: Opened) -> str | None:
    _ = opened.raw_facts, opened.parts
    files = opened.manifest.files
    return some(
        "changed outside of any tensor",
        [file for file, entry in files.items() if opened.digests[file] != entry.xxh3_128],
    )


def _facts_are_readable(opened: Opened) -> str | None:
    try:
        _ = opened.facts
    except ValueError as error:
        return f"{FACTS_FILE} {error}"
    return None


FILE_CHECKS: Sequence[FileCheck] = (
    FileCheck("manifest", "It is written last: without it the save never ended.", _manifest_is_intact),
    FileCheck(
        "files", "A missing or short file is the commonest damage, and the cheapest to see.", _files_are_whole
    ),
    FileCheck("container", "A header that does not parse says nothing about its tensors.", _containers_parse),
    FileCheck(
        "layout", "A tensor under another name or shape would go to the wrong place.", _layout_is_as_written
    ),
    FileCheck(
        "tensor_hashes", "No loader sees a flipped bit; this names the tensor.", _tensors_have_their_hashes
    ),
    FileCheck("file_hashes", "Headers and facts can be damaged as well.", _files_have_their_hashes),
    FileCheck("facts", "Step, generators and data position are half of a resume.", _facts_are_readable),
)
