"""The alert rules: each fires above its threshold, is silent below it, and is explained in the runbook."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor_service.alarms import NEEDS_PERSON, RULE_ALERTS, STATUS_ALERTS
from monitor_service.rules import WATCHES
from tests.deploy.cases import CASES

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
GROUPS = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
SEVERITIES = {"critical", "warning", "info", "none"}
PARTS = ("**Meaning.**", "**Impact.**", "**Look at.**", "**Do.**", "**False alarm.**")

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
    assert sorted(explained) == sorted(ALERTS.keys() | PUSHED | {NEEDS_PERSON})


PUSHED = {*RULE_ALERTS.values(), *STATUS_ALERTS.values()}


@pytest.mark.parametrize("name", sorted(PUSHED))
def test_an_alert_that_the_monitor_sends_itself_has_a_rule_of_the_same_name(name: str) -> None:
    assert name in ALERTS


def test_both_ways_an_alert_has_one_severity_so_that_alertmanager_makes_one_of_them() -> None:
    sent = {RULE_ALERTS[watch.rule]: watch.severity for watch in WATCHES if watch.rule in RULE_ALERTS}
    assert {name: ALERTS[name]["labels"]["severity"] for name in sent} == sent
