"""A pull request from the bad value to the good one: a repository, a real service, a study that was really trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from acceptance.deployment import Deployment

from service.db.clock import database_now
from service.keys import create_key, revoke_key

pytestmark = pytest.mark.slow


def test_from_a_bad_value_to_a_good_one(answered: Any, repository: Any) -> None:
    given = {"CLIPTUNE_URL": answered.url, "CLIPTUNE_API_KEY": answered.key}
    repository.git("switch", "--quiet", "--create", "shorter-warmup")
    bad = repository.run(
        "check", "--workload", "digits-mlp", "--write-lock", "--report", "json=online.json", **given
    )
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert bad.stdout.startswith("failed: conf/train.yaml:3: max_grad_norm 0.005 "), bad.stdout
    assert answered.study_id[:8] in bad.stdout and "paired fresh seeds" in bad.stdout, (
        "it fails with its evidence"
    )
    online = (repository.folder / "online.json").read_bytes()

    # The same verdict without a service, and before a commit.
    offline = repository.run("check", "--offline", "--report", "json=offline.json")
    assert (offline.returncode, offline.stdout) == (1, bad.stdout)
    assert (repository.folder / "offline.json").read_bytes() == online

    applied = repository.run("apply", "conf/train.yaml", **given)
    assert applied.returncode == 0, applied.stderr
    assert repository.git("diff", "--numstat").split() == ["1", "1", "conf/train.yaml"]
    assert repository.config.read_text().endswith("  # as in the paper\n")
    repository.git("commit", "--quiet", "--all", "--message", "Use the recommended threshold")
    good = repository.run("check", **given)
    assert good.returncode == 0 and good.stdout.startswith("ok: conf/train.yaml:3: "), good.stdout
    again = repository.run("apply", "conf/train.yaml", "--offline")
    assert again.returncode == 0 and "already applied" in again.stderr


def test_each_refused_key_has_its_own_sentence(answered: Any, repository: Any, tmp_path: Path) -> None:
    with answered.deployment.database().write() as session:
        expired = create_key(session, label="old", expires_at=database_now(session) - 1)
        revoked = create_key(session, label="gone")
        assert revoke_key(session, revoked.split("_")[2])
        unscoped = create_key(session, label="other", scopes=("worker",))
    sentences = set()
    for key, code in (
        (expired, "key_expired"),
        (revoked, "key_revoked"),
        (expired[:-1] + ("0" if expired[-1] != "0" else "1"), "key_malformed"),
        (foreign_key(tmp_path / "other"), "key_unknown"),
        (unscoped, "forbidden"),
    ):
        arguments = ("check", "--workload", "digits-mlp")
        given = {"CLIPTUNE_URL": answered.url, "CLIPTUNE_API_KEY": key}
        softened = repository.run(*arguments, **given)
        assert softened.returncode == 0, softened.stdout
        first = softened.stdout.splitlines()[0]
        assert first.startswith("warning: ") and first.endswith(f"[{code}]"), first
        assert key not in softened.stdout + softened.stderr, "a log is no place for a key"
        sentences.add(first.partition(", so that")[0])
        assert repository.run(*arguments, "--on-service-error", "fail", **given).returncode == 3
    assert len(sentences) == 5


def foreign_key(home: Path) -> str:
    """A key that another service made."""
    with Deployment(home, f"sqlite:///{home}/cliptune.db") as deployment:
        deployment.start_api()
        return (home / "key").read_text().strip()


def test_stopped_service_is_no_verdict(answered: Any, repository: Any) -> None:
    given = {"CLIPTUNE_URL": answered.url, "CLIPTUNE_API_KEY": answered.key}
    before = repository.config.read_text()
    arguments = ("check", "--workload", "digits-mlp")
    assert repository.run(*arguments, "--write-lock", **given).returncode == 1
    answered.stop()
    try:
        softened = repository.run(*arguments, **given)
        assert softened.returncode == 0, softened.stdout
        assert softened.stdout.startswith("warning: The service can't be reached"), softened.stdout
        assert repository.run(*arguments, "--on-service-error=fail", **given).returncode == 3
        assert repository.run("apply", "conf/train.yaml", **given).returncode == 3
        assert repository.config.read_text() == before
        assert repository.run("check", "--offline", **given).returncode == 1, "the lock still judges"
    finally:
        answered.deployment.start_api()
    assert repository.run(*arguments, **given | {"CLIPTUNE_URL": answered.url}).returncode == 1
