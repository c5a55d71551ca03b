"""Delivers what an ended run left in its spool."""

import asyncio
from contextlib import suppress
from pathlib import Path

from shared.exchange import OutboxCounts
from trainer.link.config import LinkConfig
from trainer.link.courier import Courier
from trainer.link.inbox import Inbox
from trainer.link.outbox import Address, Outbox
from trainer.link.packer import Packer
from trainer.link.recorder import Recorder
from trainer.link.sender import Sender


def deliver(directory: Path, config: LinkConfig, deadline_s: float = 60.0) -> OutboxCounts:
    """Send all batches that wait in ``directory`` to ``config.url``; what is left then waits on.

    Commands in the replies are left alone: nobody is here to carry them out.

    Raises:
        SpoolError: the directory holds no run, or its trainer still uses it.
        ValueError: no ``url`` is configured.
    """
    if not config.url:
        raise ValueError("no monitor is configured; set link.url to deliver a spool")
    address = Address.load(directory)
    outbox = Outbox(directory, config.spool_limit_bytes)
    outbox.open()
    try:
        asyncio.run(_drain(config, address, outbox, deadline_s))
    finally:
        outbox.close()
    return OutboxCounts(rejected_batches=outbox.rejected, pending_batches=outbox.pending)


async def _drain(config: LinkConfig, address: Address, outbox: Outbox, deadline_s: float) -> None:
    packer = Packer(Recorder(max_steps=1, max_events=1), outbox)
    async with Courier(config, address.run) as courier:
        sender = Sender(config, address, courier, packer, outbox, Inbox())
        sender.in_a_hurry.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while (record := outbox.take()) is not None:
                    await sender.deliver(record)
