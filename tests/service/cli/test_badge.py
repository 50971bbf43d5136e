"""`cliptune badge`: the line for a README, and which recommendation it is about."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest

WORKLOAD = ("--workload", "charlm-rnn")


def message(url: str) -> str:
    """What the address shows to anybody."""
    with urlopen(url, timeout=60) as answer:
        return str(json.load(answer)["message"])


def test_line_shows_the_badge_to_anybody(served: Any, cliptune: Any) -> None:
    served.succeed(served.study()["id"])
    ended = cliptune("badge", *WORKLOAD)
    assert ended.code == 0 and served.key not in ended.out + ended.err
    assert ended.out.startswith("![gradient clipping](http://127.0.0.1:") and ended.out.endswith(")\n")
    url = ended.out.partition("](")[2].rstrip(")\n")
    assert message(url.replace("badge.svg", "badge.json")) == "max_norm 0.42"
    key_id = served.key.split("_")[2]
    assert ended.err == (
        f"cliptune: whoever has the address sees this badge, until the key {key_id} is revoked or expires\n"
    )


def test_parameters_name_one_training(served: Any, cliptune: Any) -> None:
    small, large = served.study(parameters={"hidden": 32}), served.study(parameters={"hidden": 128})
    for study in (small, large):
        served.succeed(study["id"])
    found = json.loads(cliptune("badge", *WORKLOAD, "--param", "hidden=32", "--label", "small", "--json").out)
    query = parse_qs(urlsplit(found["svg_url"]).query)
    assert query["fingerprint"] == [small["fingerprint"]] and query["label"] == ["small"]
    named = cliptune("badge", "--fingerprint", large["fingerprint"])
    assert f"fingerprint={large['fingerprint']}" in named.out
    unknown = cliptune("badge", *WORKLOAD, "--param", "hidden=7")
    assert unknown.code == 2 and "tune it first" in " ".join(unknown.err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "the badge of what?"), (("--param", "hidden=1"), "give --workload too")],
)
@pytest.mark.usefixtures("repository")
def test_badge_of_nothing_is_refused(cliptune: Any, arguments: tuple[str, ...], words: str) -> None:
    ended = cliptune("badge", *arguments)
    assert ended.code == 2 and words in " ".join(ended.err.split())


def test_key_that_may_not_read_makes_no_badge(
    served: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPTUNE_API_KEY", served.new_key(scopes=["worker"]))
    ended = cliptune("badge", *WORKLOAD)
    assert ended.code == 3 and ended.err.endswith("[forbidden]\n")
