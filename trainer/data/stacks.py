"""What a folder's images hold, row by row: decoded when asked for, kept in memory, or mapped from a file.

A cache file is an array in NumPy's format with the digest of its bytes behind it, so it proves itself. Its
name tells what it was made from: every file's path, size and time of last change. It is written under another
name, synced, then renamed: after a kill on the way there is nothing that could be taken for whole. Who makes
one holds the folder's lock, and others that want it wait.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from xxhash import xxh3_128

from trainer.data.errors import DataError
from trainer.data.gray import SOURCE_SIZE, Gray, area_mean, read_antenna, read_gray

log = logging.getLogger(__name__)

Cache = Literal["none", "memory", "disk"]

_VERSION = 1
"""Counted up when rows are made otherwise from the same files: older cache files are then passed over."""


class Rows(Protocol):
    """Rows by place."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Pictures:
    """Gray images reduced to (side, side), each decoded when it is asked for."""

    name: str
    paths: list[Path]
    side: int

    @property
    def empty(self) -> NDArray[Any]:
        """No row yet; shape and type of those to come."""
        return np.empty((0, self.side, self.side), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int, /) -> Gray:
        return area_mean(read_gray(self.paths[place]), self.side)


@dataclass(frozen=True)
class Antennas:
    """Row and column of each image's antenna, as reduced to (side, side)."""

    name: str
    paths: list[Path]
    side: int

    @property
    def empty(self) -> NDArray[Any]:
        """No row yet; shape and type of those to come."""
        return np.empty((0, 2), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int, /) -> NDArray[np.int64]:
        return np.array(read_antenna(self.paths[place])) // (SOURCE_SIZE // self.side)


Files = Pictures | Antennas


class Stack(NamedTuple):
    """Rows, and the digest of their bytes: the same however they are kept."""

    rows: Rows
    digest: str


def stack(files: Files, cache: Cache, folder: Path) -> Stack:
    """All rows of these files, each read and checked once. ``folder`` is where cache files lie.

    Raises:
        BadFile: a file can't be used.
        DataError: the cache can't be written.
    """
    if cache == "disk":
        return _mapped(files, folder)
    kept = (
        np.empty((len(files), *files.empty.shape[1:]), dtype=files.empty.dtype) if cache == "memory" else None
    )
    digest = xxh3_128()
    for place in range(len(files)):
        row = files[place]
        digest.update(row.data)
        if kept is not None:
            kept[place] = row
    return Stack(files if kept is None else kept, digest.hexdigest())


def _mapped(files: Files, folder: Path) -> Stack:
    path = folder / f"{files.name.replace('/', '-')}-{_key(files)}.npy"
    try:
        found = _whole(path, files)
        if found is None:
            with _lock(folder):
                found = _whole(path, files)  # another process may have made it meanwhile
                if found is None:
                    _make(path, files)
                    found = _whole(path, files)
    except OSError as error:
        raise DataError(
            f"cannot keep a cache in data.cache_folder = {folder} ({error.strerror or error}); choose "
            'another folder, or data.cache = "memory"'
        ) from error
    if found is None:
        raise DataError(f"{path} does not hold what was just written to it; choose another data.cache_folder")
    return found


def _key(files: Files) -> str:
    """Equal for the same files, unchanged, at the same size."""
    digest = xxh3_128(repr((_VERSION, files.name, files.side)).encode())
    for path in files.paths:
        digest.update(repr((str(path.absolute()), *_state(path))).encode())
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    try:
        facts = path.stat()
    except OSError:
        return ()  # no cache file has this key, so the file will be read, which says what is wrong
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _whole(path: Path, files: Files) -> Stack | None:
    """What the file holds, mapped; None where there is no file, or a damaged one."""
    if not path.exists():
        return None
    try:
        return _proved(path, files)
    except (ValueError, EOFError) as error:
        log.warning("the cache file %s is made again: %s", path, error)
        return None


def _proved(path: Path, files: Files) -> Stack:
    """What the file holds, once its bytes agree with their digest; else a ValueError, EOFError if empty."""
    mapped = np.load(path, mmap_mode="r")
    if mapped.shape != (len(files), *files.empty.shape[1:]) or mapped.dtype != files.empty.dtype:
        raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape}")
    rows = np.asarray(mapped)
    digest = xxh3_128(rows.data)
    with path.open("rb") as file:
        file.seek(-digest.digest_size, os.SEEK_END)
        if file.read() != digest.digest():
            raise ValueError("its bytes differ from their digest")
    return Stack(rows, digest.hexdigest())


def _make(path: Path, files: Files) -> None:
    for left in path.parent.glob("*.part"):
        left.unlink()  # we hold the lock: whoever wrote this is gone
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            _write(file, files)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(file: IO[bytes], files: Files) -> None:
    """Plain writes: into a mapped file a full disk would be a fatal signal, here it is an error."""
    shape, dtype = (len(files), *files.empty.shape[1:]), files.empty.dtype
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    digest = xxh3_128()
    for place in range(len(files)):
        row = np.ascontiguousarray(files[place], dtype=dtype)
        digest.update(row.data)
        file.write(row.data)
    file.write(digest.digest())


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time; the system takes the lock back from one that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
