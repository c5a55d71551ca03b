"""An example of every answer and body for the OpenAPI description; a test sends the bodies for real."""

from typing import Any

AT = "2026-03-01T12:00:00Z"
COST = {"skipped_steps": 1, "rollbacks": 1, "steps_lost": 10, "seconds_lost": 1.3}
_HEALTH = {
    "run": "demo",
    "status": "suspect",
    "since": AT,
    "reasons": ["nonfinite at step 41: the loss is NaN"],
    "step": 41,
    "total_steps": 600,
    "last_seen": AT,
    "last_step_at": AT,
    "last_good_checkpoint": {"checkpoint": "step-00000040", "step": 40},
}
HEALTH = {
    **_HEALTH,
    "open_commands": [],
    "cost": COST,
    "risk": {"level": "raised", "reasons": ["the last 1 losses are not finite"]},
    "concerns": [
        {
            **{"rule": "no_valid_checkpoint", "severity": "warning", "since": AT},
            "words": "no checkpoint has passed its checks since step 20; one is due every 5 steps",
        }
    ],
    "suggestion": None,
    "needs_person": None,
}
SUMMARY = {
    **_HEALTH,
    **{"project": "maps", "attempt": 1, "started_at": AT, "loss": "NaN", "grad_norm": 1.9, "findings": 1},
    "cost": COST,
    "risk": "raised",
}
DETAIL = {
    **SUMMARY,
    "config": {"lr": 0.0001},
    "checkpoint_interval_steps": 20,
    "series": ["grad_norm", "loss"],
    "attempts": [{"attempt": 1, "start_step": 0, "reason": "start", "checkpoint": None, "started_at": AT}],
    "transitions": [
        {
            "from_status": "healthy",
            "to_status": "suspect",
            "at": AT,
            "step": 41,
            "reasons": _HEALTH["reasons"],
        }
    ],
}
FINDING = {
    "type": "finding",
    "step": 41,
    "time": AT,
    "guard": "nonfinite",
    "severity": "error",
    "message": "the loss is NaN",
    "reading": {"loss": "NaN"},
}
INCIDENT = {
    "type": "incident",
    "step": 41,
    "time": AT,
    "incident": "nonfinite-41",
    "onset_step": 41,
    "guard": "nonfinite",
    "kind": "data",
    "message": "the loss is NaN",
    "sample_ids": ["dpm_14"],
    "outcome": "healed",
}
COMMAND = {
    "id": "5f0c2a",
    "kind": "roll_back",
    "reason": "the maps look washed out",
    "issued_by": "ana",
    "issued_at": AT,
    "expires_at": "2026-03-01T12:05:00Z",
    "attempt": 1,
    "to_step": 40,
    "run": "demo",
    "state": "pending",
    "history": [{"state": "pending", "time": AT, "message": "ordered by ana"}],
}
RULES = {
    "values": {"policy": "act", "loss_risen_factor": 3.0},
    "reason": "its loss swings by nature",
    "changed_by": "ana",
}
ALERT_LABELS = {
    "alertname": "TrainHealthNonfinite",
    **{"run": "demo", "project": "maps", "severity": "critical", "action": "roll_back"},
}
ALERT = {
    **{"fingerprint": "c4ff2d1b7a9e5c33", "starts_at": AT, "status": "firing"},
    **{"alertname": "TrainHealthNonfinite", "run": "demo", "result": "ordered"},
    "detail": "a rollback of run 'demo' is ordered",
    "command": "5f0c2a",
}
_EVENT_VIEW = {"id": 7, "attempt": 1, "step": 41, "time": AT, "received_at": AT, "type": "finding"}
_CELLS = {"min": [0.3], "max": [2.3], "last": [0.3], "count": [60], "nonfinite": [1]}
RAW = {"attempt": [1, 1], "step": [40, 41], "time": [1772366400.0, 1772366400.2], "value": [2.31, "NaN"]}

BODIES: dict[str, dict[str, Any]] = {
    "RunSpec": {"project": "maps", "config": {"lr": 0.0001}, "total_steps": 600, "started_at": AT},
    "Batch": {
        "session": "5f0c",
        "seq": 1,
        "attempt": 1,
        "columns": {
            "step": [40, 41],
            "time": [1772366400.0, 1772366400.2],
            "series": {"loss": [2.31, "NaN"], "grad_norm": [1.9, None]},
        },
        "events": [FINDING],
        "hold_s": 1.0,
    },
    "Acceptance": {"suggestion": "20260301-120000-000000", "issued_by": "ana"},
    "RulesRequest": RULES,
    "Webhook": {
        "version": "4",
        "status": "firing",
        "truncatedAlerts": 0,
        "alerts": [
            {
                "status": "firing",
                "labels": ALERT_LABELS,
                "annotations": {"summary": "The loss is not finite."},
                "startsAt": AT,
                "endsAt": "0001-01-01T00:00:00Z",
                "fingerprint": "c4ff2d1b7a9e5c33",
            }
        ],
    },
    "CommandRequest": {"kind": "roll_back", "reason": COMMAND["reason"], "issued_by": "ana", "to_step": 40},
}

ANSWERS: dict[str, dict[str, Any]] = {
    "RunPage": {"items": [SUMMARY], "next_cursor": None},
    "RunDetail": DETAIL,
    "HealthView": HEALTH,
    "EventPage": {"items": [{**_EVENT_VIEW, "data": FINDING}]},
    "IncidentPage": {
        "items": [{"incident": INCIDENT, "attempt": 1, "first_told": AT, "last_told": AT, "tellings": 2}],
        "cost": {"incidents": 1, "open": 0, "steps_lost": 0, "seconds_lost": 0.0},
    },
    "SessionPage": {
        "items": [
            {
                "session": "5f0c",
                "last_seq": 9,
                "received": 7,
                "missing": 2,
                "gaps": [{"first_seq": 3, "last_seq": 4}],
                "outbox": {"pending_batches": 2},
                "received_at": AT,
            }
        ]
    },
    "CheckpointPage": {
        "items": [
            {
                **{"checkpoint": "step-00000040", "attempt": 1, "step": 40, "state": "good"},
                **{"size_bytes": 9437184, "probe_loss": 0.31, "seconds": 0.4, "failed_check": None},
                "time": AT,
            }
        ]
    },
    "PicturePage": {
        "items": [
            {
                **{"picture": "drawn-00000040-1-0", "kind": "drawn", "attempt": 1, "step": 40, "time": AT},
                **{"title": "12_3", "tiles": ["truth", "drawn"], "reading": {"nmse": 0.08}, "incident": None},
            }
        ]
    },
    "CommandPage": {"items": [COMMAND]},
    "CommandView": COMMAND,
    "RulesView": {
        **{"project": "maps", "run": "demo", "values": {"policy": "act", "loss_risen_factor": 3.0}},
        **{"of_project": {"policy": "act"}, "of_run": {"loss_risen_factor": 3.0}},
        "history": [{**RULES, "changed_at": AT}],
    },
    "AlertsReceived": {"alerts": [ALERT], "truncated": 0},
    "AlertPage": {
        "items": [
            {
                **ALERT,
                **{"id": 7, "labels": ALERT_LABELS, "annotations": {}, "ends_at": None},
                **{"first_received_at": AT, "last_received_at": AT, "times": 1},
            }
        ],
        "next_before": None,
    },
    "Reply": {"seq": 1, "duplicate": False, "commands": [], "server_time": AT},
    "Comparison": {
        "runs": [SUMMARY, {**SUMMARY, "run": "other"}],
        "differences": {"lr": {"demo": 0.0001, "other": 0.0002}},
        "grid": {"step_from": [0], "step_to": [59]},
        "series": {"loss": {"demo": {"cell": [0], **_CELLS}, "other": {"cell": [0], **_CELLS}}},
    },
    "RawSeries": {"run": "demo", "attempt": "effective", "series": {"loss": RAW}},
}

PROBLEM = {
    "type": "urn:trainhealth:problem:not-found",
    "title": "Not found",
    "status": 404,
    "detail": "no run 'demo'; `python -m monitor_service runs` lists those that are here, and PUT "
    "/api/v1/runs/demo registers it",
}
