"""The trainer's line to the monitor: it never slows a step, and what it could not send waits on disk.

    record_step, record_event            commands
              |                              ^
              v                              |
    recorder (memory, bounded)             inbox
              |                              ^
              v                              |
    packer -> outbox (disk) -> sender -> courier -> the monitor's reply

Left of the outbox everything is quick and never waits; right of it everything may fail and is tried again.
"""

from trainer.link.client import Link
from trainer.link.config import LinkConfig
from trainer.link.delivery import deliver
from trainer.link.outbox import SpoolError

__all__ = ["Link", "LinkConfig", "SpoolError", "deliver"]
