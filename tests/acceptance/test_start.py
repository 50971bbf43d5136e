"""Starting on bad ground: each failure has an exit code, a stable code and a sentence that says what to do."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.deployment import CLIPTUNE, STUDY, Deployment, wait_for
from postgres import free_port
from warm import Warm, warm_process

from service.states import JobState

COMMAND = Path(__file__).parents[2] / "service" / "cli" / "main.py"
MODULES = (
    "service.cli.main",
    "service.cli.server",
    "service.api.app",
    "service.db.migrate",
    "service.client",
)


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """What ends before it has begun runs in a process that finds the command's modules loaded."""
    with warm_process() as process:
        yield process


@pytest.fixture
def deployment(tmp_path: Path, sqlite_url: str) -> Deployment:
    return Deployment(tmp_path / "home", sqlite_url, database_wait_seconds=1)


def fails(warm: Warm, deployment: Deployment, *arguments: str) -> tuple[int, str]:
    done = warm.run(COMMAND, *arguments, modules=MODULES, env=deployment.environment, timeout=60)
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, lines[-1]


def test_port_in_use(warm: Warm, deployment: Deployment) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, line = fails(warm, deployment, "api", "--port", str(taken.getsockname()[1]))
    assert status == 2
    assert "is in use" in line and "--port" in line and line.endswith("[port_in_use]")


def test_address_of_another_machine(warm: Warm, deployment: Deployment) -> None:
    status, line = fails(warm, deployment, "api", "--host", "192.0.2.1")
    assert status == 2
    assert "--host" in line and line.endswith("[address_unusable]")


def test_database_folder_is_missing(warm: Warm, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "home", f"sqlite:///{tmp_path}/no/such/folder/x.db")
    status, line = fails(warm, deployment, "api")
    assert status == 2
    assert "CLIPTUNE_DATABASE_URL" in line and line.endswith("[database_not_writable]")


def test_database_file_is_not_writable(deployment: Deployment, tmp_path: Path) -> None:
    # Root may write anything, so the file belongs to a read-only directory tree of an unprivileged process.
    folder = tmp_path / "readonly"
    folder.mkdir()
    sqlite3.connect(folder / "x.db").close()
    (folder / "x.db").chmod(0o444)
    folder.chmod(0o555)
    deployment.environment["CLIPTUNE_DATABASE_URL"] = f"sqlite:///{folder / 'x.db'}"
    command = [*CLIPTUNE, "api"]
    if os.geteuid() == 0:
        for parent in [tmp_path, *tmp_path.parents[:-2]]:
            parent.chmod(parent.stat().st_mode | 0o055)
        deployment.home.mkdir(mode=0o777)
        deployment.home.chmod(0o777)
        command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
    # Coverage could not write its own file as that user.
    environment = {name: each for name, each in deployment.environment.items() if "COVERAGE" not in name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert "can't be written" in line and line.endswith("[database_not_writable]")


def test_home_can_not_be_made(warm: Warm, deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    deployment.environment["CLIPTUNE_HOME"] = str(tmp_path / "file" / "home")
    status, line = fails(warm, deployment, "api")
    assert status == 2
    assert "CLIPTUNE_HOME" in line and line.endswith("[database_not_writable]")


@pytest.mark.parametrize("command", ["api", "worker"])
def test_postgresql_is_down(warm: Warm, tmp_path: Path, command: str) -> None:
    url = f"postgresql://someone:secret-word@127.0.0.1:{free_port()}/db"
    deployment = Deployment(tmp_path / "home", url, database_wait_seconds=1)
    status, line = fails(warm, deployment, command)
    assert status == 3
    assert "PostgreSQL runs" in line and line.endswith("[database_unreachable]")
    assert "secret-word" not in line


@pytest.mark.postgres
def test_postgresql_refuses(warm: Warm, tmp_path: Path, postgres_url: str) -> None:
    deployment = Deployment(tmp_path / "home", postgres_url + "_no_such", database_wait_seconds=1)
    status, line = fails(warm, deployment, "api")
    assert status == 2
    assert "database's name" in line and line.endswith("[database_refused]")


def test_worker_without_schema(warm: Warm, deployment: Deployment) -> None:
    status, line = fails(warm, deployment, "worker")
    assert status == 2
    assert "cliptune api" in line and line.endswith("[schema_mismatch]")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CLIPTUNE_PROT", "8000", "did you mean CLIPTUNE_PORT?"),
        ("CLIPTUNE_PORT", "eighty", "CLIPTUNE_PORT='eighty'"),
        ("CLIPTUNE_RENEW_SECONDS", "59", "4 x renew must be <= lease"),
        ("CLIPTUNE_KILL_GRACE_SECONDS", "1", "the grace must be shorter"),
        ("CLIPTUNE_DATABASE_URL", "mysql://host/db", "sqlite:///FILE or postgresql://"),
        ("CLIPTUNE_DATABASE_URL", "sqlite://", "in-memory"),
    ],
)
def test_wrong_setting(warm: Warm, deployment: Deployment, name: str, value: str, says: str) -> None:
    deployment.environment[name] = value
    status, line = fails(warm, deployment, "api")
    assert status == 2
    assert says in line


def test_settings_are_listed_without_secrets(deployment: Deployment) -> None:
    deployment.environment |= {
        "CLIPTUNE_DATABASE_URL": "postgresql://me:canary@host/db",
        "CLIPTUNE_API_KEY": "canary",
        "CLIPTUNE_MAX_TRIALS": "77",
    }
    for options in ([], ["--json"]):
        listed = deployment.run("settings", *options).stdout
        assert "77" in listed and "host/db" in listed
        assert "canary" not in listed
    assert "* CLIPTUNE_MAX_TRIALS=77" in deployment.run("settings").stdout


def test_client_commands_without_a_service(warm: Warm, deployment: Deployment) -> None:
    status, line = fails(warm, deployment, "studies")
    assert (status, line[-13:]) == (3, "[key_missing]")
    deployment.environment |= {"CLIPTUNE_API_KEY": "x", "CLIPTUNE_URL": f"http://127.0.0.1:{free_port()}"}
    status, line = fails(warm, deployment, "recommend", "--workload", "charlm-rnn")
    assert status == 3
    assert "cliptune serve" in line and line.endswith("[service_unreachable]")


def test_api_waits_for_a_database_that_starts_later(tmp_path: Path, postgres_programs: Path) -> None:
    from postgres import private_cluster

    with private_cluster(postgres_programs) as cluster:
        cluster.stop()
        with Deployment(tmp_path / "home", cluster.url, database_wait_seconds=30) as deployment:
            process = deployment.start("api")
            cluster.start()
            wait_for(lambda: deployment.is_up(process), "the API")


def test_by_hand(tmp_path: Path, sqlite_url: str) -> None:
    """The commands of the README, one after the other, with --json on each."""
    with Deployment(tmp_path / "home", sqlite_url) as deployment:
        server = deployment.start("serve")
        wait_for(lambda: deployment.is_up(server), "the API")
        wait_for(lambda: any(worker.alive for worker in deployment.list_workers()), "the worker")
        options = ["--workload", "digits-mlp", "--trials", "5", "--seeds", "2", "--steps", "60"]

        waited = deployment.run("submit", *options, "--current", "global_norm:1", "--wait")
        assert waited.returncode == 0, waited.stderr
        for word in ("verdict", "method", "val_loss", "diverged", "cost", "threshold (log)"):
            assert word in waited.stdout
        assert "probe    median norm" in waited.stderr

        submitted = json.loads(deployment.run("submit", *options, "--seed", "1", "--json").stdout)
        watched = json.loads(deployment.run("watch", submitted["id"][:8], "--json").stdout)
        assert watched["state"] == JobState.SUCCEEDED
        shown = json.loads(deployment.run("show", submitted["id"], "--json").stdout)
        assert sum(trial["stage"] == "search" for trial in shown["trials"]) == 5
        assert shown["result"]["verdict"] == watched["result"]["verdict"]
        found = json.loads(deployment.run("recommend", "--workload", "digits-mlp", "--json").stdout)
        assert found["recommendation"]["study_id"] == submitted["id"]
        listed = json.loads(deployment.run("studies", "--json").stdout)
        assert listed[0]["id"] == submitted["id"]
        assert "verdict" in deployment.run("show", submitted["id"][:8]).stdout
        assert "verdict" in deployment.run("recommend", "--workload", "digits-mlp").stdout

        extended = deployment.run("extend", submitted["id"][:8], "--seeds", "2", "--wait", "--json")
        assert extended.returncode == 0, extended.stderr
        again = json.loads(extended.stdout)
        assert (again["extensions"], again["result"]["version"]) == ([2], 2)
        features = again["reference"]["features"]
        asked = [f"--optimizer={features['optimizer']}", f"--num-parameters={features['num_parameters']}"]
        similar = deployment.run("recommend", *asked, "--json")
        assert similar.returncode == 1 and "median_norm" in json.loads(similar.stdout)["reason"]

        known = deployment.run("workloads").stdout
        assert "digits-mlp" in known and "learning_rate = " in known
        assert {each["name"] for each in json.loads(deployment.run("workloads", "--json").stdout)} >= {
            "charlm-rnn"
        }

        nothing = deployment.run("recommend", "--workload", "charlm-rnn")
        assert nothing.returncode == 1 and nothing.stderr.strip()
        finished = deployment.run("cancel", submitted["id"])
        assert finished.returncode == 2 and "study_finished" in finished.stderr
        unknown = deployment.run("show", "ffffffff")
        assert unknown.returncode == 2 and "not_found" in unknown.stderr
        wrong = deployment.run("submit", "--workload", "charlm-rnn", "--param", "hidden=-3")
        assert wrong.returncode == 2 and "parameters.hidden" in wrong.stderr
        key = deployment.home / "key"
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.read_text().strip() not in deployment.logs()


def test_failed_study_ends_watch_with_5(tmp_path: Path, sqlite_url: str) -> None:
    with Deployment(tmp_path / "home", sqlite_url) as deployment:
        deployment.start_api()
        deployment.start_worker()
        client = deployment.client()
        study = client.create_study(STUDY | {"num_steps": 100_000})
        client.cancel_study(study.id)
        watched = deployment.run("watch", study.id)
        assert watched.returncode == 5
        assert "cancelled" in watched.stderr


def test_command_line_starts_without_a_heavy_import() -> None:
    program = "import sys, service.cli.main; print(sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.replace("'", "").strip("[]\n").split(", "))
    assert not loaded & {"torch", "optuna", "numpy", "sklearn", "pandas", "fastapi", "sqlalchemy", "httpx2"}
