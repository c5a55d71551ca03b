"""A Hugging Face Trainer under guard: however it ends is told, and it is left as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.integrations.settings import CompanionConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # what the frameworks say of torch is theirs to mend
transformers = pytest.importorskip("transformers", reason="pip install 'trainhealth[integrations]'")


class Net(nn.Module):
    """A regression that a Trainer can train; ``at`` happens in the forward pass of that number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.passes, self.at = 0, dict[int, Callable[[Tensor], Tensor]]()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.mse_loss(self.net(x), labels)
        self.passes += 1
        change = self.at.pop(self.passes, None)
        return {"loss": loss if change is None else change(loss)}


def give_out(_: Tensor) -> Tensor:
    raise RuntimeError("the disk with the data is gone")


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Any]:
    """A Trainer of twelve updates, clipped to 1; what happens ``at`` which forward pass."""

    def build(at: dict[int, Callable[[Tensor], Tensor]] | None = None, **options: Any) -> Any:
        torch.manual_seed(0)
        data = [{"x": (x := torch.randn(4)), "labels": x.sum(0, keepdim=True)} for _ in range(96)]
        model = Net()
        model.at = dict(at or {})
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "theirs"),
            max_steps=12,
            per_device_train_batch_size=4,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        )
        return transformers.Trainer(model, arguments, train_dataset=data)

    return build


def guarded(trainer: Any, tmp_path: Path) -> tuple[Any, Any]:
    from trainer.integrations.transformers import TrainHealth, guard

    guard(trainer, CompanionConfig(folder=tmp_path / "ours"))
    health = next(one for one in trainer.callback_handler.callbacks if isinstance(one, TrainHealth))
    return trainer, health


def is_as_it_was(trainer: Any) -> bool:
    is_bare = (
        "training_step" not in vars(trainer) and not trainer.optimizer.optimizer._optimizer_step_post_hooks
    )
    return is_bare and trainer.args.max_grad_norm == 1.0


def test_a_training_that_raises_is_told_as_failed_and_leaves_the_trainer_as_it_was(
    trainer: Any, tmp_path: Path
) -> None:
    theirs, health = guarded(trainer(at={5: give_out}), tmp_path)
    with pytest.raises(RuntimeError, match="gone"):
        theirs.train()
    assert health.companion.reporter.record.status == "failed"
    assert health.companion.state.step == 4
    assert is_as_it_was(theirs)


def interrupt(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


def test_ctrl_c_is_told_as_stopped_and_the_last_sound_state_is_kept(trainer: Any, tmp_path: Path) -> None:
    theirs, health = guarded(trainer(at={5: interrupt}), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        theirs.train()
    companion = health.companion
    assert companion.reporter.record.status == "stopped"
    assert companion.state.step == 4
    kept = companion.recovery.ring.load_newest(good_first=False)
    assert kept.record.step == 4
    weights = theirs.model.state_dict()
    assert all(torch.equal(weights[name], one) for name, one in kept.stored.parts["model"].items())
    assert is_as_it_was(theirs)


def test_a_training_that_ends_is_told_as_finished_and_leaves_the_trainer_as_it_was(
    trainer: Any, tmp_path: Path
) -> None:
    theirs, health = guarded(trainer(), tmp_path)
    theirs.train()
    assert health.companion.reporter.record.status == "finished"
    assert health.companion.state.step == 12
    assert is_as_it_was(theirs)
    theirs.train()
    assert health.companion.reporter.record.attempt == 2, "and it can be trained once more"


def test_what_its_owner_has_put_into_training_step_is_listened_to_and_stays(
    trainer: Any, tmp_path: Path
) -> None:
    theirs, called = trainer(), []
    step = theirs.training_step

    def own(*args: Any, **kwargs: Any) -> Tensor:
        called.append(1)
        return step(*args, **kwargs)

    theirs.training_step = own
    theirs, health = guarded(theirs, tmp_path)
    theirs.train()
    assert len(called) == health.companion.state.step == 12
    assert theirs.training_step is own


def test_pieces_of_an_update_are_one_step_and_one_bad_piece_refuses_all_of_it(
    trainer: Any, tmp_path: Path
) -> None:
    theirs, health = guarded(
        trainer(at={6: lambda loss: loss * torch.nan}, gradient_accumulation_steps=2), tmp_path
    )
    theirs.train()
    record = health.companion.reporter.record
    assert theirs.model.passes == 24
    assert (health.companion.state.step, record.skipped_steps) == (11, 1)
    assert record.skips[0].step == 2
    assert all(bool(p.isfinite().all()) for p in theirs.model.parameters())


def test_pieces_and_clipping_give_the_weights_that_an_unguarded_trainer_gives(
    trainer: Any, tmp_path: Path
) -> None:
    alone = trainer(gradient_accumulation_steps=2)
    alone.train()
    theirs, _ = guarded(trainer(gradient_accumulation_steps=2), tmp_path)
    theirs.train()
    for ours, other in zip(theirs.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)
