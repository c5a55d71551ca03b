"""What an alert rule must say about which series: at least one case on each side of its threshold."""

from collections.abc import Mapping
from dataclasses import dataclass

RUN = 'project="p",run="r"'


@dataclass(frozen=True)
class Case:
    """Series with one value each 15 s, and whether the alert fires at a moment."""

    alert: str
    fires: bool
    at: str
    series: Mapping[str, str]


def state(name: str, values: str = "1x600") -> dict[str, str]:
    return {f'trainhealth_run_state{{{RUN},state="{name}"}}': values}


def run(metric: str, values: str, **labels: str) -> dict[str, str]:
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return {f"trainhealth_{metric}{{{RUN}{more}}}": values}


def histogram(metric: str, fast: int, slow: int, limit: str) -> dict[str, str]:
    """So many observations each 15 s: below ``limit`` seconds, and above it up to 5 s."""
    name = f"trainhealth_{metric}_bucket"
    return {
        f'{name}{{le="{limit}"}}': f"0+{fast}x600",
        f'{name}{{le="5"}}': f"0+{fast + slow}x600",
        f'{name}{{le="+Inf"}}': f"0+{fast + slow}x600",
    }


def _rollbacks(values: str) -> dict[str, str]:
    return run("rollbacks_total", values, trigger="guard", outcome="applied")


def _young_nan(tensor: str) -> dict[str, str]:
    """A value that was not finite, at 150 s."""
    return run("last_nonfinite_timestamp_seconds", "0x9 150x600", tensor=tensor)


def _checkpoint_due(every_s: int) -> dict[str, str]:
    """None has become good since 0 s, and steps go on."""
    last = run("checkpoint_last_valid_timestamp_seconds", "0x600")
    return last | run("checkpoint_interval_seconds", f"{every_s}x600") | state("healthy")


def _ordered_at(values: str) -> dict[str, str]:
    return run("command_pending_oldest_timestamp_seconds", values, kind="roll_back")


def _two_monitors(one: str, other: str) -> dict[str, str]:
    """Whether each could be scraped."""
    return {
        f'up{{job="trainhealth",instance="{name}"}}': values for name, values in (("a", one), ("b", other))
    }


def _disk(used_gib: float, free_gib: float) -> dict[str, str]:
    sizes = {"used": used_gib, "free": free_gib}
    name = "trainhealth_store_disk_bytes"
    return {f'{name}{{part="{part}"}}': f"{size * 2**30:.0f}x600" for part, size in sizes.items()}


NO_ROLLBACKS = _rollbacks("0x600")
REQUESTS = "trainhealth_ingest_requests_total"

CASES = [
    Case(
        "Nonfinite",
        True,
        "90s",
        run("nonfinite_total", "0x3 1x600", tensor="loss", kind="nan") | NO_ROLLBACKS,
    ),
    Case(
        "Nonfinite", False, "90s", run("nonfinite_total", "0x600", tensor="loss", kind="nan") | NO_ROLLBACKS
    ),
    Case(
        "Nonfinite",
        False,
        "90s",
        run("nonfinite_total", "0x3 1x600", tensor="grad", kind="nan") | NO_ROLLBACKS,
    ),
    Case(
        "Nonfinite",
        False,
        "4m",
        run("nonfinite_total", "0x3 1x600", tensor="loss", kind="nan") | NO_ROLLBACKS,
    ),
    Case(  # it has gone back since
        "Nonfinite",
        False,
        "90s",
        run("nonfinite_total", "0x3 1x600", tensor="loss", kind="nan")
        | run("rollbacks_total", "0x4 1x600", trigger="operator", outcome="applied"),
    ),
    Case("RunDiverged", True, "15s", state("diverged")),
    Case("RunDiverged", False, "15s", state("diverged", "0x600") | state("healthy")),
    Case("RunFailed", True, "15s", state("failed")),
    Case("RunFailed", False, "15s", state("failed", "0x600") | state("stopped")),
    Case("RunLost", True, "75s", state("lost")),
    Case("RunLost", False, "45s", state("lost")),
    Case("RunStalled", True, "75s", state("stalled")),
    Case("RunStalled", False, "45s", state("stalled")),
    Case(
        "RollbackLoop",
        True,
        "50m",
        run("rollbacks_total", "0x20 1x20 2x20 3x600", trigger="guard", outcome="applied"),
    ),
    Case(
        "RollbackLoop",
        False,
        "50m",
        run("rollbacks_total", "0x20 1x20 2x600", trigger="guard", outcome="applied"),
    ),
    Case(
        "GradOverflowStorm",
        True,
        "20m",
        run("skipped_steps_total", "0+6x600", reason="nonfinite_grad") | run("steps_total", "0+100x600"),
    ),
    Case(
        "GradOverflowStorm",
        False,
        "20m",
        run("skipped_steps_total", "0+4x600", reason="nonfinite_grad") | run("steps_total", "0+100x600"),
    ),
    Case("LossRisen", True, "40m", run("loss", "1x80 2.1x600", component="total") | state("healthy")),
    Case("LossRisen", False, "40m", run("loss", "1x80 1.9x600", component="total") | state("healthy")),
    Case("LossRisen", False, "40m", run("loss", "1x80 2.1x600", component="total") | state("finished")),
    Case("LossRisen", False, "40m", run("loss", "1x80" + " NaN" * 100, component="total") | state("healthy")),
    Case("ThroughputDrop", True, "70m", run("steps_total", "0+10x180 1800+3x200") | state("healthy")),
    Case("ThroughputDrop", False, "70m", run("steps_total", "0+10x180 1800+6x200") | state("healthy")),
    Case("CheckpointInvalid", True, "5m", run("checkpoints_total", "0x10 1x600", result="invalid")),
    Case("CheckpointInvalid", False, "5m", run("checkpoints_total", "0x10 1x600", result="valid")),
    Case(
        "NoGoodCheckpoint",
        True,
        "70m",
        run("checkpoint_last_valid_step", "-1x600")
        | run("run_start_timestamp_seconds", "0x600")
        | state("healthy"),
    ),
    Case(
        "NoGoodCheckpoint",
        False,
        "55m",
        run("checkpoint_last_valid_step", "-1x600")
        | run("run_start_timestamp_seconds", "0x600")
        | state("healthy"),
    ),
    Case(
        "NoGoodCheckpoint",
        False,
        "70m",
        run("checkpoint_last_valid_step", "0x600")
        | run("run_start_timestamp_seconds", "0x600")
        | state("healthy"),
    ),
    Case("GradNormSpike", True, "5m", run("findings_total", "0x10 1x600", guard="spike", severity="error")),
    Case("GradNormSpike", False, "5m", run("findings_total", "0x10 1x600", guard="drift", severity="error")),
    Case("MonitorDown", True, "75s", {'up{job="trainhealth"}': "0x600"}),
    Case("MonitorDown", False, "45s", {'up{job="trainhealth"}': "0x600"}),
    Case("MonitorDown", True, "75s", {'up{job="other"}': "1x600"}),
    Case("MonitorDown", False, "75s", {'up{job="trainhealth"}': "1x600"}),
    Case("MonitorReplicaDown", True, "3m", _two_monitors("1x600", "0x600")),
    Case("MonitorReplicaDown", False, "1m45s", _two_monitors("1x600", "0x600")),
    Case("MonitorReplicaDown", False, "3m", _two_monitors("1x600", "1x600")),
    Case("MonitorReplicaDown", False, "3m", _two_monitors("0x600", "0x600")),
    Case("MonitorDown", True, "3m", _two_monitors("0x600", "0x600")),
    Case("MonitorDown", False, "3m", _two_monitors("1x600", "0x600")),
    Case("StoreAlmostFull", True, "6m", _disk(used_gib=91, free_gib=9)),
    Case("StoreAlmostFull", False, "4m", _disk(used_gib=91, free_gib=9)),
    Case("StoreAlmostFull", False, "6m", _disk(used_gib=89, free_gib=9.9)),
    Case("StoreAlmostFull", False, "6m", _disk(used_gib=1000, free_gib=11)),
    Case(
        "IngestErrors",
        True,
        "15m",
        {
            f'{REQUESTS}{{code="503",encoding="json"}}': "0+2x600",
            f'{REQUESTS}{{code="200",encoding="json"}}': "0+98x600",
        },
    ),
    Case(
        "IngestErrors",
        False,
        "15m",
        {
            f'{REQUESTS}{{code="503",encoding="json"}}': "0+1x600",
            f'{REQUESTS}{{code="200",encoding="json"}}': "0+199x600",
        },
    ),
    Case("IngestSlow", True, "20m", histogram("ingest_request_duration_seconds", 980, 20, "0.25")),
    Case("IngestSlow", False, "20m", histogram("ingest_request_duration_seconds", 995, 5, "0.25")),
    Case("StoreSlow", True, "20m", histogram("store_commit_duration_seconds", 980, 20, "0.5")),
    Case("StoreSlow", False, "20m", histogram("store_commit_duration_seconds", 995, 5, "0.5")),
    Case("RunsOmitted", True, "6m", {"trainhealth_metrics_runs_omitted": "1x600"}),
    Case("RunsOmitted", False, "6m", {"trainhealth_metrics_runs_omitted": "0x600"}),
    Case("NonfiniteRecent", True, "3m", _young_nan("loss") | NO_ROLLBACKS),
    Case("NonfiniteRecent", False, "5m", _young_nan("loss") | NO_ROLLBACKS),
    Case("NonfiniteRecent", False, "3m", _young_nan("grad") | NO_ROLLBACKS),
    Case("NonfiniteRecent", False, "3m", _young_nan("loss") | _rollbacks("0x11 1x600")),
    Case("NonfiniteRecent", False, "3m", _young_nan("loss") | _rollbacks("_x11 1x600")),
    Case("NonfiniteRecent", True, "3m", _young_nan("loss") | _rollbacks("1x600")),
    Case("CheckpointOverdue", True, "20m", _checkpoint_due(299)),
    Case("CheckpointOverdue", False, "20m", _checkpoint_due(300)),
    Case("CheckpointOverdue", True, "8m30s", _checkpoint_due(1)),
    Case("CheckpointOverdue", False, "7m30s", _checkpoint_due(1)),
    Case("CommandUnacknowledged", True, "3m45s", _ordered_at("60x600")),
    Case("CommandUnacknowledged", False, "2m45s", _ordered_at("60x600")),
    Case("CommandUnacknowledged", False, "5m", _ordered_at("0x600")),
    Case("SpoolGrowing", True, "20m", run("client_spool_bytes", "65e6+1000x600")),
    Case("SpoolGrowing", False, "9m", run("client_spool_bytes", "65e6+1000x600")),
    Case("SpoolGrowing", False, "20m", run("client_spool_bytes", "65e6-1000x600")),
    Case("SpoolGrowing", False, "20m", run("client_spool_bytes", "62e6+1000x600")),
    Case("PointsDropped", True, "5m", run("client_dropped_total", "0x10 1x600", what="steps")),
    Case("PointsDropped", False, "5m", run("client_dropped_total", "1x600", what="steps")),
    Case("PointsDropped", False, "15m", run("client_dropped_total", "0x10 1x600", what="steps")),
    Case("SeqGaps", True, "8m", run("client_missing_batches", "0x10 2x600")),
    Case("SeqGaps", True, "3m", run("client_missing_batches", "2x600")),
    Case("SeqGaps", False, "4m", run("client_missing_batches", "0x10 2x600")),
    Case("SeqGaps", False, "8m", run("client_missing_batches", "0x10 2x5 0x600")),
    Case("SeqGaps", False, "20m", run("client_missing_batches", "0x10 2x600")),
    Case("StoreErrors", True, "4m", {'trainhealth_store_errors_total{operation="commit"}': "0x10 1x600"}),
    Case("StoreErrors", False, "10m", {'trainhealth_store_errors_total{operation="commit"}': "0x10 1x600"}),
    Case("CompactionLag", True, "12m", {"trainhealth_compaction_lag_seconds": "21601x600"}),
    Case("CompactionLag", False, "12m", {"trainhealth_compaction_lag_seconds": "21600x600"}),
    Case("NoLeader", True, "75s", {"trainhealth_metrics_leader": "0x600"}),
    Case("NoLeader", False, "45s", {"trainhealth_metrics_leader": "0x600"}),
    Case("NoLeader", False, "75s", {"trainhealth_metrics_leader": "1x600"}),
    Case("AlertPushFailing", True, "7m", {'trainhealth_alert_push_total{result="failed"}': "0+1x600"}),
    Case("AlertPushFailing", False, "7m", {'trainhealth_alert_push_total{result="failed"}': "0x3 1x600"}),
    Case("AlertPushFailing", False, "7m", {'trainhealth_alert_push_total{result="sent"}': "0+1x600"}),
    Case("Watchdog", True, "15s", {}),
]
