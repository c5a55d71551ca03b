"""Writes the dashboards as TypeScript, for the compiler to hold them against Grafana's own types.

In an empty folder, with npm::

    npm install @grafana/schema@13.2.3 typescript@5
    python PATH_TO/deploy/grafana/check_types.py > check.ts
    npx tsc --noEmit --strict --skipLibCheck --module esnext --moduleResolution node check.ts

Grafana's enumerations are taken as the texts that stand in JSON. A data source by its name, as Grafana 7.5
wants it, is written as the reference that newer ones make of it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).with_name("dashboards")
PANELS = {"timeseries": "TimeSeriesPanelCfg", "stat": "StatPanelCfg", "table": "TablePanelCfg"}
PLACE = "@grafana/schema/dist/esm/raw/composable"
UNTYPED = {"definition", "titleFormat", "textFormat", "expr", "step"}
"""What Prometheus' data source reads of variables, annotations, queries, and no type of Grafana's names."""

PLAIN = """type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;"""


def module() -> Iterator[str]:
    """Its lines: the types, and each dashboard, options and settings of a panel as a constant of its type."""
    yield 'import type { Dashboard } from "@grafana/schema";'
    for kind, name in PANELS.items():
        yield f'import type * as {kind} from "{PLACE}/{kind}/panelcfg/x/{name}_types.gen";'
    yield PLAIN
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = referred(json.loads(path.read_text()))
        yield constant(path.stem, "Dashboard", dashboard)
        for panel in dashboard["panels"]:
            name = f"{path.stem}_{panel['id']}"
            yield constant(f"{name}_options", f"{panel['type']}.Options", panel["options"])
            custom = panel["fieldConfig"]["defaults"].get("custom")
            if custom is not None:
                yield constant(f"{name}_custom", f"{panel['type']}.FieldConfig", custom)


def constant(name: str, kind: str, value: Any) -> str:
    return f"export const {name}: Partial<Plain<{kind}>> = {json.dumps(value, indent=1)};"


def referred(part: Any) -> Any:
    """With each data source that is a text as a reference, and without what has no type."""
    if isinstance(part, list):
        return [referred(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        key: {"uid": value} if key == "datasource" and isinstance(value, str) else referred(value)
        for key, value in part.items()
        if key not in UNTYPED
    }


if __name__ == "__main__":
    sys.stdout.write("\n".join(module()) + "\n")
