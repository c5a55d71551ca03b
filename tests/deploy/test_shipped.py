"""What is shipped for containers and Kubernetes: nothing is open, all is pinned, limited and checked."""

import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
JOBS = {"passwords", "tokens"}
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
IN_GRAFANA_7_5 = {"timeseries", "stat", "gauge", "bargauge", "table", "heatmap", "text", "row"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_closed_limited_and_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit", "restart"} <= service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    _, _, tag = service["image"].rpartition(":")
    assert re.match(r"v?\d", tag), f"{service['image']} is not pinned"
    if name not in JOBS:
        assert "stop_grace_period" in service


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - JOBS))
def test_a_service_answers_a_health_check(name: str) -> None:
    service = SERVICES[name]
    if "healthcheck" in service:
        return
    file = {"monitor": "monitor", "trainer": "trainer"}[name]
    assert "\nHEALTHCHECK " in (ROOT / f"deploy/{file}.Dockerfile").read_text()


def test_only_its_reader_and_the_jobs_mount_a_secret() -> None:
    readers: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            if "-secret:" in volume and name not in JOBS:
                assert volume.endswith(":ro")
                readers.setdefault(volume.partition(":")[0], set()).add(name)
    assert readers == {
        "database-secret": {"postgres", "monitor"},
        "trainer-secret": {"trainer"},
        "prometheus-secret": {"prometheus"},
        "alertmanager-secret": {"alertmanager"},
        "operator-secret": {"monitor"},
        "grafana-secret": {"grafana"},
    }


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_has_its_own_user_and_needs_no_newer_builder(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^USER 10001$", text, re.M)
    assert "constraints.txt" in text
    assert not re.search(r"^# syntax|<<|--mount", text, re.M)


def test_the_trainers_image_has_the_pinned_torch() -> None:
    pinned = re.search(r" torch==(\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert pinned is not None
    assert f" torch=={pinned[1]}\n" in (ROOT / "deploy/trainer.Dockerfile").read_text()


def test_the_tags_are_those_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {service["image"] for service in SERVICES.values() if "trainhealth" in service["image"]}
    assert ours == {f"trainhealth/monitor:{version}", f"trainhealth/trainer:{version}"}


def test_every_value_of_the_compose_files_is_explained_in_the_example() -> None:
    texts = [(ROOT / name).read_text() for name in ("docker-compose.yml", "deploy/compose.gpu.yml")]
    asked = set(re.findall(r"\$\{([A-Z_]+)", "\n".join(texts)))
    explained = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
    assert asked == explained


def test_a_missing_folder_of_data_is_told_by_its_name() -> None:
    compose = _compose()
    files = ["-f", "docker-compose.yml", "-f", "deploy/compose.gpu.yml"]
    done = subprocess.run([*compose, *files, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "set RADIOMAPS in .env to the folder that holds RadioMapSeer" in done.stderr


def _compose() -> list[str]:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("no docker compose here")
    return [docker, "compose"]


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "deploy/grafana/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dashboards_are_current() -> None:
    folder = ROOT / "deploy/grafana/dashboards"
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == _generator().generated(), "run python deploy/grafana/generate.py"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")), ids=lambda p: p.stem
)
def test_a_dashboard_loads_in_grafana_7_5(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["schemaVersion"] <= 30
    assert {panel["type"] for panel in dashboard["panels"]} <= IN_GRAFANA_7_5
    assert all(panel["datasource"] == "${datasource}" for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_manifests_for_kubernetes_are_whole() -> None:
    path = ROOT / "deploy/kubernetes/trainhealth.yaml"
    parts = {one["kind"]: one for one in yaml.safe_load_all(path.read_text())}
    assert {"Deployment", "Service", "PodMonitor", "Job"} <= parts.keys()
    pod = parts["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert {"livenessProbe", "readinessProbe", "resources"} <= container.keys()
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"] == SERVICES["monitor"]["image"]
    labels = pod["metadata"]["labels"]
    assert parts["Service"]["spec"]["selector"].items() <= labels.items()
    assert parts["PodMonitor"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert parts["Job"]["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"


def test_kubernetes_itself_would_take_the_manifests() -> None:
    """By the schemas of its own API, without fields that it does not know; the PodMonitor is another's."""
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    text = (ROOT / "deploy/kubernetes/trainhealth.yaml").read_text()
    for one in yaml.safe_load_all(text):
        if one["kind"] != "PodMonitor":
            schemas.validate(one, "1.30", strict=True)
    broken = next(one for one in yaml.safe_load_all(text) if one["kind"] == "Deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(schemas.ValidationError, match="readynessProbe"):
        schemas.validate(broken, "1.30", strict=True)
