"""Repository and commit of a pipeline, from its platform's variables or from git; and the key that they make."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.ci.origin import Origin, OriginUnknownError, find_origin, without_credentials
from service.ci.submission import idempotency_key

HEAD, MERGE = "a" * 40, "b" * 40


def github(tmp_path: Path, event: object, name: str = "pull_request") -> dict[str, str]:
    path = tmp_path / "event.json"
    path.write_text(event if isinstance(event, str) else json.dumps(event))
    return {
        "GITHUB_REPOSITORY": "team/model",
        "GITHUB_SHA": MERGE,
        "GITHUB_EVENT_NAME": name,
        "GITHUB_EVENT_PATH": str(path),
    }


@pytest.mark.parametrize("name", ["pull_request", "pull_request_target"])
def test_pull_request_counts_by_its_head_and_not_by_the_merge(tmp_path: Path, name: str) -> None:
    environment = github(tmp_path, {"pull_request": {"head": {"sha": HEAD}}}, name)
    assert find_origin(environment, tmp_path) == Origin("team/model", HEAD)


def test_push_counts_by_its_commit(tmp_path: Path) -> None:
    assert find_origin(github(tmp_path, {}, "push"), tmp_path) == Origin("team/model", MERGE)


@pytest.mark.parametrize(
    "event",
    ["no json", {}, {"pull_request": None}, {"pull_request": {"head": {"sha": 5}}}, [], {"pull_request": []}],
)
def test_pull_request_without_its_head_is_no_commit(tmp_path: Path, event: object) -> None:
    environment = github(tmp_path, event)
    with pytest.raises(OriginUnknownError, match="give --commit SHA") as caught:
        find_origin(environment, tmp_path)
    assert caught.value.code == "origin_unknown"


@pytest.mark.parametrize(("merged", "commit"), [(HEAD, HEAD), ("", MERGE)])
def test_gitlab_counts_by_the_source_branch(tmp_path: Path, merged: str, commit: str) -> None:
    environment = {
        "CI_PROJECT_PATH": "team/model",
        "CI_COMMIT_SHA": MERGE,
        "CI_MERGE_REQUEST_SOURCE_BRANCH_SHA": merged,
    }
    assert find_origin(environment, tmp_path) == Origin("team/model", commit)


def test_options_win_over_the_platform(tmp_path: Path) -> None:
    environment = github(tmp_path, {"pull_request": {"head": {"sha": HEAD}}})
    assert find_origin(environment, tmp_path, repository="r", commit="c") == Origin("r", "c")
    # An event that can't be read asks for --commit, which then has to do.
    broken = github(tmp_path, "no json")
    assert find_origin(broken, tmp_path, commit="c") == Origin("team/model", "c")


def test_checkout_of_somebody_else_is_told_with_gits_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for given in ({}, {"repository": "r"}):
        with pytest.raises(OriginUnknownError, match=r"safe\.directory"):
            find_origin({}, tmp_path, **given)


def test_git_tells_the_rest(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "train.yaml").write_text("x: 1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "Train")
    git("remote", "add", "origin", "ssh://ci:secret@git.example.org/model.git")
    head = git("rev-parse", "HEAD")
    address = "ssh://git.example.org/model.git"
    assert find_origin({}, tmp_path) == Origin(address, head)
    (tmp_path / "new.txt").write_text("untracked files are nobody's change\n")
    assert not find_origin({}, tmp_path).is_dirty
    (tmp_path / "train.yaml").write_text("x: 2\n")
    assert find_origin({}, tmp_path) == Origin(address, head, is_dirty=True)
    assert not find_origin({"CI_PROJECT_PATH": "p", "CI_COMMIT_SHA": "c"}, tmp_path).is_dirty


def test_pipeline_without_git_can_say_what_it_runs_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for given in ({}, {"repository": "r"}):
        with pytest.raises(OriginUnknownError, match="or give --repository NAME and --commit SHA"):
            find_origin({}, tmp_path, **given)
    assert find_origin({}, tmp_path, repository="r", commit="c") == Origin("r", "c")


@pytest.mark.parametrize(
    ("address", "rest"),
    [
        ("https://user:pass@host/x.git", "https://host/x.git"),
        ("https://token@host:8443/x@y.git", "https://host:8443/x@y.git"),
        ("https://host/x.git", "https://host/x.git"),
        ("git@host:x.git", "host:x.git"),
        ("/srv/git/a@b.git", "/srv/git/a@b.git"),
        ("https://a:b%40c@host/x", "https://host/x"),
        ("https://a:b@c@host/x@y", "https://host/x@y"),
        ("a@host:x@y", "host:x@y"),
    ],
)
def test_credentials_are_no_part_of_an_address(address: str, rest: str) -> None:
    assert without_credentials(address) == rest


def key(**changes: Any) -> str:
    values: dict[str, Any] = {
        "origin": Origin("team/model", HEAD),
        "question": {"workload": "w"},
        "recipe": "0.1.0",
    }
    return idempotency_key(**values | changes)


def test_key_is_the_same_for_the_same_question_alone() -> None:
    same = [
        key(),
        key(question={"workload": "w", "methods": ["global_norm"], "num_seeds": 3, "effect": 0.01}),
        key(origin=Origin("team/model", HEAD, is_dirty=True)),
        key(question={"name": None, "workload": "w"}),
    ]
    assert len(set(same)) == 1 and len(same[0]) == 64
    others = [
        key(origin=Origin("team/model", MERGE)),
        key(origin=Origin("team/fork", HEAD)),
        key(question={"workload": "v"}),
        key(question={"workload": "w", "current": {"method": "global_norm", "threshold": 1.0}}),
        key(question={"workload": "w", "parameters": {"hidden": 32}}),
        key(question={"workload": "w", "name": "nightly"}),
        key(recipe="0.2.0"),
        key(nonce="1"),
    ]
    assert len({*same, *others}) == 1 + len(others)


def test_question_that_is_none_has_a_key_all_the_same() -> None:
    for question in (
        {},
        {"workload": 5, "methods": 5},
        {"workload": "w", "effect": float("nan")},
        {"x": [1]},
    ):
        assert key(question=question) == key(question=dict(question))
