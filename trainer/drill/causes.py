"""What really goes wrong when RadioDiff is trained and resumed: 26 causes, R01 to R26, as drills.

They were measured on the published code. Where this trainer refuses at load or can't do it at all, the drill
shows that; a cause that is one of F01 to F42 word for word is drilled there, and named here.
"""

import math
from collections.abc import Sequence

from trainer.drill import faults_checkpoint as disk
from trainer.drill import faults_data as data
from trainer.drill import faults_life as life
from trainer.drill import faults_load as load
from trainer.drill import faults_monitor as monitor
from trainer.drill import faults_optimizer as optimizer
from trainer.drill import faults_precision as precision
from trainer.drill import faults_ranks as ranks
from trainer.drill import faults_state as state
from trainer.drill import faults_step as step
from trainer.drill.exercise import Drill
from trainer.drill.judge import Expectation as Expect

_SCAN = 10
_REFUSED = "refused at load"
_HARMLESS = Expect("", recovery="it changes nothing", means="does no harm")


def _forged(id: str, name: str, what: str, change: load.Change, words: str = "") -> Drill:
    expect = Expect("C", recovery="the next older checkpoint", words=words, means=_REFUSED)
    return Drill(id, name, what, lambda at: load.Forged(at, change), expect)


def _damaged(id: str, name: str, what: str, damage: disk.Damage) -> Drill:
    expect = Expect("C", recovery="the next older checkpoint", means=_REFUSED)
    return Drill(id, name, what, lambda at: disk.DamagedCheckpoint(at, damage), expect)


CAUSES: Sequence[Drill] = (
    Drill(
        *("R01", "fp16-overflow", "fp16 without a loss scale, and attention logits beyond 65504"),
        precision.overflowing_logits,
        Expect("PSL", late=1, recovery="memory snapshot; layer and type are named", words="attention."),
        precision.FLOAT16,
    ),
    Drill(
        *("R02", "fp16-underflow", "fp16 without a loss scale: small gradients become exactly 0"),
        precision.without_loss_scale,
        Expect("L", late=_SCAN, recovery="told", words="exactly 0"),
        precision.OFTEN_COUNTED,
    ),
    Drill(
        *("R03", "poisoned-by-image", "a NaN pixel gets past the worker and into BatchNorm"),
        lambda at: data.PoisonedStatistics(at, "image"),
        Expect("P", recovery="refused, statistics put back; the sample is set aside"),
    ),
    Drill(
        *("R03", "poisoned-by-condition", "the same in the condition"),
        lambda at: data.PoisonedStatistics(at, "cond"),
        Expect("P", recovery="refused, statistics put back; the sample is set aside"),
    ),
    _forged("R04", "nan-statistic-in-file", "NaN in one BatchNorm variance", load.statistic_is_nan, "NaN"),
    _forged(
        "R05", "nan-average-in-file", "the average has a NaN, the model none", load.average_is_nan, "ema"
    ),
    _forged(
        "R05", "old-average-in-file", "the average of an earlier step", load.average_is_old, "probe loss"
    ),
    _forged("R06", "nan-moment-in-file", "NaN in exp_avg of one tensor", load.moment_is_nan, "exp_avg"),
    _forged(
        *("R07", "zero-second-moments", "all of exp_avg_sq is 0"),
        load.second_moments_times(0.0),
        "exp_avg_sq",
    ),
    _forged(
        *("R07", "negative-second-moments", "all of exp_avg_sq is below zero"),
        load.second_moments_times(-1.0),
        "exp_avg_sq",
    ),
    _forged("R08", "no-moments", "the optimizer's state is not in the file", load.moments_are_gone),
    _forged("R08", "shifted-moments", "each parameter has another's moments", load.moments_are_shifted),
    _forged("R08", "one-moment-fewer", "one parameter's is missing", load.a_moment_is_missing, "exp_avg"),
    Drill(
        *("R08", "rate-times-100", "the learning rate is 100 times too high"),
        lambda at: optimizer.learning_rate_times(at, 100.0),
        Expect("L", recovery="put back on the schedule before the update"),
    ),
    Drill(
        *("R09", "average-of-broken-weights", "the average takes in a NaN that is gone a moment later"),
        state.average_of_broken_weights,
        Expect("SC", late=_SCAN, recovery="memory snapshot"),
    ),
    *(
        _forged("R10", f"scale-of-{value}-in-file", f"the scale factor is {value}", change, "probe loss")
        for value, change in (
            ("0", load.scale_factor_is(0.0)),
            ("0.18", load.scale_factor_is(0.18215)),
            ("1", load.scale_factor_is(1.0)),
        )
    ),
    _forged("R10", "scale-is-nan-in-file", "the scale factor is NaN", load.scale_factor_is(math.nan), "NaN"),
    _forged("R10", "scale-is-double", "the factor is of Python's type", load.scale_factor_is_double, "scale"),
    _forged("R10", "scale-is-absent", "the factor is not there", load.scale_factor_is_absent, "scale_factor"),
    _damaged("R11", "zeroed-stretch", "64 KiB of tensors are zero", disk.zero_64_kib),
    _damaged("R11", "nan-written-over", "one value is overwritten by NaN", disk.nan_in_file),
    _damaged("R12", "empty-file", "the weights' file is empty", disk.empty_file),
    _damaged("R12", "zero-tail", "the last quarter of a file is zero", disk.zero_tail),
    Drill(
        *("R13", "gradients-of-1e20", "every gradient element is 1e20: finite, and their norm is not"),
        step.huge_gradients,
        Expect("P"),
    ),
    *(
        Drill(
            *("R14", f"gradients-times-{factor}", f"gradients {factor} times too large for 10 steps"),
            lambda at, factor=factor: step.gradients_times(at, float(factor), times=10),  # type: ignore[misc]
            Expect("PL", late=late, recovery="refused or clipped, and told from the norm before clipping"),
            soaks=factor > 10,
        )
        for factor, late in ((10, 3), (100, 0))
    ),
    Drill(
        *("R15", "nan-in-last-bias", "NaN in the last layer's bias"),
        state.last_bias_is_nan,
        Expect("PS", late=1, recovery="memory snapshot"),
    ),
    Drill(
        *("R16", "weights-times-1.5", "all weights half as large again"),
        lambda at: state.all_weights_times(at, 1.5),
        Expect("PSL", late=_SCAN, recovery="memory snapshot"),
    ),
    Drill(
        *("R16", "constant-condition", "a condition that says nothing"),
        lambda at: data.BadItems(at, data.constant_condition),
        Expect("W", recovery="told and counted"),
    ),
    Drill(
        *("R17", "prefixed-first-stage", "a first stage whose names begin with module."),
        life.PrefixedFile,
        Expect("C", recovery="refused with the names", words="module.", means=_REFUSED),
    ),
    Drill(
        *("R18", "resumed-the-other-way", "saved without the optimizer, resumed with it, and the reverse"),
        None,
        Expect(""),
        idle="there is no such switch: every checkpoint holds all of it, and R08 shows that less is refused",
    ),
    _forged("R18", "never-meant-to-resume", "the file has no step", load.step_is_absent, "step"),
    Drill(
        *("R19", "fewer-steps", "told to end before where it is"),
        life.FewerSteps,
        Expect("C", recovery="told as another setting; no step is trained", words="training.steps 100 -> 10"),
    ),
    _forged(
        *("R20", "no-time-embedding", "the time embedding's frequencies are missing"),
        load.times_embedding_is_absent,
        "time",
    ),
    Drill(*("R21", "sampled-in-between", "maps are drawn amid training"), life.sampled_in_between, _HARMLESS),
    Drill(
        *("R22", "evaluation-mode", "the model stays in evaluation mode"),
        state.in_evaluation_mode,
        Expect("SL", late=1, recovery="put back"),
    ),
    Drill(
        *("R22", "autoencoder-trains", "the frozen autoencoder is set to training mode"),
        state.autoencoder_in_training_mode,
        Expect("SL", late=1, recovery="put back"),
    ),
    Drill(
        *("R23", "nan-batch-on-one-rank", "one of two ranks gets a NaN in its part of the batch"),
        lambda at: ranks.OnOneRank(at, "batch"),
        Expect("P", recovery="both refuse; the sample is set aside"),
    ),
    Drill(
        *("R24", "two-rollbacks", "two rollbacks are ordered at once"),
        monitor.two_in_a_row,
        Expect("M", recovery="the first is carried out, the second refused"),
    ),
    Drill(
        *("R24", "rollback-during-save", "a rollback is ordered while a checkpoint is written"),
        monitor.during_a_save,
        Expect("M", recovery="carried out when the save has ended"),
    ),
    Drill(
        *("R25", "saturated-adversary", "the adversary's adaptive weight stays on its limit"),
        None,
        Expect(""),
        idle="it takes 50 steps of an adversary; tests/trainer/guards/test_saturation.py sets it there",
    ),
    Drill(*("R25", "planned-change", "the adversary begins amid stage one"), life.PlannedChange, _HARMLESS),
    _forged("R26", "half-weights", "the weights are float16", load.weights_are_half, "F16"),
)
