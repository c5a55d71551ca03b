"""A Hugging Face Trainer under guard: ``guard(trainer, CompanionConfig(folder=...)).train()``.

It clips in the Trainer's place, to the same ``max_grad_norm``. One process, full precision or bf16; a fused
optimizer (``optim="adamw_torch_fused"``, the default) costs no host read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import Tensor
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.errors import ConfigError
from trainer.integrations.companion import Companion
from trainer.integrations.settings import CompanionConfig


def guard(trainer: Trainer, config: CompanionConfig) -> Trainer:
    """Put guards, proved checkpoints and the monitor beside this Trainer; answers it.

    From now on its ``train`` is watched: whatever way it ends is told, and the Trainer is left as it was.

    Raises:
        ConfigError: it trains in fp16, whose scaler undoes what a guard decides.
    """
    if trainer.args.fp16:
        raise ConfigError("fp16 scales the loss, and its scaler undoes what a guard decides; use bf16=True")
    health = TrainHealth(config, trainer)
    trainer.add_callback(health)
    vars(trainer)["train"] = health.train
    return trainer


class TrainHealth(TrainerCallback):
    """The callback behind ``guard``. The losses come from ``training_step``, which it listens to."""

    def __init__(self, config: CompanionConfig, trainer: Trainer) -> None:
        self.config = config
        self.companion: Companion | None = None
        self._trainer, self._max_norm = trainer, 0.0
        self._train, self._training_step = trainer.train, trainer.training_step

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """In place of ``Trainer.train``, which tells no callback of an error."""
        theirs = self._trainer.args
        self._max_norm = theirs.max_grad_norm
        with _put(self._trainer, "training_step", self._noting), _put(theirs, "max_grad_norm", 0.0):
            try:
                return self._train(*args, **kwargs)
            except BaseException as error:
                if self.companion is not None:
                    self.companion.raised(error)
                raise

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.companion is not None:  # auto_find_batch_size begins again with a smaller one
            self.companion.end("failed", "begun anew")
        optimizer: Optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # accelerate's
        words = f"transformers {transformers.__version__}"
        clip = self._max_norm or None
        companion = Companion(self.config, kwargs["model"], optimizer, max_norm=clip, framework=words)
        companion.begin(total_steps=state.max_steps, step=state.global_step)
        self.companion = companion

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.companion is not None
        self.companion.before_forward()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.companion is not None
        self.companion.before_update()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.companion is not None
        self.companion.after_update()
        if self.companion.stop_reason is not None:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.companion is not None
        self.companion.end("finished" if self.companion.stop_reason is None else "stopped")

    def _noting(self, *args: Any, **kwargs: Any) -> Tensor:
        assert self.companion is not None
        loss: Tensor = self._training_step(*args, **kwargs)
        self.companion.note(loss)
        return loss


@contextmanager
def _put(owner: object, name: str, value: object) -> Iterator[None]:
    """Within this block the attribute is ``value``; what was there before, of the class maybe, comes back."""
    own = vars(owner)
    was_there, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if was_there:
            own[name] = before
        else:
            del own[name]
