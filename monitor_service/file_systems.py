"""Which file system a folder is on: SQLite's shared log needs one that only this machine writes to."""

from pathlib import Path

MOUNTS = Path("/proc/self/mounts")

NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs afs ceph glusterfs lustre fuse.glusterfs fuse.sshfs".split()  # noqa: SIM905
)
"""Kinds on which locks, or memory shared by mapping a file, do not hold between machines."""


def network_kind(folder: Path, mounts: str | None = None) -> str | None:
    """The kind of network file system that ``folder`` is on; ``None`` on a disk, and where it is unknown.

    Args:
        mounts: what ``/proc/self/mounts`` says; default: ask it. Only Linux has one.
    """
    if mounts is None:
        mounts = MOUNTS.read_text(errors="replace") if MOUNTS.exists() else ""
    found, kind = Path(), ""
    for line in mounts.splitlines():
        _, where, this, *_ = line.split(" ")
        place = Path(_plain(where))
        if folder.resolve().is_relative_to(place) and len(place.parts) >= len(found.parts):
            found, kind = place, this  # a later mount hides an earlier one at the same place
    return kind if kind in NETWORK else None


def _plain(name: str) -> str:
    """A blank in a name is written as \\040."""
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        name = name.replace(code, sign)
    return name
