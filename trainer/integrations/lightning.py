"""A Lightning callback: ``Trainer(callbacks=[TrainHealth(CompanionConfig(folder=...))])``.

It clips in Lightning's place, to the same ``gradient_clip_val``. One optimizer, automatic optimization, full
precision or bf16; a fused optimizer costs no host read.
"""

from typing import Any

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from trainer.errors import ConfigError
from trainer.integrations.companion import Companion
from trainer.integrations.settings import CompanionConfig


class TrainHealth(Callback):
    """Guards, proved checkpoints and the monitor beside a Lightning training.

    Raises:
        ConfigError: at the start, where the training is of a kind that can't be guarded from beside.
    """

    def __init__(self, config: CompanionConfig) -> None:
        self.config = config
        self.companion: Companion | None = None
        self._clip: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizer = _only_optimizer(trainer, pl_module)
        clip = self._take_over_clipping(trainer)
        words = f"lightning {lightning.__version__}"
        companion = Companion(self.config, pl_module, optimizer, max_norm=clip, framework=words)
        total = trainer.estimated_stepping_batches
        known = int(total) if total != float("inf") and total > 0 else None
        companion.begin(total_steps=known, step=trainer.global_step)
        self.companion, self._is_begun = companion, False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self.companion is not None
        if not self._is_begun:
            self.companion.before_forward()
            self._is_begun = True

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        assert self.companion is not None
        self.companion.note(loss)  # Lightning has weighted it by its share already

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert self.companion is not None
        self.companion.before_update()
        self._is_begun = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self.companion is not None
        if self._is_begun:  # amid the pieces of an update nothing is judged, and nobody goes back
            return
        self.companion.after_update()
        if self.companion.stop_reason is not None:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.companion is not None
        self._give_back_clipping(trainer)
        self.companion.end("finished" if self.companion.stop_reason is None else "stopped")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back_clipping(trainer)
        if self.companion is not None:
            self.companion.raised(exception)

    def _take_over_clipping(self, trainer: Trainer) -> float | None:
        if trainer.gradient_clip_algorithm not in (None, "norm"):
            raise ConfigError(
                "gradient_clip_algorithm is not 'norm'; only the norm can be clipped from beside"
            )
        clip = self._clip = trainer.gradient_clip_val
        trainer.gradient_clip_val = None
        return None if not clip else float(clip)

    def _give_back_clipping(self, trainer: Trainer) -> None:
        """What was taken over; nothing the second time."""
        if self._clip is not None:
            trainer.gradient_clip_val, self._clip = self._clip, None


def _only_optimizer(trainer: Trainer, module: LightningModule) -> Optimizer:
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise ConfigError(
            f"{len(trainer.optimizers)} optimizers, automatic_optimization={module.automatic_optimization}: "
            "the callback guards one optimizer that Lightning steps; put a Companion into a loop of your own"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ConfigError(
            f"precision {trainer.precision!r} scales the loss, and its scaler undoes what a guard decides; "
            "use bf16-mixed or 32-true"
        )
    return trainer.optimizers[0]
