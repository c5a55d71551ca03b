"""What two ranks do together, written down by each: started by torchrun, judged by ``test_ranks.py``.

torchrun --standalone --nproc-per-node 2 tests/trainer/ranks/world.py FOLDER
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.base import utc_now
from shared.commands import Command
from trainer.build import build_loop
from trainer.guards.base import own_part
from trainer.guards.invariants import fingerprint
from trainer.loop import Loop
from trainer.passes import Phase
from trainer.ranks import Ranks, joined


def laboratory(folder: Path) -> Any:
    """The laboratory of the other tests."""
    spec = importlib.util.spec_from_file_location("laboratory", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["laboratory"] = module
    spec.loader.exec_module(module)
    return module.Laboratory(folder)


def plain(lab: Any) -> type[nn.Module]:
    """A denoiser without BatchNorm or chance: what it learns is a function of the batch alone."""

    class Plain(lab.Denoiser):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU())

        def _guess(self, batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            latent = self.encoder(batch["image"]) * self.scale_factor
            t = batch["image"].mean(dim=(1, 2, 3)).sigmoid().clamp(0.01, 0.99)
            noise = torch.cat([batch["cond"], batch["image"]], 1).sin()
            plane = t[:, None, None, None]
            noisy = (1 - plane) * latent + plane.sqrt() * noise
            inputs = torch.cat([noisy, batch["cond"], plane.expand_as(batch["cond"])], 1)
            return latent, self.head(self.inner(inputs)), noise, t

    return Plain


def weights(loop: Loop) -> dict[str, list[float]]:
    return {name: one.detach().flatten().tolist() for name, one in loop.state.model.named_parameters()}


def weights_by_name(tensors: dict[str, Tensor], names: set[str]) -> dict[str, list[float]]:
    return {name: one.flatten().tolist() for name, one in tensors.items() if name in names}


def prints(loop: Loop) -> dict[str, int]:
    """Fingerprints of all that a rank holds, but for its own random states."""
    parts = loop.state.parts()
    return {
        f"{part}/{name}": int(fingerprint(tensor))
        for part, tensors in parts.items()
        if part != "random"
        for name, tensor in tensors.items()
    }


def told(loop: Loop) -> dict[str, Any]:
    """What one rank knows in the end."""
    record = loop.reporter.record
    return {
        "step": loop.state.step,
        "iteration": loop.state.iteration,
        "attempt": record.attempt,
        "skips": [(one.step, one.reason, one.sample_ids) for one in record.skips],
        "findings": [(one.step, one.guard, one.severity, one.message) for one in record.findings],
        "rollbacks": [(one.from_step, one.to_step, one.source, one.checkpoint) for one in record.rollbacks],
        "prints": prints(loop),
        "memory": loop.state.panel.state_dict(),
    }


class World:
    """The checks, one after the other in one process group; each answers what this rank saw."""

    def __init__(self, lab: Any, ranks: Ranks) -> None:
        self.lab, self.ranks = lab, ranks

    def run(self, name: str, *observers: Any, steps: int = 40, **kind: Any) -> Loop:
        loop: Loop = self.lab.run(name, observers=observers, steps=steps, ranks=self.ranks, **kind)
        return loop

    def same_as_one(self) -> dict[str, Any]:
        """The same global batches, shared by two."""
        loop = self.run("plain", model=plain(self.lab), steps=12)
        return {**told(loop), "weights": weights(loop)}

    def usual(self) -> dict[str, Any]:
        drawn: list[float] = []

        def look(phase: Phase, loop: Loop) -> None:
            if phase is Phase.MEASURE and loop.state.step < 3:
                assert loop.losses is not None
                assert loop.losses.times is not None
                drawn.extend(loop.losses.times.tolist())

        diary = self.lab.Diary()
        loop = self.run("usual", look, diary)
        return {**told(loop), "times": drawn, "batches": diary.batches}

    def nan_on_one(self) -> dict[str, Any]:
        """Rank 1's gradient is NaN at iteration 7, and again in the replay."""
        return told(self.run("nan", self._break_gradient(times=2), steps=20))

    def nan_once(self) -> dict[str, Any]:
        """The same, but the replay is clean."""
        return told(self.run("once", self._break_gradient(times=1)))

    def _break_gradient(self, times: int) -> Callable[[Phase, Loop], None]:
        left = [times]

        def strike(phase: Phase, loop: Loop) -> None:
            is_due = phase is Phase.MEASURE and loop.state.iteration == 8 and left[0]
            if is_due and self.ranks.number == 1:
                left[0] -= 1
                first = next(p for p in loop.state.model.parameters() if p.grad is not None)
                assert first.grad is not None
                first.grad.view(-1)[0] = torch.nan

        return strike

    def skipped_by_hand(self) -> dict[str, Any]:
        """The same run, where both ranks' loss is NaN at that iteration."""

        def strike(phase: Phase, loop: Loop) -> None:
            if phase is Phase.MEASURE and loop.state.iteration == 8:
                for parameter in loop.state.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.fill_(torch.nan)

        return told(self.run("by-hand", strike, steps=20))

    def corrupt_on_one(self) -> dict[str, Any]:
        """A NaN in rank 1's weights, of which rank 0 sees nothing by itself."""
        return told(self.run("corrupt", self._spoil(torch.nan)))

    def unequal(self) -> dict[str, Any]:
        """One bit of one weight of rank 1: no guard of one rank could see it."""
        return told(self.run("unequal", self._spoil(1.0)))

    def _spoil(self, value: float) -> Callable[[Phase, Loop], None]:
        struck: list[int] = []

        def strike(phase: Phase, loop: Loop) -> None:
            is_due = phase is Phase.FETCH and loop.state.step == 26 and not struck
            if is_due and self.ranks.number == 1:
                struck.append(1)
                weight = next(p for n, p in loop.state.model.named_parameters() if n == "head.weight")
                with torch.no_grad():
                    own_part(weight.detach()).view(-1)[3] += 1e-3 * value

        return strike

    def ordered(self) -> dict[str, Any]:
        """A command that reaches rank 0 (back to a checkpoint), and a signal that only rank 1 hears."""
        sent: list[str] = []

        def order(phase: Phase, loop: Loop) -> None:
            loop.recovery._writer.drain()  # type: ignore[attr-defined]
            if phase is Phase.FETCH and loop.state.step == 33 and not sent and self.ranks.is_first:
                sent.append("c1")
                loop.reporter.link.commands = _Once([_command(loop)])  # type: ignore[method-assign]
            if phase is Phase.REPORT and loop.state.step == 38 and not self.ranks.is_first:
                loop.stop("a signal on rank 1")

        loop = self.lab.loop("ordered", observers=[order], steps=60, ranks=self.ranks)
        status = loop.run()
        return {**told(loop), "status": status, "seen": loop.reporter.record.commands_seen}

    def sharded(self) -> dict[str, Any]:
        """What ``same_as_one`` learns, with the weights split between the ranks."""
        loop = self.run("sharded", model=plain(self.lab), steps=12, parallel="fsdp2")
        parts = loop.state.parts()
        names = weights_by_name(parts["model"], {name for name, _ in loop.state.model.named_parameters()})
        shards = {name: type(one).__name__ for name, one in loop.state.model.named_parameters()}
        return {**told(loop), "weights": names, "shards": shards}

    def sharded_nan(self) -> dict[str, Any]:
        """Rank 1's loss is NaN in one step, and again in its replay; killed, and resumed."""

        def strike(phase: Phase, loop: Loop) -> None:
            is_due = phase is Phase.BACKWARD and loop.state.iteration == 8
            if is_due and self.ranks.number == 1:
                assert loop.losses is not None
                loop.losses.total = loop.losses.total * torch.nan  # type: ignore[misc]

        with suppress(self.lab.Killed):
            self.run("sharded-nan", strike, self.lab.kill_at(31), parallel="fsdp2")
        resumed = told(self.run("sharded-nan", seed=None, parallel="fsdp2"))
        return {**resumed, "whole": told(self.run("sharded-whole", strike, parallel="fsdp2"))["prints"]}

    def sharded_corrupt(self) -> dict[str, Any]:
        """A NaN in the part of the weights that rank 1 alone holds."""
        return told(self.run("sharded-corrupt", self._spoil(torch.nan), parallel="fsdp2"))

    def resumed(self) -> dict[str, Any]:
        """The first 25 steps of ``usual``, and the rest in new loops."""
        with suppress(self.lab.Killed):
            self.run("resumed", self.lab.kill_at(31))
        loop = self.run("resumed", seed=None)
        return told(loop)

    def bad_file_on_one(self) -> dict[str, Any]:
        """Rank 1 alone can't accept the newest checkpoint: both take the older one."""
        self.run("bad-file", steps=50)
        config = self.lab.config("bad-file")
        loop = build_loop(config, self.lab.stage(config, steps=60), ranks=self.ranks)
        own = loop.recovery._restoring._take_over

        def refuse(stored: Any) -> str | None:
            if self.ranks.number == 1 and stored.manifest.step == 50:
                return "rank 1 does not like it"
            answer: str | None = own(stored)
            return answer

        loop.recovery._restoring._take_over = refuse
        name = loop.recovery.resume()
        loop.recovery.close()
        return {"name": name, "step": loop.state.step}


class _Once:
    def __init__(self, commands: list[Command]) -> None:
        self._commands = commands

    def __call__(self) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands


def _command(loop: Loop) -> Command:
    now = utc_now()
    return Command(
        id="c1",
        kind="roll_back",  # type: ignore[arg-type]
        reason="a test",
        issued_by="somebody",
        issued_at=now,
        expires_at=now + timedelta(minutes=1),
        attempt=loop.reporter.record.attempt,
    )


CHECKS = (
    *("same_as_one", "usual", "nan_on_one", "nan_once", "skipped_by_hand", "corrupt_on_one"),
    *("sharded", "sharded_nan", "sharded_corrupt"),
    *("unequal", "ordered", "resumed", "bad_file_on_one"),
)


def main(folder: Path) -> None:
    """Run all checks; leaves ``rank-N.json``."""
    torch.set_num_threads(1)
    with joined("cpu", 60.0) as (ranks, _):
        world = World(laboratory(folder), ranks)
        seen = {name: getattr(world, name)() for name in CHECKS}
    (folder / f"rank-{ranks.number}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
