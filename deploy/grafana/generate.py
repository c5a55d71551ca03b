"""Writes Grafana's dashboards: ``python deploy/grafana/generate.py``. They load in Grafana 7.5 and later.

So they keep to what Grafana 7.5 knows: a data source by its name, old types of panels, schemaVersion 30.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("dashboards")
SOURCE = "${datasource}"
PROJECT = 'project=~"$project"'
RUN = f'{PROJECT},run=~"$run"'
TOTAL, RAW = 'component="total"', 'stage="raw"'
MONITOR_URL = "http://127.0.0.1:8321"
WIDTH, HEIGHT = 8, 7
"""A third of Grafana's 24 columns, and rows of 30 pixels."""

Panel = dict[str, Any]


def targets(*exprs: str, legends: Sequence[str] = (), instant: bool = False) -> list[dict[str, Any]]:
    """Queries A, B, C …, each with its legend."""
    form = {"instant": True, "format": "table"} if instant else {}
    names = [*legends, *[""] * (len(exprs) - len(legends))]
    return [
        {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": name, **form}
        for index, (expr, name) in enumerate(zip(exprs, names, strict=True))
    ]


def lines(title: str, *exprs: str, by: Sequence[str] = (), unit: str = "short", log: bool = False) -> Panel:
    """Curves along time, called as ``by`` says."""
    scale = {"type": "log", "log": 10} if log else {"type": "linear"}
    custom = {"lineWidth": 1, "fillOpacity": 0, "showPoints": "never", "scaleDistribution": scale}
    return {
        "type": "timeseries",
        "title": title,
        "targets": targets(*exprs, legends=by),
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "calcs": [], "showLegend": True}
        },
    }


def number(title: str, expr: str, unit: str = "short", bad_from: float | None = None) -> Panel:
    """One number, red from a limit on."""
    red = [] if bad_from is None else [{"color": "red", "value": bad_from}]
    thresholds = {"mode": "absolute", "steps": [{"color": "green", "value": None}, *red]}
    return {
        "type": "stat",
        "title": title,
        "targets": targets(expr),
        "fieldConfig": {"defaults": {"unit": unit, "thresholds": thresholds}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}},
    }


def table(title: str, expr: str) -> Panel:
    """One row a series; the run's name leads to its page in the monitor."""
    link = {"title": "The run's page", "url": "${monitor}/runs/${__value.raw}", "targetBlank": True}
    linked = {"matcher": {"id": "byName", "options": "run"}, "properties": [{"id": "links", "value": [link]}]}
    return {
        "type": "table",
        "title": title,
        "targets": targets(expr, instant=True),
        "fieldConfig": {"defaults": {}, "overrides": [linked]},
        "options": {"showHeader": True},
    }


def recent(title: str, metric: str, label: str, of: str, window: str = "10m") -> Panel:
    """How much a counter rose within a window, by a label."""
    expr = f"sum by ({label}) (increase(trainhealth_{metric}{{{of}}}[{window}]))"
    return lines(f"{title}, {window}", expr, by=[f"{{{{{label}}}}}"])


def vital(title: str, metric: str, of: str = "", unit: str = "short", log: bool = False) -> Panel:
    """One gauge of the chosen run; ``of`` chooses among its series."""
    chosen = f"{RUN},{of}" if of else RUN
    return lines(title, f"trainhealth_{metric}{{{chosen}}}", by=["{{run}}"], unit=unit, log=log)


def quantiles(title: str, metric: str) -> Panel:
    """Median and 99th percentile of a duration."""
    rate = f"sum by (le) (rate(trainhealth_{metric}_bucket[$__rate_interval]))"
    exprs = [f"histogram_quantile({quantile}, {rate})" for quantile in (0.5, 0.99)]
    return lines(title, *exprs, by=["p50", "p99"], unit="s")


def rates(title: str, metric: str, label: str, of: str = "") -> Panel:
    """A counter's rise a second, by a label."""
    expr = f"sum by ({label}) (rate(trainhealth_{metric}{{{of}}}[$__rate_interval]))"
    return lines(title, expr, by=[f"{{{{{label}}}}}"], unit="ops")


def sick_runs() -> str:
    states = "diverged|stalled|lost|failed"
    return f'sum(trainhealth_run_state{{{PROJECT},state=~"{states}"}}) or vector(0)'


def fleet() -> dict[str, Any]:
    """Every run: who needs a person, and what faults have cost."""
    is_open = f'{PROJECT},state!~"finished|stopped|failed"'
    alerts = 'count(ALERTS{alertstate="firing",severity!="none"}) or vector(0)'
    lost = f"sum by (run) (trainhealth_rollback_lost_seconds_total{{{PROJECT}}})"
    panels = [
        number("Open runs", f"sum(trainhealth_run_state{{{is_open}}}) or vector(0)"),
        number("Runs that need a look", sick_runs(), bad_from=1),
        number("Alerts firing", alerts, bad_from=1),
        lines("Runs by status", f"sum by (state) (trainhealth_run_state{{{PROJECT}}})", by=["{{state}}"]),
        rates("Steps a second", "steps_total", "run", PROJECT),
        recent("Values that are not finite", "nonfinite_total", "tensor", PROJECT),
        table("Runs and their status", f"trainhealth_run_state{{{PROJECT}}} == 1"),
        recent("Rollbacks", "rollbacks_total", "run", PROJECT, "1h"),
        lines("Time lost to rollbacks", lost, by=["{{run}}"], unit="s"),
    ]
    return dashboard("fleet", "Fleet", panels, has_run=False)


def run() -> dict[str, Any]:
    """One run's vitals."""
    silent = f"time() - trainhealth_last_seen_timestamp_seconds{{{RUN}}}"
    panels = [
        lines("Status", f"trainhealth_run_state{{{RUN}}} == 1", by=["{{state}}"]),
        vital("Step", "step"),
        vital("Attempt", "run_attempt"),
        vital("Loss", "loss", TOTAL, log=True),
        vital("Gradient norm", "grad_norm", RAW, log=True),
        vital("Time of a step", "step_duration_ema_seconds", unit="s"),
        rates("Steps a second", "steps_total", "run", RUN),
        lines("Since something was heard", silent, by=["{{run}}"], unit="s"),
        vital("Last good checkpoint", "checkpoint_last_valid_step"),
    ]
    return dashboard("run", "Run", panels)


def incident() -> dict[str, Any]:
    """What went wrong, what was done, what it cost."""
    panels = [
        table("Alerts firing", f'ALERTS{{{RUN},alertstate="firing"}}'),
        recent("Findings by guard", "findings_total", "guard", RUN),
        recent("Refused steps", "skipped_steps_total", "reason", RUN),
        recent("Values that are not finite", "nonfinite_total", "tensor", RUN),
        recent("Rollbacks", "rollbacks_total", "trigger", RUN),
        recent("Checkpoints by result", "checkpoints_total", "result", RUN),
        number("Steps lost", f"sum(trainhealth_rollback_lost_steps_total{{{RUN}}})"),
        number("Time lost", f"sum(trainhealth_rollback_lost_seconds_total{{{RUN}}})", unit="s"),
        vital("Loss around it", "loss", TOTAL, log=True),
    ]
    return dashboard("incident", "Incident", panels)


def monitor() -> dict[str, Any]:
    """The monitor itself."""
    commits = "rate(trainhealth_store_commit_requests_{}[$__rate_interval])"
    scrape = 'scrape_duration_seconds{job="trainhealth"}'
    panels = [
        number("Up", 'max(up{job="trainhealth"})'),
        number("Runs without series", "max(trainhealth_metrics_runs_omitted)", bad_from=1),
        rates("Batches a second, by code", "ingest_requests_total", "code"),
        rates("Values a second", "ingest_points_total", "result"),
        quantiles("Time to commit a batch", "ingest_request_duration_seconds"),
        quantiles("Time of a group commit", "store_commit_duration_seconds"),
        lines(
            "Batches in a group commit", f"{commits.format('sum')} / {commits.format('count')}", by=["mean"]
        ),
        lines("Time of a scrape", scrape, by=["scrape"], unit="s"),
        lines("Database", "sum by (part) (trainhealth_store_bytes)", by=["{{part}}"], unit="bytes"),
        lines(
            "The database's disk",
            "min by (part) (trainhealth_store_disk_bytes)",
            by=["{{part}}"],
            unit="bytes",
        ),
        lines("Series of a scrape", 'scrape_samples_scraped{job="trainhealth"}', by=["series"]),
    ]
    return dashboard("monitor", "Monitor", panels, has_run=False, has_project=False)


def dashboard(
    name: str, title: str, panels: Sequence[Panel], *, has_run: bool = True, has_project: bool = True
) -> dict[str, Any]:
    """The frame around panels: their places, variables, links, marks."""
    return {
        "uid": f"trainhealth-{name}",
        "title": f"TrainHealth: {title}",
        "tags": ["trainhealth"],
        "schemaVersion": 30,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": list(links(has_run)),
        "annotations": {"list": list(annotations()) if has_run else []},
        "templating": {"list": list(variables(has_project, has_run))},
        "panels": [placed(index, panel) for index, panel in enumerate(panels)],
    }


def placed(index: int, panel: Panel) -> Panel:
    """The panel at its place, three in a row."""
    row, column = divmod(index, 3)
    place = {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": row * HEIGHT}
    return {"id": index + 1, "datasource": SOURCE, "gridPos": place, **panel}


def links(has_run: bool) -> Iterator[dict[str, Any]]:
    """To the other dashboards, and to the monitor's own pages."""
    plain = {"icon": "external link", "tags": [], "targetBlank": True, "tooltip": "", "url": ""}
    plain |= {"asDropdown": False, "includeVars": False, "keepTime": False}
    yield {**plain, "type": "dashboards", "title": "TrainHealth", "tags": ["trainhealth"], "asDropdown": True}
    title, path = ("The run in the monitor", "/runs/${run}") if has_run else ("The monitor", "/")
    yield {**plain, "type": "link", "title": title, "url": f"${{monitor}}{path}"}


def annotations() -> Iterator[dict[str, Any]]:
    """Marks on all curves where a guard found something, and where the run went back."""
    for name, colour, metric, text in (
        ("Findings", "orange", "findings_total", "{{guard}}: {{severity}}"),
        ("Rollbacks", "red", "rollbacks_total", "rolled back by {{trigger}}"),
    ):
        expr = f"increase(trainhealth_{metric}{{{RUN}}}[$__interval]) > 0"
        words = {"name": name, "titleFormat": name, "textFormat": text, "iconColor": colour}
        yield {**words, "datasource": SOURCE, "enable": True, "expr": expr, "step": "5s"}


def variables(has_project: bool, has_run: bool) -> Iterator[dict[str, Any]]:
    """What can be chosen above the panels."""
    chosen = {"text": "Prometheus", "value": "Prometheus"}
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "current": chosen}
    yield {"name": "monitor", "type": "constant", "hide": 2, "query": MONITOR_URL}
    if has_project:
        every = {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}
        yield asked("project", "label_values(trainhealth_run_info, project)", includeAll=True, **every)
    if has_run:
        yield asked("run", f"label_values(trainhealth_run_info{{{PROJECT}}}, run)", includeAll=False)


def asked(name: str, query: str, **more: Any) -> dict[str, Any]:
    """A variable whose values are read from Prometheus whenever the time changes."""
    kind = {"name": name, "label": name.title(), "type": "query", "datasource": SOURCE, "multi": False}
    return {**kind, "query": query, "definition": query, "refresh": 2, "sort": 1, **more}


def generated() -> dict[str, str]:
    """The text of each file, by its name."""
    made = {"fleet": fleet(), "run": run(), "incident": incident(), "monitor": monitor()}
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in made.items()}


def main() -> int:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in generated().items():
        (FOLDER / name).write_text(text)
        sys.stdout.write(f"{FOLDER / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
