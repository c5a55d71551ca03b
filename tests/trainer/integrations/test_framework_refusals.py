"""Trainings that can't be guarded from beside are refused at their start, with what would do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainer.errors import ConfigError
from trainer.integrations.settings import CompanionConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # what the frameworks say of torch is theirs to mend
lightning = pytest.importorskip("lightning.pytorch", reason="pip install 'trainhealth[integrations]'")
transformers = pytest.importorskip("transformers", reason="pip install 'trainhealth[integrations]'")


def module_with(optimizers: int, automatic: bool) -> Any:
    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.automatic_optimization = nn.Linear(2, 1), automatic

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            return self.net(batch[0]).square().mean()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.AdamW(self.parameters(), lr=0.1) for _ in range(optimizers)]

    return Module()


@pytest.mark.parametrize(
    ("optimizers", "automatic", "options", "words"),
    [
        (2, False, {}, "one optimizer that Lightning steps"),
        (1, False, {}, "one optimizer that Lightning steps"),
        (1, True, {"gradient_clip_algorithm": "value", "gradient_clip_val": 1.0}, "only the norm"),
    ],
    ids=["two optimizers", "manual optimization", "clipping by value"],
)
def test_lightning(
    tmp_path: Path, optimizers: int, automatic: bool, options: dict[str, Any], words: str
) -> None:
    from trainer.integrations.lightning import TrainHealth

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    fit = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        callbacks=[TrainHealth(CompanionConfig(folder=tmp_path))],
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **quiet,
        **options,
    )
    with pytest.raises(ConfigError, match=words):
        fit.fit(module_with(optimizers, automatic), DataLoader(TensorDataset(torch.randn(8, 2))))


def test_transformers_in_fp16(tmp_path: Path) -> None:
    from trainer.integrations.transformers import guard

    class Half:
        args = transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)

    Half.args.fp16 = True
    with pytest.raises(ConfigError, match="bf16=True"):
        guard(Half(), CompanionConfig(folder=tmp_path))  # type: ignore[arg-type]
