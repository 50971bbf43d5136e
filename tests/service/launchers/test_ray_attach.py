"""When a worker attaches to a Ray cluster: each condition has its sentence and its code, and nothing is attached to."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.errors import SettingsError
from service.launchers.ray import RayLauncher
from service.launchers.ray_attach import AttachError, read_runtime_env, require_token, require_version
from service.settings import Settings


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("0" * 64)
    return path


def launcher(**settings: Any) -> RayLauncher:
    return RayLauncher.of(Settings(launcher="ray", **settings))


@pytest.mark.parametrize("address", ["auto", "ray-head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_address_of_a_head_is_one(address: str) -> None:
    assert launcher(ray_address=address)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://ray-head:10001", "one of Ray Client"),
        ("ray-head", "write HOST:PORT"),
        ("ray-head:0", "write HOST:PORT"),
        ("ray-head:70000", "write HOST:PORT"),
        ("http://ray-head:8265", "write HOST:PORT"),
        ("local", "write HOST:PORT"),
    ],
)
def test_other_addresses_are_refused(address: str, says: str) -> None:
    with pytest.raises(AttachError, match=says) as caught:
        launcher(ray_address=address)
    assert caught.value.code == "ray_address_refused"


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("service.launchers.ray.find_spec", lambda name: None)
    with pytest.raises(AttachError, match=r"pip install 'cliptune\[ray\]'") as caught:
        launcher()
    assert (caught.value.code, caught.value.exit_code) == ("ray_missing", 2)


def test_fraction_above_one_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"CLIPTUNE_RAY_GPUS is 1\.5: Ray gives fractions of one only"):
        launcher(ray_gpus=1.5)
    assert launcher(ray_gpus=0.25, ray_cpus=2)


def test_versions_with_known_holes_are_refused_and_old_ones_warned_of() -> None:
    for version in ("2.53.9", "1.13.0", "2.9.3"):
        with pytest.raises(
            AttachError, match=f"Ray {version} is installed, and versions below 2.54"
        ) as caught:
            require_version(version, allow_insecure=False)
        assert caught.value.code == "ray_version_refused"
        assert require_version(version, allow_insecure=True) is not None
    assert "2.59" in (require_version("2.54.0", allow_insecure=False) or "")
    assert require_version("3.0.0rc1", allow_insecure=False) is None


def test_override_is_logged_at_each_start() -> None:
    with structlog.testing.capture_logs() as logs:
        launcher()
        assert logs == []
        launcher(ray_allow_insecure=True)
    assert [(each["action"], each["log_level"]) for each in logs] == [("ray_insecure", "warning")]


@pytest.mark.parametrize("mode", ["", "disabled", "TOKEN"])
def test_authentication_must_be_on(mode: str, token: Path) -> None:
    environ = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(token)}
    with pytest.raises(AttachError, match="set RAY_AUTH_MODE=token") as caught:
        require_token(environ, allow_insecure=False)
    assert caught.value.code == "ray_authentication_off"
    require_token(environ, allow_insecure=True)


def test_token_is_a_private_file(token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(path: object) -> str:
        with pytest.raises(AttachError) as caught:
            require_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}, allow_insecure=True)
        assert caught.value.code == "ray_token_refused"
        return str(caught.value)

    require_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}, allow_insecure=False)
    assert "is not set" in refusal("")
    assert "can't be read: No such file" in refusal(tmp_path / "missing")
    assert "is no regular file" in refusal(tmp_path)
    for mode, says in ((0o640, "has mode 0640, so that others may read it; chmod 600 it"), (0o620, "use it")):
        token.chmod(mode)
        assert says in refusal(token)
    token.chmod(0o400)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to user" in refusal(token)
    monkeypatch.undo()
    empty = tmp_path / "empty"
    empty.touch(mode=0o600)
    assert "is empty" in refusal(empty)


def test_runtime_environment_is_a_json_object(tmp_path: Path) -> None:
    file = tmp_path / "runtime-env.json"
    for text, says in (
        (None, "No such file"),
        ("{", "Expecting property name"),
        ("[1]", "write a JSON object"),
    ):
        if text is not None:
            file.write_text(text)
        with pytest.raises(AttachError, match=says) as caught:
            launcher(ray_runtime_env=str(file))
        assert caught.value.code == "ray_runtime_env_refused"
    file.write_text('{"pip": ["my-package"]}')
    assert read_runtime_env(str(file)) == {"pip": ["my-package"]}
    assert read_runtime_env("") == {}


def test_without_the_extra_nothing_mentions_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cliptune settings` leaves out what is of no use, unless somebody has set it."""
    from typer.testing import CliRunner

    from service.cli.main import app

    def names() -> set[str]:
        listed = json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)
        return {row["name"] for row in listed if row["name"].startswith("CLIPTUNE_RAY_")}

    assert len(names()) == 6
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert names() == set()
    monkeypatch.setenv("CLIPTUNE_RAY_SLOTS", "2")
    assert names() == {"CLIPTUNE_RAY_SLOTS"}
