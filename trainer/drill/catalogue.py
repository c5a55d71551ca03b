"""Every fault that can be drilled: what happens, where it must be seen, and what must become of it.

The rows follow the project's own table of 42 injectable faults. ``awaits`` names what is not built yet: such
a drill is listed, and not run.
"""

import math
from collections.abc import Sequence

from trainer.drill import faults_checkpoint as disk
from trainer.drill import faults_data as data
from trainer.drill import faults_monitor as monitor
from trainer.drill import faults_optimizer as optimizer
from trainer.drill import faults_precision as precision
from trainer.drill import faults_process as process
from trainer.drill import faults_ranks as ranks
from trainer.drill import faults_state as state
from trainer.drill import faults_step as step
from trainer.drill.causes import CAUSES
from trainer.drill.exercise import Drill
from trainer.drill.faults import nan_gradient, nan_weight
from trainer.drill.judge import Expectation as Expect
from trainer.errors import ConfigError

_SCAN = 10
"""Steps between two scans on the drills' ground: before each snapshot."""
_ALL_AT_REST = {"guards.at_rest.elements": 1 << 20}
"""All of the state from one step to the next, as a run of this size can afford."""
_ONE_WORKER = {"diffusion.training.loading.num_workers": 1}


def find(name: str) -> list[Drill]:
    """The drills of an id (F09, which may have several) or a name.

    Raises:
        ConfigError: there is none.
    """
    wanted = name.lower()
    found = [one for one in CATALOGUE if wanted in (one.id.lower(), one.name)]
    if not found:
        raise ConfigError(f"there is no drill {name!r}; see python -m trainer drill --list")
    return found


CATALOGUE: Sequence[Drill] = (
    Drill(
        *("F01", "nan-pixel", "NaN in one pixel of one map"),
        lambda at: data.BadItems(at, data.nan_pixel),
        Expect("W", recovery="the sample is left out and named"),
    ),
    Drill(
        *("F02", "inf-condition", "infinity in one condition map"),
        lambda at: data.BadItems(at, data.infinite_condition),
        Expect("W", recovery="the sample is left out and named"),
    ),
    Drill(
        *("F03", "map-times-a-million", "one map scaled by a million"),
        lambda at: data.BadItems(at, data.a_million_times),
        Expect("W", recovery="the sample is left out and named"),
    ),
    Drill(
        *("F03", "map-of-eight-bits", "a dark map in 0..255 where -1..1 is meant"),
        lambda at: data.BadItems(at, data.eight_bits),
        Expect("W", recovery="the sample is left out and named"),
    ),
    Drill(
        *("F04", "constant-map", "one map is all black"),
        lambda at: data.BadItems(at, data.constant_image),
        Expect("W", recovery="told and counted"),
    ),
    Drill(
        *("F05", "stuck-loader", "the same batch again and again"),
        lambda at: data.LoaderRepeats(at, 1_000_000),
        Expect("L", late=1, recovery="the loader restarted at its position; nothing came twice"),
        _ONE_WORKER,
    ),
    Drill(
        *("F06", "shuffled-conditions", "20 batches of maps with the conditions of others"),
        lambda at: data.ShuffledConditions(at, 80),
        Expect("W", recovery="told with its data; none of them is trained on", words="another map's"),
    ),
    Drill(*("F07", "nan-loss", "the loss is NaN, once"), step.nan_loss, Expect("P", words="nan")),
    Drill(*("F08", "inf-loss", "the loss is infinite, once"), step.infinite_loss, Expect("P", words="inf")),
    Drill(*("F09", "nan-gradient", "NaN in one element of one gradient"), nan_gradient, Expect("P")),
    Drill(*("F10", "inf-gradient", "one tensor's gradient is infinite"), step.infinite_gradient, Expect("P")),
    Drill(
        *("F11", "nan-on-one-rank", "NaN gradient on one of two ranks"),
        lambda at: ranks.OnOneRank(at, "gradient"),
        Expect("P", recovery="all ranks skip the same step"),
    ),
    Drill(
        *("F11", "nan-on-one-shard", "the same where the weights are shared out (FSDP2)"),
        lambda at: ranks.OnOneRank(at, "gradient"),
        Expect("P", recovery="all ranks skip the same step"),
        ranks.SHARDED,
    ),
    Drill(
        *("F12", "gradient-times-1e4", "finite gradients 10,000 times too large, once"),
        lambda at: step.gradients_times(at, 1e4),
        Expect("P"),
    ),
    Drill(
        *("F13", "gradients-times-30", "gradients 30 times too large for 20 steps"),
        lambda at: step.gradients_times(at, 30.0, times=20),
        Expect("PL", recovery="refused or clipped; the rate comes down for a while"),
    ),
    Drill(
        *("F14", "zero-gradients", "every gradient is zero from now on"),
        lambda at: step.gradients_times(at, 0.0, times=1_000_000),
        Expect("L", late=3, recovery="stop after 3 and say so", ends="stopped", words="gradient"),
    ),
    Drill(
        *("F15", "missing-gradient", "one layer gets no gradient any more"),
        step.missing_gradient,
        Expect("L", late=3, recovery="name the layer and stop", ends="stopped", words="no gradient"),
    ),
    Drill(
        *("F16", "nan-weight", "one weight is NaN"),
        nan_weight,
        Expect("PSL", late=1, recovery="memory snapshot"),
    ),
    Drill(
        *("F17", "laundered-nan", "a NaN weight behind nan_to_num"),
        state.LaunderedNan,
        Expect("PSL", late=_SCAN, recovery="memory snapshot; the tensor is named", words=".weight"),
    ),
    Drill(
        *("F18", "exponent-flip", "the top bit of one weight's exponent flips"),
        lambda at: state.flipped_bit(at, 30),
        Expect("PSL", late=_SCAN, recovery="memory snapshot"),
    ),
    Drill(
        *("F19", "mantissa-flip", "one mantissa bit of one weight flips: harmless"),
        lambda at: state.flipped_bit(at, 12),
        Expect("L", recovery="told as silent data corruption; no rollback", words="silent data corruption"),
        _ALL_AT_REST,
    ),
    Drill(
        *("F20", "weights-times-1000", "all weights a thousand times too large"),
        lambda at: state.all_weights_times(at, 1000.0),
        Expect("PSL", late=1, recovery="memory snapshot"),
    ),
    Drill(
        *("F21", "sign-flip", "the sign of one whole tensor flips"),
        state.flipped_sign,
        Expect("PL", recovery="memory snapshot"),
        _ALL_AT_REST,
    ),
    Drill(
        *("F22", "nan-first-moment", "NaN in exp_avg"),
        lambda at: optimizer.first_moment_is(at, math.nan),
        Expect("PSL", late=2, recovery="memory snapshot"),
    ),
    Drill(
        *("F23", "huge-first-moment", "1e20 in exp_avg"),
        lambda at: optimizer.first_moment_is(at, 1e20),
        Expect("PSL", late=2, recovery="memory snapshot"),
        _ALL_AT_REST,
    ),
    Drill(
        *("F24", "second-moment-zero", "one tensor's exp_avg_sq is forgotten"),
        lambda at: optimizer.second_moment_times(at, 0.0),
        Expect("PSL", late=_SCAN, recovery="memory snapshot, which brings the moments back"),
    ),
    Drill(
        *("F24", "second-moment-negative", "one tensor's exp_avg_sq is below zero"),
        lambda at: optimizer.second_moment_times(at, -1.0),
        Expect("PSL", late=_SCAN, recovery="memory snapshot, which brings the moments back"),
    ),
    Drill(
        *("F25", "step-count-reset", "the optimizer's step counters are 0 again"),
        optimizer.step_count_reset,
        Expect("SL", late=_SCAN, recovery="memory snapshot"),
    ),
    Drill(
        *("F26", "rate-of-one", "the learning rate is set to 1.0, past the schedule"),
        lambda at: optimizer.learning_rate_is(at, 1.0),
        Expect("L", recovery="put back on the schedule before the update"),
    ),
    Drill(
        *("F26", "rate-is-nan", "the learning rate is set to NaN"),
        lambda at: optimizer.learning_rate_is(at, math.nan),
        Expect("L", recovery="put back on the schedule before the update"),
    ),
    Drill(
        *("F27", "schedule-twice", "the schedule is stepped twice"),
        optimizer.schedule_steps_twice,
        Expect("L", late=1, recovery="memory snapshot"),
    ),
    Drill(
        *("F28", "loss-scale-floor", "a layer overflows in fp16 until the loss scale is at its floor"),
        precision.OverflowingModule,
        Expect(
            "PL", late=1, recovery="the floor holds, the rate comes down for a while", words="loss scale fell"
        ),
        precision.FLOAT16,
    ),
    Drill(
        *("F29", "nan-average", "NaN in the moving average"),
        state.average_is_nan,
        Expect("SCL", late=_SCAN, recovery="memory snapshot; never published"),
    ),
    Drill(
        *("F30", "idle-average", "the average misses three updates"),
        state.idle_average,
        Expect("SL", late=_SCAN, recovery="memory snapshot"),
    ),
    Drill(
        *("F30", "eager-average", "the average takes in a refused step"),
        state.eager_average,
        Expect("PSL", late=_SCAN, recovery="memory snapshot", words="average"),
    ),
    Drill(
        *("F31", "nan-scale-factor", "the latents' scale factor is NaN"),
        lambda at: state.scale_factor_is(at, math.nan),
        Expect("PSL", late=1, recovery="memory snapshot"),
    ),
    Drill(
        *("F32", "wrong-scale-factor", "the latents' scale factor is 0.3"),
        lambda at: state.scale_factor_is(at, 0.3),
        Expect("PSL", late=_SCAN, recovery="memory snapshot"),
    ),
    Drill(
        *("F33", "frozen-weight-moves", "a weight of the frozen autoencoder changes"),
        state.frozen_weight_moves,
        Expect("SL", late=_SCAN, recovery="memory snapshot"),
    ),
    Drill(
        *("F34", "same-worker-seed", "each batch comes twice, as from two workers with one seed"),
        lambda at: data.LoaderRepeats(at, 2),
        Expect("L", late=2, recovery="the loader restarted at its position; nothing came twice"),
        _ONE_WORKER,
    ),
    Drill(
        *("F35", "bit-on-disk", "one bit of the newest checkpoint flips"),
        lambda at: disk.DamagedCheckpoint(at, disk.flip_bit),
        Expect("C", recovery="the next older checkpoint"),
    ),
    Drill(
        *("F36", "short-file", "the newest checkpoint is cut short"),
        lambda at: disk.DamagedCheckpoint(at, disk.cut_short),
        Expect("C", recovery="the next older checkpoint"),
    ),
    Drill(
        *("F36", "zeroed-page", "a page of the newest checkpoint is zero"),
        lambda at: disk.DamagedCheckpoint(at, disk.zero_page),
        Expect("C", recovery="the next older checkpoint"),
    ),
    Drill(
        *("F36", "no-manifest", "the newest checkpoint has lost its manifest"),
        lambda at: disk.DamagedCheckpoint(at, disk.lose_manifest),
        Expect("C", recovery="the next older checkpoint"),
    ),
    Drill(
        *("F37", "nan-to-disk", "a checkpoint gets a NaN on its way to the disk"),
        disk.nan_on_the_way,
        Expect("C", late=2 * _SCAN, recovery="not sealed; tried again"),
    ),
    Drill(
        *("F38", "killed-in-save", "SIGKILL at each system call of a save"),
        process.KilledInSave,
        Expect("C", recovery="the checkpoint before"),
    ),
    Drill(
        *("F39", "full-disk", "for 15 steps the disk takes no checkpoint"),
        lambda at: disk.FullDisk(at, 15),
        Expect("C", late=2 * _SCAN, recovery="training goes on; told; tried again"),
    ),
    Drill(
        *("F39", "slow-disk", "the disk takes as long for a checkpoint as training for 25 steps"),
        lambda at: disk.SlowDisk(at, 25),
        Expect("C", late=3 * _SCAN, recovery="training goes on; told; tried again"),
        {"recovery.slow_after_s": 0.5},
    ),
    Drill(
        *("F40", "renamed-moments", "the optimizer's part of the checkpoint names another layer"),
        disk.RenamedMoments,
        Expect("C", recovery="refuse and name the keys", ends="stopped", words="of.another"),
    ),
    Drill(
        *("F41", "hanging-step", "a forward pass hangs"),
        process.hanging_step,
        Expect("H", recovery="stacks are told; memory snapshot"),
        process.HANGS_SOON,
    ),
    Drill(
        *("F41", "stuck-worker", "the data worker waits for a disk that never answers"),
        process.StuckLoader,
        Expect("H", late=4, recovery="stacks are told; memory snapshot; new workers"),
        {**process.HANGS_SOON, **_ONE_WORKER},
    ),
    Drill(
        *("F41", "killed-worker", "the system kills the data worker"),
        process.killed_worker,
        Expect("L", late=4, recovery="the loader restarted at its position; no batch is missing"),
        _ONE_WORKER,
    ),
    Drill(
        *("F41", "hang-in-c", "a call that nothing can interrupt"),
        process.UnfreeableHang,
        Expect("H", recovery="stacks are told; the process ends, its successor resumes"),
        process.HANGS_SOON,
    ),
    Drill(
        *("F42", "dying-monitor", "the monitor is away for 15 steps"),
        monitor.dying,
        Expect("M", recovery="batches wait in the spool, and none is lost"),
    ),
    Drill(
        *("F42", "lying-monitor", "no replies, 10 MB of it, orders that can't be"),
        monitor.lying,
        Expect("M", recovery="ignored, or refused with the reason"),
    ),
    Drill(
        *("F42", "flooding-monitor", "a hundred orders in each reply"),
        monitor.flooding,
        Expect("M", recovery="those that may be are carried out once a step"),
    ),
    *CAUSES,
)
