"""A Lightning training that meets a NaN and spoiled weights, and ends healthy.

pip install 'trainhealth[train,integrations]'
python examples/lightning_loop.py [FOLDER] [MONITOR_URL]
"""

import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainer.integrations.lightning import TrainHealth
from trainer.integrations.settings import CompanionConfig
from trainer.link.config import LinkConfig
from trainer.recovery import RecoveryConfig


class Regression(LightningModule):
    """An ordinary module; what goes wrong with it comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        x, y = batch
        if self.global_step == 250:
            self.net[0].weight.data.mul_(1000)  # a memory fault, say
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)


seed_everything(0)
x = torch.randn(12_800, 8)
y = x.sum(1, keepdim=True).sin()
x[32 * 150 + 3, 5] = torch.nan  # one broken sample
folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
guarded = TrainHealth(
    CompanionConfig(
        folder=folder,
        run="lightning-example",
        recovery=RecoveryConfig(snapshot_every=25, checkpoint_every=100),
        link=LinkConfig(url=sys.argv[2] if sys.argv[2:] else ""),
    )
)
trainer = Trainer(
    max_epochs=1,
    accelerator="cpu",
    callbacks=[guarded],
    gradient_clip_val=1.0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=folder,
)
model = Regression()
trainer.fit(model, DataLoader(TensorDataset(x, y), batch_size=32))
assert guarded.companion is not None
record = guarded.companion.reporter.record
model.eval()
fresh = torch.randn(1000, 8)
with torch.no_grad():
    loss = nn.functional.mse_loss(model.net(fresh), fresh.sum(1, keepdim=True).sin())
for finding in record.findings:
    print(f"step {finding.step}: {finding.severity}: {finding.message}")
for rollback in record.rollbacks:
    print(f"back from step {rollback.from_step} to {rollback.to_step}")
print(f"loss {loss.item():.4f} after {guarded.companion.state.step} updates, {record.skipped_steps} refused")
