"""Filling a setting into a command: literally, once, and refused beforehand where it can't work."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.agent.command import doubts, fill, lane_values, placeholders_of, require_known
from service.agent.errors import CommandError
from tuner.spec import ClipSetting, StudySpec

COMMAND = ("python", "train.py", "--clip", "{threshold}", "--seed", "{seed}")
HOSTILE = [
    "a b",
    "'",
    '"',
    ";ls",
    "$(id)",
    "`id`",
    "new\nline",
    "{seed}",
    "{{",
    "}",
    "-rf",
    "",
    "*",
    "\\",
    "\u00e9",
]


def spec(**changes: Any) -> dict[str, Any]:
    return StudySpec(**{"workload": "mine", "external": True} | changes).to_json()


def values(setting: str = "global_norm:0.35", **changes: Any) -> dict[str, str]:
    given = {
        "seed": 3,
        "num_steps": 400,
        "trial": 7,
        "study": "abc",
        "output": "/out",
        "parameters": {},
        "off": "0",
    }
    return lane_values(ClipSetting.parse(setting), **given | changes)


def test_every_placeholder_of_a_lane() -> None:
    assert values() == {
        "threshold": "0.35",
        "method": "global_norm",
        "setting": "global_norm:0.35",
        "learning_rate_scale": "1.0",
        "seed": "3",
        "num_steps": "400",
        "trial": "7",
        "study": "abc",
        "output": "/out",
    }


@pytest.mark.parametrize("off", ["0", "inf", "none"])
def test_off_has_the_threshold_that_the_user_names(off: str) -> None:
    found = values("none", off=off)
    assert (found["threshold"], found["method"], found["setting"]) == (off, "none", "none")


def test_numbers_keep_every_digit() -> None:
    threshold, scale = 0.1234567890123, 1 / 3
    setting = ClipSetting(method="global_norm", threshold=threshold, learning_rate_scale=scale)
    found = lane_values(
        setting, seed=0, num_steps=1, trial=0, study="", output="", parameters={"x": 1 / 7}, off="0"
    )
    assert float(found["threshold"]) == threshold
    assert float(found["learning_rate_scale"]) == scale
    assert ClipSetting.parse(found["setting"]) == setting
    assert float(found["x"]) == 1 / 7


def test_parameters_are_placeholders_too() -> None:
    found = values(parameters={"width": 64, "rate": 0.1, "fused": True, "name": "adam w"})
    assert [found[name] for name in ("width", "rate", "fused", "name")] == ["64", "0.1", "true", "adam w"]


@pytest.mark.parametrize("value", HOSTILE)
def test_value_arrives_as_it_is_within_one_argument(value: str) -> None:
    assert fill("{x}", {"x": value}) == value
    assert fill("--x={x}/{x}", {"x": value}) == f"--x={value}/{value}"


@given(st.text(), st.text(), st.text())
def test_filling_is_literal_and_happens_once(before: str, value: str, after: str) -> None:
    literal = [each.replace("{", "{{").replace("}", "}}") for each in (before, after)]
    text = f"{literal[0]}{{x}}{literal[1]}"
    assert fill(text, {"x": value}) == before + value + after
    assert placeholders_of(text) == {"x"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [("{{}}", "{}"), ("{{{x}}}", "{v}"), ("{{x}}", "{x}"), ('{{"a": {x}}}', '{"a": v}'), ("plain", "plain")],
)
def test_doubled_braces_are_literal(text: str, filled: str) -> None:
    assert fill(text, {"x": "v"}) == filled


@pytest.mark.parametrize(
    ("command", "changes", "says"),
    [
        (("a", "{threshold}", "{nope}"), {}, r"\{nope\} is no placeholder.*\{threshold\}, \{method\}"),
        (("a", "{threshold}", "{nope}"), {"parameters": {"width": 3}}, r"\{output\}, \{width\}; write"),
        (("a", "{threshold}", '{"a": 1}'), {}, r"is no placeholder.*write \{\{ and \}\} for literal braces"),
        (("a", "{threshold}", "{}"), {}, r"\{\} is no placeholder"),
        (("a", "{threshold"), {}, r"has a single '\{': write '\{\{' for a literal brace"),
        (("a", "threshold}"), {}, r"has a single '\}'"),
        (("a", "--seed", "{seed}"), {}, "takes no threshold, so every setting would train alike"),
        (
            ("a", "{threshold}", "{seed}"),
            {"parameters": {"seed": 3}},
            r"\{seed\} may be the placeholder or the study's parameter",
        ),
        (
            ("a", "{threshold}", "{x}"),
            {"parameters": {"x": "a\0b"}},
            "parameter 'x' contains a NUL",
        ),
        (
            COMMAND,
            {"learning_rate_low": 0.5, "learning_rate_high": 2.0},
            r"tunes the learning rate too.*\{learning_rate_scale\}",
        ),
    ],
)
def test_command_that_can_not_work_is_refused(
    command: tuple[str, ...], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(CommandError, match=says) as caught:
        require_known(command, "", spec(**changes))
    assert (caught.value.code, caught.value.exit_code) == ("invalid_command", 2)


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (COMMAND, {}),
        (COMMAND, {"parameters": {"width": 5}}),
        (("a", "{setting}"), {"learning_rate_low": 0.5, "learning_rate_high": 2.0}),
        (("a", "{threshold}"), {"parameters": {"seed": 3}}),
        (("a", "{threshold}", "--config={{}}"), {}),
    ],
)
def test_command_that_can_work_is_let_through(command: tuple[str, ...], changes: dict[str, Any]) -> None:
    require_known(command, "", spec(**changes))


def test_place_of_the_metrics_is_checked_too_but_takes_no_threshold_to_the_program() -> None:
    require_known(COMMAND, "{output}/metrics.jsonl", spec())
    with pytest.raises(CommandError, match=r"\{outptu\} is no placeholder"):
        require_known(COMMAND, "{outptu}/metrics.jsonl", spec())
    with pytest.raises(CommandError, match="takes no threshold"):
        require_known(("python", "train.py"), "{threshold}.jsonl", spec())


@pytest.mark.parametrize(
    ("command", "changes", "says"),
    [
        (COMMAND, {}, []),
        (COMMAND, {"methods": ("global_norm",), "current": ClipSetting(method="none")}, []),
        (
            COMMAND,
            {"methods": ("agc", "global_norm")},
            ["the study searches agc, and the command is told"],
        ),
        (COMMAND, {"current": ClipSetting(method="value", threshold=1.0)}, ["the study searches value"]),
        ((*COMMAND, "{method}"), {"methods": ("agc",)}, []),
        (("a", "{setting}", "{seed}"), {"methods": ("agc",)}, []),
        (("a", "{threshold}"), {}, ["the command takes no {seed}"]),
    ],
)
def test_doubtful_command_is_told(command: tuple[str, ...], changes: dict[str, Any], says: list[str]) -> None:
    found = doubts(command, "", spec(**changes))
    assert len(found) == len(says)
    for sentence, beginning in zip(found, says, strict=True):
        assert sentence.startswith(beginning)


@pytest.mark.parametrize(
    ("metrics", "is_doubtful"),
    [
        ("", False),
        ("{output}/metrics.jsonl", False),
        ("runs/{trial}-{seed}", False),
        ("metrics.jsonl", True),
        ("runs/{trial}", True),
        ("runs/{seed}", True),
    ],
)
def test_place_that_lanes_share_is_told(metrics: str, is_doubtful: bool) -> None:
    found = doubts(COMMAND, metrics, spec())
    assert [sentence.partition(" is the same for every lane")[1] != "" for sentence in found] == [
        True
    ] * is_doubtful
