"""What is shipped: the compose file's commands as plain processes, the light install, the wheel's content."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from acceptance.deployment import STUDY, Deployment, wait_for

from service.settings import PREFIX, Settings
from service.states import JobState

ROOT = Path(__file__).parents[2]


def compose_services() -> dict[str, dict[str, object]]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def substitute(text: str) -> str:
    """What compose does with ${NAME:-default} and ${NAME:?message}, with POSTGRES_PASSWORD=pw."""
    return re.sub(
        r"\$\{(\w+):([-?])([^}]*)\}",
        lambda match: "pw" if match[1] == "POSTGRES_PASSWORD" else match[3] if match[2] == "-" else "",
        text,
    )


@pytest.mark.postgres
def test_compose_commands_run_a_study_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    services = compose_services()
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["cliptune"]' in dockerfile
    with Deployment(tmp_path / "home", postgres_url) as deployment:
        environments = {}
        for name in ("api", "worker", "deliver"):
            environment = {
                key: substitute(str(value)) for key, value in services[name]["environment"].items()
            }
            assert environment.pop("CLIPTUNE_DATABASE_URL") == "postgresql://cliptune:pw@postgres/cliptune"
            environments[name] = environment
        # The port of the container is its own; here a free one stands for it.
        assert environments["api"].pop("CLIPTUNE_PORT") == "8765"
        plain = dict(deployment.environment)
        deployment.environment = plain | environments["api"]
        api = deployment.start(*services["api"]["command"])
        wait_for(lambda: deployment.is_up(api), "the API")
        deployment.environment = (
            plain | environments["worker"] | {"CLIPTUNE_HOME": str(tmp_path / "worker-home")}
        )
        worker = deployment.start(*services["worker"]["command"])
        deployment.environment = (
            plain | environments["deliver"] | {"CLIPTUNE_HOME": str(tmp_path / "deliver-home")}
        )
        deliver = deployment.start(*services["deliver"]["command"])
        client = deployment.client()
        wait_for(lambda: any(each.alive for each in client.list_workers()), "the worker")
        study = client.create_study(STUDY | {"num_steps": 60})
        ended = wait_for(lambda: found if (found := client.get_study(study.id)).done else None, "the study")
        assert ended.state is JobState.SUCCEEDED
        assert client.ready().ready
        wait_for(lambda: "sender_ready" in deployment.logs(), "the sender of webhooks")
        for process in (worker, deliver):
            process.terminate()
            assert process.wait(timeout=30) == 0


def test_compose_sets_only_real_settings() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for service in compose_services().values():
        for name in service["environment"]:
            assert not name.startswith(PREFIX) or name in known


def test_cluster_of_compose_is_closed() -> None:
    """Token authentication, no port, no dashboard, nothing but the worker between the nodes and the database."""
    on_ray = {name: each for name, each in compose_services().items() if each.get("profiles") == ["cluster"]}
    assert set(on_ray) == {"ray-head", "ray-node", "cluster-worker"}
    for name, service in on_ray.items():
        (command,) = service["command"]
        environment = service["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert f"install -m 600 /run/secrets/ray_token {environment['RAY_AUTH_TOKEN_PATH']}" in command
        assert not service.get("ports") and service["read_only"] and service["cap_drop"] == ["ALL"]
        assert ("default" in service["networks"]) is (name == "cluster-worker")
        assert ("CLIPTUNE_DATABASE_URL" in environment) is (name == "cluster-worker")
    assert "--include-dashboard=false" in on_ray["ray-head"]["command"][0]


def test_dockerfile_builds_the_targets_that_compose_names() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    builds = {
        name: service["build"]["target"] for name, service in compose_services().items() if "build" in service
    }
    on_ray = dict.fromkeys(("ray-head", "ray-node", "cluster-worker"), "cluster")
    assert builds == {"api": "api", "worker": "worker", "deliver": "api"} | on_ray
    assert set(builds.values()) <= targets


@pytest.mark.slow
def test_client_installs_and_works_without_torch_or_a_database(
    tmp_path: Path, sqlite_url: str, installed: Any
) -> None:
    """A fresh virtual environment with the base install alone, the action's, talks to a running service."""
    binaries = Path(installed.steps["install"]["python"]).parent
    listed = subprocess.run(
        [binaries / "pip", "list", "--format=freeze"], capture_output=True, text=True
    ).stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert "cliptune" in names
    assert not names & {"torch", "numpy", "optuna", "sqlalchemy", "fastapi", "uvicorn", "scikit-learn"}
    with Deployment(tmp_path / "home", sqlite_url) as deployment:
        deployment.start_api()
        command = [str(binaries / "cliptune"), "studies", "--json"]
        done = subprocess.run(
            command, env=deployment.environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
        serve = [str(binaries / "cliptune"), "serve"]
        refused = subprocess.run(
            serve, env=deployment.environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert refused.returncode == 2
        assert "cliptune[server]" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_wheel_holds_the_migrations_and_the_types(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("cliptune-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"service/db/migrations/env.py", "service/db/migrations/versions/0001_first_tables.py"}
    assert wanted | {"tuner/py.typed", "service/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests/")]
