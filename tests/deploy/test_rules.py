"""The alert rules: each fires above its threshold, is silent below it, and is explained in the runbook."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
GROUPS = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
SEVERITIES = {"critical", "warning", "info", "none"}
PARTS = ("**Meaning.**", "**Impact.**", "**Look at.**", "**Do.**", "**False alarm.**")

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


NO_ROLLBACKS = run("rollbacks_total", "0x600", trigger="guard", outcome="applied")
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
    Case("Watchdog", True, "15s", {}),
]
NEVER_SILENT = {"Watchdog"}


def test_each_rule_fires_above_its_threshold_and_not_below(tool: Any, tmp_path: Path) -> None:
    tests = [
        {
            "name": f"case {number} of {case.alert} fires: {case.fires}",
            "interval": "15s",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="TrainHealth{case.alert}",alertstate="firing"}})',
                    "eval_time": case.at,
                    "exp_samples": [{"labels": "{}", "value": 1}] if case.fires else [],
                }
            ],
        }
        for number, case in enumerate(CASES)
    ]
    file = tmp_path / "rules_test.yml"
    told = {"rule_files": [str(path) for path in RULES], "evaluation_interval": "15s", "tests": tests}
    file.write_text(yaml.safe_dump(told))
    done = tool("promtool", "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_has_a_case_on_both_sides() -> None:
    fire, silent = ({f"TrainHealth{c.alert}" for c in CASES if c.fires is fires} for fires in (True, False))
    assert fire == set(ALERTS)
    assert silent | {f"TrainHealth{name}" for name in NEVER_SILENT} == set(ALERTS)


def test_the_linter_of_prometheus_finds_nothing(tool: Any) -> None:
    done = tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_the_runbook_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["summary"].endswith(".")
    assert "{{" not in rule["annotations"]["summary"], "a summary is the same for all runs"
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", (ROOT / page).read_text(), re.M | re.S)
    assert section is not None, f"{page} has no section {name}"
    missing = [part for part in PARTS if part not in section[1]]
    assert not missing, f"the section {name} of {page} lacks {missing}"


def test_only_alerts_about_a_run_that_is_not_finite_or_diverged_roll_back() -> None:
    acting = {name for name, rule in ALERTS.items() if "action" in rule["labels"]}
    assert acting == {"TrainHealthNonfinite", "TrainHealthRunDiverged"}
    assert {ALERTS[name]["labels"]["action"] for name in acting} == {"roll_back"}


def test_the_runbook_explains_no_alert_that_is_gone() -> None:
    explained = re.findall(r"^### (TrainHealth\w+)$", (ROOT / "docs/runbook.md").read_text(), re.M)
    assert sorted(explained) == sorted(ALERTS)
