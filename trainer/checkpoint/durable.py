"""Files that are there whole or not at all, also after a crash or a power cut.

The order is always: temporary name, write, fsync, rename, fsync of the folder. An fsync costs 0.1 to 50 ms,
depending on the disk and on what else waits in its queue.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from trainer.checkpoint.errors import CheckpointWriteFailed, os_reason

log = logging.getLogger(__name__)

_MARK = ".tmp-"


def draft_beside(target: Path) -> Path:
    """A hidden, unused name in the same folder: what a killed process left never blocks the next one."""
    return target.with_name(f".{target.name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A draft folder to fill, which becomes ``target`` at the end of the block, or vanishes.

    The caller syncs the files that it writes there; folders are synced here.

    Raises:
        CheckpointWriteFailed: the system refused something, or ``target`` exists with content.
    """
    draft = draft_beside(target)
    try:
        draft.mkdir()
        yield draft
        _sync_folder(draft)
        draft.rename(target)
        _sync_rename(target)
    except OSError as error:
        raise CheckpointWriteFailed(target, os_reason(error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write and sync a new file; its size in bytes and the xxh3-128 of what was handed to the system."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of a small file, in one step for every reader. Costs two fsyncs.

    Raises:
        CheckpointWriteFailed: the system refused; the old content stands.
    """
    draft = draft_beside(path)
    try:
        write_file(draft, [content])
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CheckpointWriteFailed(path, os_reason(error)) from error


def read_from_disk(path: Path) -> bytes:
    """A synced file's content, from the disk itself where the system can be asked to forget its copy."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def remove_folder(path: Path) -> None:
    """Delete a folder, if it is there, so that a kill half-way leaves a draft and never half a checkpoint."""
    grave = draft_beside(path)
    with suppress(FileNotFoundError):
        path.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def remove_drafts(root: Path) -> int:
    """Delete what killed processes left in ``root`` and one folder below; how many there were."""
    drafts = [*root.glob(f".*{_MARK}*"), *root.glob(f"*/.*{_MARK}*")]
    for draft in drafts:
        log.info("removing %s, left by an interrupted save", draft)
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
    return len(drafts)


def _sync_rename(target: Path) -> None:
    """Make the new name last; a name that might not is taken back, since its writer is told of a failure."""
    try:
        _sync_folder(target.parent)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
