"""What makes a checkpoint valid: small checks, each with a name, a reason, and a test that breaks it.

``FILE_CHECKS`` look at a folder on disk, in order: each may rely on those before it. ``VALUE_CHECKS`` look at
tensors, and run on the staged bytes before a save as well. Nothing here raises for a bad checkpoint: a check
answers what it found, or ``None``.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint import container, facts
from trainer.checkpoint.errors import os_reason
from trainer.checkpoint.manifest import FACTS_FILE, MANIFEST_FILE, Manifest, part_file
from trainer.checkpoint.tensors import DTYPE_CODES, HostParts, Parts, digest, digest_bytes, each

SHOWN = 5
_NOT_ITS_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM})
"""What the system answers when the process is at fault: no reason to call a checkpoint damaged."""

Layout = Mapping[str, Mapping[str, tuple[tuple[int, ...], str]]]
"""Part, name, then shape and dtype code."""


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


@dataclass(frozen=True)
class ValueCheck:
    """One thing that must hold for the tensors; ``look`` answers what is wrong."""

    name: str
    reason: str
    look: Callable[[Parts], str | None]


@dataclass(frozen=True)
class Failure:
    """The first check that did not hold."""

    check: str
    found: str


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


def first_bad_value(parts: Parts) -> Failure | None:
    """Run the checks of values. Reads host tensors twice at most, allocates nothing."""
    for check in VALUE_CHECKS:
        found = check.look(parts)
        if found is not None:
            return Failure(check.name, found)
    return None


def match(expected: Parts, stored: Parts) -> str | None:
    """How ``stored`` differs from what a loop takes: keys both ways, shapes, dtypes. ``None``: not at all.

    Looks at no values, so ``expected`` may live on any device.
    """
    return _difference(_layout(expected), _layout(stored))


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
    return _difference(written, _layout(opened.parts))


def _tensors_have_their_hashes(opened: Opened) -> str | None:
    entries = opened.manifest.parts
    changed = [
        f"{part}/{name}"
        for part, tensors in opened.parts.items()
        for name, tensor in tensors.items()
        if digest(tensor) != entries[part][name].xxh3_128
    ]
    return _some("with other bytes than were written", changed)


def _files_have_their_hashes(opened: Opened) -> str | None:
    _ = opened.raw_facts, opened.parts
    files = opened.manifest.files
    return _some(
        "changed outside of any tensor",
        [file for file, entry in files.items() if opened.digests[file] != entry.xxh3_128],
    )


def _facts_are_readable(opened: Opened) -> str | None:
    try:
        _ = opened.facts
    except ValueError as error:
        return f"{FACTS_FILE} {error}"
    return None


def _all_finite(parts: Parts) -> str | None:
    return _some("with NaN or infinity", [name for name, tensor in each(parts) if not _is_finite(tensor)])


def _second_moments_are_not_negative(parts: Parts) -> str | None:
    moments = [(name, tensor) for name, tensor in each(parts) if name.endswith("exp_avg_sq")]
    return _some(
        "below zero", [name for name, tensor in moments if tensor.numel() and bool(tensor.min() < 0)]
    )


def _second_moments_are_there(parts: Parts) -> str | None:
    """The first is a mean of gradients whose squares the second holds: it can't be 0 where those were not."""
    tensors = dict(each(parts))
    lost = [
        name
        for name, tensor in tensors.items()
        if name.endswith("exp_avg_sq") and not tensor.any()
        if _is_there(tensors.get(name[: -len("_sq")]), least_squarable(tensor.dtype))
    ]
    return _some("all 0 where the first moment is not", lost)


def _is_there(first: Tensor | None, least: float) -> bool:
    return first is not None and bool((first.abs() > least).any())


def least_squarable(dtype: torch.dtype) -> float:
    """A first moment below this may come from gradients whose squares this type rounds to 0.

    A step adds a share 1 - beta2 of a square, which is 1e-4 or more, and is lost where that is below the
    type's least normal number: 1e-17 for float32 and bfloat16, and 0.8 for float16, whose second moments may
    well be 0 throughout.
    """
    return (torch.finfo(dtype).tiny / 1e-4) ** 0.5 if dtype.is_floating_point else 0.0


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

VALUE_CHECKS: Sequence[ValueCheck] = (
    ValueCheck("finite", "A NaN that is kept comes back with every resume.", _all_finite),
    ValueCheck(
        "second_moments", "Adam takes their root: below zero makes NaN.", _second_moments_are_not_negative
    ),
    ValueCheck(
        "forgotten_moments",
        "Adam divides by their root: 0 beside a first moment moves 70 times too far.",
        _second_moments_are_there,
    ),
)


def _is_finite(tensor: Tensor) -> bool:
    """In its own dtype, in one pass without a mask: the extremes of a tensor with a NaN are NaN."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _layout(parts: Parts) -> Layout:
    return {
        part: {
            name: (tuple(tensor.shape), DTYPE_CODES.get(tensor.dtype, str(tensor.dtype)))
            for name, tensor in tensors.items()
        }
        for part, tensors in parts.items()
    }


def _difference(expected: Layout, found: Layout) -> str | None:
    """Both ways, in words; parts first, since an empty part has no tensor to miss."""
    lines = [
        _some("missing", sorted(set(expected) - set(found)), "part"),
        _some("not expected", sorted(set(found) - set(expected)), "part"),
    ]
    wanted, there = _flat(expected), _flat(found)
    both = sorted(set(wanted) & set(there))
    lines += [
        _some("missing", sorted(set(wanted) - set(there))),
        _some("not expected", sorted(set(there) - set(wanted))),
        _some(
            "of another shape",
            [_versus(n, wanted[n][0], there[n][0]) for n in both if wanted[n][0] != there[n][0]],
        ),
        _some(
            "of another dtype",
            [_versus(n, wanted[n][1], there[n][1]) for n in both if wanted[n][1] != there[n][1]],
        ),
    ]
    return "; ".join(line for line in lines if line) or None


def _flat(layout: Layout) -> dict[str, tuple[tuple[int, ...], str]]:
    return {f"{part}/{name}": one for part, tensors in layout.items() for name, one in tensors.items()}


def _versus(name: str, expected: object, found: object) -> str:
    return f"{name} {found} for {expected}"


def _some(what: str, names: Sequence[str], noun: str = "tensor") -> str | None:
    """``3 tensors with NaN: a, b, c``; the first five names, and how many there are."""
    if not names:
        return None
    more = ", ..." if len(names) > SHOWN else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} {noun}{plural} {what}: {', '.join(names[:SHOWN])}{more}"
