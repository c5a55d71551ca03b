"""What the trainer raises, and the exit code of each.

TrainerError
├── ConfigError     the configuration, the data or the folder will not do; nothing was started   2
├── RunStopped      the ladder of recovery has no rung left                                       3
├── ResumeRefused   the run's checkpoints exist, but none of them can be trusted                  4
├── RankLost        another rank has gone; torchrun starts all of them again                      1
└── StopRequested   somebody asked the run to end early, and it did, in good order                0

``trainer.checkpoint`` and ``trainer.data`` are leaves with errors of their own; the entry point gives theirs
the code of the row they belong to.
"""


class TrainerError(Exception):
    """Base of all: the message says what was found, where, and what would do."""

    exit_code = 1


class ConfigError(TrainerError):
    """The configuration, the data or the folder will not do."""

    exit_code = 2


class RunStopped(TrainerError):
    """Training was ended by the ladder; going on would only repeat the failure."""

    exit_code = 3


class ResumeRefused(TrainerError):
    """No checkpoint of the run passes its checks."""

    exit_code = 4


class StopRequested(TrainerError):
    """A signal or a command ended the run early; the same command goes on from its checkpoint."""

    exit_code = 0


class RankLost(TrainerError):
    """Another rank has gone, or did not answer in time: none can go on without it."""

    def __init__(self, rank: int, world: int, found: str) -> None:
        super().__init__(
            f"rank {rank} of {world}: another has gone or did not answer in time ({found.splitlines()[0]}); "
            "start all again, as torchrun --max-restarts does: they go on from the newest checkpoint"
        )
