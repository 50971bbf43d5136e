"""Fill a lane's setting into a command: one pass over each argument, literally, and never through a shell.

A value is not looked at again after it was put in, so braces, quotes, spaces or ``$(...)`` in it arrive as they are,
inside the one argument that has the placeholder. ``{{`` and ``}}`` are literal braces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.agent.errors import CommandError
from tuner.spec import ClipSetting

#: Placeholders that every study has, with what they stand for.
PLACEHOLDERS = {
    "threshold": "the threshold; what --off says where nothing is clipped",
    "method": "the clipping method, none for off",
    "setting": "method and threshold as METHOD:THRESHOLD, none for off",
    "learning_rate_scale": "factor on the learning rate",
    "seed": "seed of the training",
    "num_steps": "optimizer steps of a full run",
    "trial": "number of the setting in the study",
    "study": "id of the study",
    "output": "a fresh folder of this lane",
}

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def placeholders_of(text: str) -> frozenset[str]:
    """Names of the placeholders in an argument.

    Args:
        text: an argument of the command.

    Returns:
        The names, whether known or not.

    Raises:
        CommandError: if a brace stands alone.

    Example:
        >>> sorted(placeholders_of("--clip={threshold},{{x}},{seed}"))
        ['seed', 'threshold']
    """
    found = set()
    for token in _TOKEN.finditer(text):
        if token[1] is not None:
            found.add(token[1])
        elif token[0] in ("{", "}"):
            raise CommandError(
                f"{text!r} has a single {token[0]!r}: write {token[0] * 2!r} for a literal brace"
            )
    return frozenset(found)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace every placeholder of an argument, in one pass.

    Args:
        text: an argument that `require_known` has let through.
        values: by name.

    Returns:
        The argument.

    Example:
        >>> fill("--clip={threshold} {{{seed}}}", {"threshold": "{seed}; ls", "seed": "1"})
        '--clip={seed}; ls {1}'
    """

    def replacement(token: re.Match[str]) -> str:
        return values[token[1]] if token[1] is not None else token[0][0]

    return _TOKEN.sub(replacement, text)


def lane_values(
    setting: ClipSetting,
    *,
    seed: int,
    num_steps: int,
    trial: int | None,
    study: str,
    output: str,
    parameters: Mapping[str, Any],
    off: str,
) -> dict[str, str]:
    """What the placeholders of one lane stand for.

    Args:
        setting: of the lane.
        seed: of the lane.
        num_steps: of a full run.
        trial: number of the trial; None for a lane that only measures norms.
        study: id of the study.
        output: the lane's folder.
        parameters: of the study.
        off: text for the threshold of *off*, which has none.

    Returns:
        Texts by name; numbers with every digit, so that nothing is rounded on the way.
    """
    return {name: _text(value) for name, value in parameters.items()} | {
        "threshold": off if setting.threshold is None else repr(setting.threshold),
        "method": setting.method,
        "setting": _exact(setting),
        "learning_rate_scale": repr(setting.learning_rate_scale),
        "seed": str(seed),
        "num_steps": str(num_steps),
        "trial": "probe" if trial is None else str(trial),
        "study": study,
        "output": output,
    }


def require_known(command: Sequence[str], metrics: str, spec: Mapping[str, Any]) -> None:
    """Refuse a command that no lane of the study could be trained with, before anything is leased.

    Args:
        command: as typed.
        metrics: where metrics are read from, which may have placeholders too.
        spec: of the study, as the service gave it.

    Raises:
        CommandError: for an unknown or ambiguous placeholder, a value that no argument can hold, a command that takes
            no threshold, or one that leaves out a learning rate that is tuned.
    """
    parameters = spec["parameters"]
    used = _used((*command, metrics))
    in_command = _used(command)
    known = [*PLACEHOLDERS, *(name for name in parameters if name not in PLACEHOLDERS)]
    if unknown := sorted(used - set(known)):
        raise CommandError(
            f"{{{unknown[0]}}} is no placeholder; the placeholders of this study are "
            f"{', '.join(f'{{{name}}}' for name in known)}; write {{{{ and }}}} for literal braces"
        )
    if ambiguous := sorted(used & set(PLACEHOLDERS) & set(parameters)):
        raise CommandError(
            f"{{{ambiguous[0]}}} may be the placeholder or the study's parameter of that name: submit the study with "
            "another name for the parameter"
        )
    for name in sorted(used & set(parameters)):
        if "\0" in _text(parameters[name]):
            raise CommandError(f"parameter {name!r} contains a NUL, which no argument of a command can hold")
    if not in_command & {"threshold", "setting"}:
        raise CommandError(
            "the command takes no threshold, so every setting would train alike: put {threshold} or {setting} where "
            "your program reads it, for example --max-grad-norm {threshold}"
        )
    if spec.get("learning_rate_low") is not None and not in_command & {"learning_rate_scale", "setting"}:
        raise CommandError(
            "the study tunes the learning rate too, and the command does not take its factor: put "
            "{learning_rate_scale} where your program reads it"
        )


def doubts(command: Sequence[str], metrics: str, spec: Mapping[str, Any]) -> list[str]:
    """What looks wrong with a command that can be used.

    Args:
        command: that `require_known` has let through.
        metrics: the path that metrics are read from, likewise; empty if they are in the output.
        spec: of the study.

    Returns:
        Sentences for the user.
    """
    used = _used(command)
    found = []
    others = sorted({*spec["methods"], (spec.get("current") or {}).get("method", "none")})
    others = [method for method in others if method not in ("global_norm", "none")]
    if others and not used & {"method", "setting"}:
        found.append(
            f"the study searches {', '.join(others)}, and the command is told the threshold alone: it will take it for "
            "whatever it knows; put {method} or {setting} into it"
        )
    if "seed" not in used:
        found.append(
            "the command takes no {seed}: unless it draws a seed itself, all seeds train alike and the error bars mean "
            "nothing"
        )
    if (
        metrics
        and not placeholders_of(metrics) >= {"output"}
        and not placeholders_of(metrics) >= {"trial", "seed"}
    ):
        found.append(
            f"{metrics!r} is the same for every lane: agents that run beside this one would read each other's metrics; "
            "put {output} into it"
        )
    return found


def _used(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in placeholders_of(text)}


def _exact(setting: ClipSetting) -> str:
    text = setting.method if setting.threshold is None else f"{setting.method}:{setting.threshold!r}"
    return text if setting.learning_rate_scale == 1 else f"{text}@{setting.learning_rate_scale!r}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
