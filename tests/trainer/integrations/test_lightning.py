"""A Lightning training under guard: pieces, its own resume, and what it leaves behind however it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainer.integrations.settings import CompanionConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # what the frameworks say of torch is theirs to mend
lightning = pytest.importorskip("lightning.pytorch", reason="pip install 'trainhealth[integrations]'")

At = dict[int, Callable[[Tensor], Tensor]]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Any]:
    """Train a small module for some updates, clipped to 1: answers Trainer, module and callback."""

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, at: At) -> None:
            super().__init__()
            first = nn.Linear(
                4, 8, bias=False
            )  # a bias has no gradient there but rounding, which Adam magnifies
            self.net = nn.Sequential(first, nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
            self.passes, self.at = 0, at

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[0].sum(1, keepdim=True))
            self.passes += 1
            change = self.at.pop(self.passes, None)
            return loss if change is None else change(loss)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            self.made = torch.optim.AdamW(self.parameters(), lr=1e-2, fused=True)
            return self.made

    def build(steps: int, *, guarded: bool = True, at: At | None = None, **options: Any) -> Any:
        from trainer.integrations.lightning import TrainHealth

        torch.manual_seed(0)
        module, health = Module(dict(at or {})), TrainHealth(CompanionConfig(folder=tmp_path / "ours"))
        resume = options.pop("ckpt_path", None)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=[health] if guarded else [],
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        )
        data = DataLoader(TensorDataset(torch.randn(96, 4)), batch_size=4)
        build.last = trainer, module, health
        trainer.fit(module, data, ckpt_path=resume)
        return build.last

    return build


def give_out(_: Tensor) -> Tensor:
    raise RuntimeError("the disk with the data is gone")


def test_a_training_that_raises_is_told_as_failed_and_leaves_the_trainer_as_it_was(fit: Any) -> None:
    with pytest.raises(RuntimeError, match="gone"):
        fit(12, at={5: give_out})
    trainer, module, health = fit.last
    assert health.companion.reporter.record.status == "failed"
    assert health.companion.state.step == 4
    assert trainer.gradient_clip_val == 1.0
    assert not module.made._optimizer_step_post_hooks


def interrupt(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


def test_ctrl_c_is_told_as_stopped_and_the_last_sound_state_is_kept(fit: Any) -> None:
    with pytest.raises(SystemExit):  # Lightning's answer
        fit(12, at={5: interrupt})
    trainer, module, health = fit.last
    companion = health.companion
    assert companion.reporter.record.status == "stopped"
    assert companion.state.step == 4
    kept = companion.recovery.ring.load_newest(good_first=False)
    assert kept.record.step == 4
    weights = module.state_dict()
    assert all(torch.equal(weights[name], one) for name, one in kept.stored.parts["model"].items())
    assert trainer.gradient_clip_val == 1.0
    assert not module.made._optimizer_step_post_hooks


def test_a_training_that_ends_is_told_as_finished_and_leaves_the_trainer_as_it_was(fit: Any) -> None:
    trainer, _, health = fit(12)
    assert health.companion.reporter.record.status == "finished"
    assert health.companion.state.step == 12
    assert trainer.gradient_clip_val == 1.0


def test_pieces_of_an_update_are_one_step_and_one_bad_piece_refuses_all_of_it(fit: Any) -> None:
    _, module, health = fit(12, at={6: lambda loss: loss * torch.nan}, accumulate_grad_batches=2)
    record = health.companion.reporter.record
    assert module.passes == 24
    assert (health.companion.state.step, record.skipped_steps) == (11, 1)
    assert record.skips[0].step == 2
    weights = module.state_dict().values()
    assert all(bool(one.isfinite().all()) for one in weights)


def test_pieces_and_clipping_give_the_weights_that_an_unguarded_trainer_gives(fit: Any) -> None:
    _, alone, _ = fit(12, guarded=False, accumulate_grad_batches=2)
    _, ours, _ = fit(12, accumulate_grad_batches=2)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_training_resumed_by_ckpt_path_goes_on_where_it_was_and_is_guarded_from_there(
    fit: Any, tmp_path: Path
) -> None:
    trainer, _, _ = fit(6)
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    _, module, health = fit(12, ckpt_path=tmp_path / "theirs.ckpt", at={4: lambda loss: loss * torch.nan})
    record = health.companion.reporter.record
    assert (record.attempt, record.status) == (2, "finished")
    assert module.passes == 6
    assert (health.companion.state.step, record.skipped_steps) == (11, 1)
    assert record.skips[0].step == 9
    assert all(bool(one.isfinite().all()) for one in module.state_dict().values())


def test_weights_that_are_spoiled_after_a_resume_come_back(fit: Any, tmp_path: Path) -> None:
    trainer, _, _ = fit(6)
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")

    def spoil(loss: Tensor) -> Tensor:
        fit.last[1].net[0].weight.data.fill_(torch.nan)
        return loss

    _, module, health = fit(40, ckpt_path=tmp_path / "theirs.ckpt", at={10: spoil})
    (back,) = health.companion.reporter.record.rollbacks
    assert (back.from_step, back.to_step, back.source) == (16, 7, "snapshot")
    assert all(bool(one.isfinite().all()) for one in module.state_dict().values())
