"""Keeps the way back open: checkpoints that prove themselves, snapshots, and the ladder that chooses.

Works beside any PyTorch loop. A state is named tensors in parts, and facts that JSON can hold:

    ring = CheckpointRing(Path("checkpoints"), RingConfig())
    ring.save({"model": model.state_dict()}, {"step": 150}, step=150, attempt=1)
    loaded = ring.load_newest()
    model.load_state_dict(loaded.stored.parts["model"])
"""

from trainer.checkpoint.errors import (
    CheckpointError,
    CheckpointInvalid,
    CheckpointWriteFailed,
    NoValidCheckpoint,
    SaveRefused,
)
from trainer.checkpoint.facts import Facts
from trainer.checkpoint.files import Stored, read, write
from trainer.checkpoint.layout import match
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.record import Record, State, list_records
from trainer.checkpoint.retention import RingConfig
from trainer.checkpoint.ring import CheckpointRing, Loaded
from trainer.checkpoint.rollback import (
    AS_BEFORE,
    Easing,
    Ladder,
    LadderConfig,
    LoadCheckpoint,
    Refuse,
    RestoreSnapshot,
    Rung,
    Stop,
)
from trainer.checkpoint.snapshot import Snapshot, SnapshotRing, stage
from trainer.checkpoint.tensors import HostParts, Parts
from trainer.checkpoint.writer import CheckpointWriter, SaveResult

__all__ = [
    "AS_BEFORE",
    "CheckpointError",
    "CheckpointInvalid",
    "CheckpointRing",
    "CheckpointWriteFailed",
    "CheckpointWriter",
    "Easing",
    "Facts",
    "HostParts",
    "Ladder",
    "LadderConfig",
    "LoadCheckpoint",
    "Loaded",
    "Manifest",
    "NoValidCheckpoint",
    "Parts",
    "Record",
    "Refuse",
    "RestoreSnapshot",
    "RingConfig",
    "Rung",
    "SaveRefused",
    "SaveResult",
    "Snapshot",
    "SnapshotRing",
    "State",
    "Stop",
    "Stored",
    "list_records",
    "match",
    "read",
    "stage",
    "write",
]
