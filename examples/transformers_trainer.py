"""A Hugging Face Trainer that meets a NaN and spoiled weights, and ends healthy.

    pip install 'trainhealth[train,integrations]'
    python examples/transformers_trainer.py [FOLDER] [MONITOR_URL]

A small language model, made from nothing, learns to count; each sample has a weight, and one weight is NaN.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trainer.integrations.settings import CompanionConfig
from trainer.integrations.transformers import guard
from trainer.link.config import LinkConfig
from trainer.recovery import RecoveryConfig

torch.manual_seed(0)
torch.set_num_threads(1)
folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
begins = torch.randint(0, 40, (1600,))
samples = [{"input_ids": (begin + torch.arange(12)) % 40, "weight": torch.tensor(1.0)} for begin in begins]
samples[700]["weight"] = torch.tensor(torch.nan)


class Weighted(Trainer):
    """A Trainer whose samples have weights."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], **_: Any) -> Tensor:
        ids = inputs["input_ids"]
        loss: Tensor = model(input_ids=ids, labels=ids).loss
        return loss * inputs["weight"].mean()


class MemoryFault(TrainerCallback):
    """Multiplies one weight matrix by a million, once."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 150:
            kwargs["model"].transformer.h[0].mlp.c_fc.weight.data.mul_(1e6)


size = GPT2Config(
    vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
)
model = GPT2LMHeadModel(size)
arguments = TrainingArguments(
    output_dir=str(folder / "theirs"),
    max_steps=200,
    per_device_train_batch_size=8,
    learning_rate=3e-3,
    optim="adamw_torch_fused",
    remove_unused_columns=False,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
    logging_strategy="no",
)
config = CompanionConfig(
    folder=folder,
    run="transformers-example",
    recovery=RecoveryConfig(snapshot_every=25, checkpoint_every=50),
    link=LinkConfig(url=sys.argv[2] if sys.argv[2:] else ""),
)
trainer = guard(Weighted(model, arguments, train_dataset=samples, callbacks=[MemoryFault()]), config)
trainer.train()

model.eval()
ids = (torch.arange(40)[:, None] + torch.arange(12)) % 40
with torch.no_grad():
    loss = model(input_ids=ids, labels=ids).loss
print(f"loss {loss.item():.4f}; what happened is in {folder / 'record.json'}")
