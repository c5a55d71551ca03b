"""Guards and proved checkpoints around a plain PyTorch loop: no RadioDiff, no monitor, no framework.

    python examples/any_loop.py [FOLDER]

On the way a NaN comes with the data and the weights are spoiled once. The update with the NaN is refused on
the device; the spoiled weights are noticed, and the last checkpoint that proves itself comes back.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from trainer.checkpoint import CheckpointRing, RingConfig
from trainer.guards.base import PlainLoss, StepView, Verdict
from trainer.guards.invariants import Invariants
from trainer.guards.limits import Limits
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.panel import Panel
from trainer.guards.spike import Spike
from trainer.guards.vitals import Meter
from trainer.restoring import Restoring
from trainer.state import TrainState

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)  # fused: it can refuse on the device
limits = Limits()
meter = Meter("loss", optimizer, model.parameters(), max_norm=1.0, limits=limits)
panel = Panel([Nonfinite(), Spike("loss", limits=limits), Invariants()])
state = TrainState(model, {"loss": optimizer}, {"loss": meter}, panel)  # all that must return together
ring = CheckpointRing(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()), RingConfig())
state.rebase()
for number in range(1, 401):
    x = torch.randn(32, 8)
    y = x.sum(1, keepdim=True).sin()
    if number == 150:
        x[3, 5] = torch.nan
    if number == 250:
        model[0].weight.data.mul_(1000)
    meter.protect()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    meter.measure(PlainLoss(loss))
    meter.step()
    meter.settle(1e-2)
    optimizer.zero_grad()
    state.iteration += 1
    is_save_point = number % 50 == 0
    for vitals in meter.arrived(wait=is_save_point):  # what is saved is judged; from a GPU numbers come late
        judged = panel.judge(StepView(vitals, (), state.watched, alarm=is_save_point))
        state.step += not vitals.refused
        for finding in judged.findings:
            print(f"step {finding.step}: {finding.severity}: {finding.message}")
        if judged.verdict >= Verdict.ROLL_BACK:
            Restoring(ring, state).newest()
            state.rebase()
            print(f"back to step {state.step}")
            break  # the numbers after these are of the lost stretch
    else:
        if is_save_point:
            ring.save(state.parts(), state.facts(), step=state.step, attempt=1)
print(f"loss {loss.item():.4f} after {state.step} updates")
