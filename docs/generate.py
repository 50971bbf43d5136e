"""Write the reference pages that the code itself knows: settings, command line, HTTP, methods, error codes.

``python docs/generate.py`` writes them, ``--check`` only says which ones differ (exit code 1). A test compares
the pages with the code, so a new setting, command, route or error code is not done until this was run.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

import service.schemas
import tuner.evidence
import tuner.methods
import tuner.records
import tuner.spec

REFERENCE = Path(__file__).parent / "reference"
_NOTE = "<!-- Written by docs/generate.py from the code: change the code, then run it. -->\n"
_BEGIN, _END = "<!-- http codes: begin -->\n", "<!-- http codes: end -->\n"

#: Schemas that get a table of fields on the HTTP page, in this order; the rest are in openapi.json.
_BODIES = (
    "StudyRequest",
    "ClipSetting",
    "ExtendRequest",
    "StudyOut",
    "WarmStart",
    "StudyError",
    "TrialOut",
    "LaneResult",
    "RecommendationAnswer",
    "RecommendationOut",
    "NeighbourOut",
    "Estimate",
    "PairedDifference",
    "FailureRate",
    "BadgeOut",
    "NormSketch",
    "PhaseSketch",
    "LossSketch",
    "LossCurve",
    "NormHistogram",
    "AskRequest",
    "LeaseOut",
    "WaitingOut",
    "HeartbeatRequest",
    "ReportRequest",
    "DirectiveOut",
    "CompleteRequest",
    "RunRecord",
    "CompletedOut",
    "WebhookRequest",
    "WebhookOut",
    "WebhookSecretOut",
    "DeliveryOut",
    "WorkloadOut",
    "MethodOut",
    "KeyRequest",
    "KeyOut",
    "KeyMade",
    "Ready",
    "Problem",
    "FieldProblem",
    "WorkerOut",
    "SlotOut",
)


def render_settings() -> str:
    """The page of every ``CLIPTUNE_`` variable."""
    from service.settings import PREFIX, Settings

    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        shown = f"`{default}`" if str(default) else "empty"
        rows.append((f"`{PREFIX}{name.upper()}`", shown, _bounds(field), field.description or ""))
    return (
        f"# Settings\n\n{_NOTE}\n"
        "Every process reads its settings from environment variables. An unknown `CLIPTUNE_` name is refused at the\n"
        "start, with the nearest real name, because a typo would otherwise silently mean the default. An empty value\n"
        "means the default. `cliptune settings` prints the values in force; `--host` and `--port` of `serve` and\n"
        "`api` win over the variables.\n\n"
        + _table(("variable", "default", "range", "meaning"), rows)
        + "\nOne rule ties two of them together: 4 x `CLIPTUNE_RENEW_SECONDS` must be <= `CLIPTUNE_LEASE_SECONDS`.\n"
        "The test suite also reads `CLIPTUNE_TEST_POSTGRES_URL`: the server on which it may create databases.\n"
    )


def render_cli() -> str:
    """The page of every command with its options."""
    from typer.main import get_command

    from service.cli.main import app

    group: Any = get_command(app)
    parts = [
        f"# Command line\n\n{_NOTE}\n"
        "`cliptune COMMAND --help` prints the same. Results go to standard output, progress and errors to standard\n"
        "error; `--json` puts one JSON document on standard output and nothing else.\n\n"
        "## Exit codes\n\n"
        + _table(
            ("code", "meaning"),
            [
                ("0", "done"),
                (
                    "1",
                    "`recommend`: nothing is stored for this workload, nor for anything similar; `workload check`: "
                    "there is something to fix; `check`: a value should be changed",
                ),
                ("2", "usage or configuration, or a request that the service refused"),
                (
                    "3",
                    "the service or its database can't be reached, or refuses the access key; `check`: only with "
                    "`--on-service-error fail`",
                ),
                ("5", "the study failed or was cancelled (`watch`, and `--wait` of `submit` and `extend`)"),
                ("130", "interrupted"),
            ],
        )
        + "\nThe last line of an error reads `cliptune: SENTENCE [CODE]`; [errors](errors.md) lists the codes.\n"
    ]
    for name, command in _commands(group):
        about = inspect.cleandoc(command.help or "").partition("\n\n")[0]
        parts.append(f"\n## cliptune {name}\n\n{about}\n")
        arguments = [
            (f"`{each.name.upper()}`", each.help or "")
            for each in command.params
            if each.param_type_name == "argument"
        ]
        options = [
            (_option(each), each.help or "")
            for each in command.params
            if each.param_type_name == "option" and not each.hidden
        ]
        if arguments:
            parts.append("\n" + _table(("argument", "meaning"), arguments))
        if options:
            parts.append("\n" + _table(("option", "meaning"), options))
    return "".join(parts)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its full name, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def render_http() -> str:
    """The page of every address with its parameters, and of every body."""
    from service.api.openapi import render

    described = json.loads(render())
    parts = [
        f"# HTTP interface\n\n{_NOTE}\n"
        "The base is the service's address, by default `http://127.0.0.1:8765`. The machine-readable description is\n"
        "[openapi.json](openapi.json); a running service also has it at `/openapi.json`, and `/docs` as a page.\n\n"
        "- Send the access key as `Authorization: Bearer KEY` or `X-API-Key: KEY`; a pipeline may send its identity\n"
        "  token instead: see [keys](../how-to/keys.md#pipelines-without-a-key). `/healthz`, `/readyz`, `/version`,\n"
        "  `/docs`, `/openapi.json` and `/errors/CODE` need none.\n"
        "- A body is JSON and says so: `Content-Type: application/json`, as `curl --json` does.\n"
        "- A submission or an extension carries an `Idempotency-Key`, 1 to 200 printable ASCII characters, remembered\n"
        "  for a week per tenant: the same key with the same body gives the same study (200,\n"
        "  `Idempotency-Replayed: true`).\n"
        "- Every error is `application/problem+json` (RFC 9457) with a stable `code`: see [errors](errors.md).\n"
        "- Every answer carries `X-Request-Id`: the one you sent, or a new one.\n"
        "- Lists are pages: `{items, next_cursor}`. Hand `next_cursor` back as `cursor`; null is the end.\n"
        "- `GET /v1/studies/{study_id}` and both recommendation queries carry an `ETag`: `If-None-Match` answers 304.\n"
        "  So do a badge's two forms, which need no key if a `token` is in the address.\n"
        "- Times are RFC 3339 in UTC. Gradient norms are before clipping. The objective is minimized.\n\n"
        "## Addresses\n"
    ]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            parts.append(f"\n### {method.upper()} {path}\n\n{_plain(operation.get('description', ''))}\n")
            parts.append(f"\nAnswers {', '.join(_answers(operation))}.\n")
            rows = [_parameter(each) for each in operation.get("parameters", [])]
            if rows:
                parts.append("\n" + _table(("parameter", "in", "type", "meaning"), rows))
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                parts.append(f"\nThe body is {_type(content['schema'])}.\n")
    parts.append(
        "\n## Events\n\n"
        "`GET /v1/studies/{study_id}/events` is a stream of Server-Sent Events. Each `data` is one JSON object\n"
        "with `id`, `kind`, `created_at` and `payload`. After a cut, send the last id as `Last-Event-ID` and the\n"
        "stream goes on behind it. It ends after `succeeded`, `failed` or `cancelled`, unless that is `superseded`:\n"
        "the study was extended after it. A reader ignores kinds that it does not know.\n\n"
        + _table(("kind", "when"), _EVENTS)
    )
    parts.append("\n## Bodies\n")
    schemas = described["components"]["schemas"]
    for name in _BODIES:
        about, meanings = _documented(name)
        properties, required = schemas[name]["properties"], schemas[name].get("required", [])
        # openapi.json is sorted by name; here the order of the class helps to read.
        order = _STUDY_FIELDS if name == "StudyRequest" else _declared(_home(name))
        rows = []
        for field in sorted(properties, key=order.index):
            shown = _type(properties[field], schemas)
            default = [_default(properties[field], field in required)] if name in _SENT else []
            rows.append((f"`{field}`", shown, *default, meanings.get(field, "")))
        header = ("field", "type", *(["default"] if name in _SENT else []), "meaning")
        parts.append(f"\n### {name}\n\n{about}\n\n" + _table(header, rows))
    return "".join(parts)


#: Bodies that a caller sends, so that defaults matter.
_SENT = (
    "StudyRequest",
    "ClipSetting",
    "ExtendRequest",
    "AskRequest",
    "HeartbeatRequest",
    "ReportRequest",
    "CompleteRequest",
    "RunRecord",
    "KeyRequest",
    "WebhookRequest",
)
_STUDY_FIELDS = ("name", "priority", *(each.name for each in dataclasses.fields(tuner.spec.StudySpec)))
_EVENTS = [
    ("`queued`", "the study was stored, or extended"),
    ("`acquired`", "a worker took it: `owner`, `attempt`"),
    (
        "`training_started`",
        "a training process is up: `pid`, `device`, `torch`, `seconds` it took to start, and the `slot` that it trains "
        "on; one per device that the study uses",
    ),
    (
        "`probe`",
        "the reference norms were measured: `reference`, and with it the `fingerprint` and the `warm_start`",
    ),
    (
        "`cohort`",
        "a cohort begins: `cohort`, `trials`, `stage` (`search` or `confirm`), `seeds`, `rung_steps`",
    ),
    (
        "`engine`",
        "how the cohort is trained: `path` (`lanes` or `solo`), `num_lanes`, `reason`, and the measured "
        "`lanes_per_second` and `solo_per_second`",
    ),
    (
        "`resumed`",
        "the cohort, or a part of it, goes on from a checkpoint: `index` of its rung, `step`, `lane_steps` kept, "
        "`seconds`",
    ),
    ("`checkpoint`", "the cohort can go on from here: `index`, `step`, `num_bytes`, `seconds` it took"),
    (
        "`checkpoint_failed`",
        "a checkpoint could not be written or used (`error`); training goes on without it",
    ),
    ("`progress`", "`lane_steps` of `total_lane_steps` of the cohort; at most once a second"),
    ("`rung`", "a rung was reached: mean and diverged seeds by trial, and which trials were `pruned`"),
    ("`trial`", "a trial has its result: `setting`, `stage`, `mean`, `num_diverged`"),
    ("`trial_failed`", "a trial's code broke too often"),
    ("`released`", "the worker stopped and gave the study back; another one goes on"),
    ("`reaped`", "the worker was lost: `lost_count` in a row; another one goes on"),
    ("`error`", "the worker's own code broke; it is tried again after `delay_seconds`"),
    ("`cancel_requested`", "somebody cancelled; the training stops within seconds"),
    ("`recommendation`", "the answer was stored: `id`, `version`, `verdict`, `setting`"),
    ("`succeeded`, `failed`, `cancelled`", "the end; with `superseded`, until the study was extended"),
]


def render_errors() -> str:
    """The page of error codes: its table of HTTP codes is written here, the rest is kept as it stands."""
    from service.api.problems import KINDS

    rows = [
        (f"`{code}`", str(kind.status), str(_exit_code(kind.status)), kind.title, kind.advice)
        for code, kind in sorted(KINDS.items())
    ]
    page = (REFERENCE / "errors.md").read_text()
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = _table(("code", "status", "exit", "meaning", "what to do"), rows)
    return before + _BEGIN + table + _END + after


def render_methods() -> str:
    """The page of every clipping method, its threshold and where it is searched."""
    rows = []
    for method in tuner.methods.METHODS.values():
        if method.scale is not None:
            where = f"{method.kappa_low:g} to {method.kappa_high:g} x median {_SCALES[method.scale]}"
        else:
            where = f"{method.threshold_low:g} to {method.threshold_high:g}" if method.has_threshold else ""
        axis = f"`{method.axis}`" if method.has_threshold else ""
        threshold = f"`{method.threshold_name}`: {method.threshold_unit}" if method.has_threshold else ""
        rows.append((f"`{method.name}`", method.summary, threshold, where, axis))
    return (
        f"# Clipping methods\n\n{_NOTE}\n"
        "A setting is written `METHOD:THRESHOLD`, for example `global_norm:0.35`; no clipping is `none`. Ranges are\n"
        "what a study searches unless it gives its own. The search is uniform on the axis: `log` of the threshold,\n"
        "`log_excess` of the threshold - 1, `logit` of its odds. Norms are measured by the probe, before clipping.\n\n"
        + _table(("method", "what it does", "threshold", "searched", "axis"), rows)
        + "\n`tuner.clippers.plain.PlainClipper` does each of them to a module of yours.\n"
    )


_SCALES = {"l2_norm": "gradient norm", "max_abs": "largest element"}


PAGES: dict[Path, Callable[[], str]] = {
    REFERENCE / "settings.md": render_settings,
    REFERENCE / "cli.md": render_cli,
    REFERENCE / "http.md": render_http,
    REFERENCE / "methods.md": render_methods,
    REFERENCE / "errors.md": render_errors,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them.

    Args:
        arguments: ``--check`` or nothing.

    Returns:
        The exit code.
    """
    stale = [page for page, render in PAGES.items() if not page.exists() or page.read_text() != render()]
    for page in stale:
        if "--check" not in arguments:
            page.write_text(PAGES[page]())
        sys.stdout.write(f"{page.relative_to(REFERENCE.parents[1])}\n")
    return 1 if stale and "--check" in arguments else 0


def _exit_code(status: int) -> int:
    """What the command line exits with after this answer: the client's own mapping."""
    from service.client import _ERRORS
    from service.errors import InvalidRequestError, UnavailableError

    kind = UnavailableError if status >= 500 or status == 429 else _ERRORS.get(status, InvalidRequestError)
    return kind.exit_code


def _bounds(field: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(each, name):g}"
        if abs(getattr(each, name)) < 1e6
        else f"{sign} {getattr(each, name)}"
        for each in field.metadata
        for name, sign in signs.items()
        if hasattr(each, name)
    ]
    choices = getattr(field.annotation, "__args__", ())
    return ", ".join(bounds) or ", ".join(f"`{each}`" for each in choices)


_KINDS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "path": "FILE"}


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    kind = str(option.bare_type()).removeprefix("list[").strip("[]<>")
    if choices := re.findall(r"'([^']+)'", kind):
        return f"{names} {' or '.join(f'`{each}`' for each in choices)}"
    return names if option.is_flag else f"{names} {_KINDS.get(kind, kind.upper())}"


def _answers(operation: dict[str, Any]) -> Iterator[str]:
    for status, response in operation["responses"].items():
        if status == "default":
            continue
        if "content" not in response:
            yield f"{status} with text"
        for media, content in response.get("content", {}).items():
            schema = content.get("schema", {})
            name = _type(schema) if "$ref" in schema else ""
            yield f"{status} with {name or f'`{media}`'}"


def _parameter(parameter: dict[str, Any]) -> tuple[str, str, str, str]:
    name = parameter["name"]
    shown = {"idempotency-key": "Idempotency-Key", "last-event-id": "Last-Event-ID"}.get(name, name)
    schema = parameter["schema"]
    limits = {"minimum": ">=", "maximum": "<=", "maxLength": "characters <=", "default": "default"}
    single = next((each for each in schema.get("anyOf", []) if each.get("type") != "null"), schema)
    bounds = [f"{word} {single[key]}" for key, word in limits.items() if key in single]
    about = parameter.get("description", schema.get("description", ""))
    needed = ["required"] if parameter.get("required") and parameter["in"] != "path" else []
    return f"`{shown}`", parameter["in"], ", ".join([_type(schema), *needed, *bounds]), about


def _type(schema: dict[str, Any], schemas: dict[str, Any] | None = None) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if schemas is not None and "enum" in schemas[name]:
            return _type(schemas[name])
        if match := re.fullmatch(r"Page_(\w+)_", name):
            return f"a page of [{match[1]}](#{match[1].lower()})"
        return f"[{name}](#{name.lower()})" if name in _BODIES else name
    if "anyOf" in schema:
        return " or ".join(_type(each, schemas) for each in schema["anyOf"])
    if schema.get("type") == "array":
        inside = schema.get("items") or next(iter(schema.get("prefixItems", [])), {})
        return f"list of {_type(inside, schemas)}"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    return "time" if schema.get("format") == "date-time" else str(schema.get("type", "any"))


def _default(schema: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "required"
    default = schema.get("default")
    if schema.get("type") == "object":
        return "`{}`"
    return "null" if default is None else f"`{json.dumps(default)}`"


def _home(name: str) -> type:
    homes = (service.schemas, tuner.evidence, tuner.records, tuner.spec)
    found: type = next(getattr(module, name) for module in homes if hasattr(module, name))
    return found


def _declared(kind: type) -> tuple[str, ...]:
    """A class's own fields, then those of its bases."""
    return tuple(name for each in kind.__mro__ for name in inspect.get_annotations(each))


def _documented(name: str) -> tuple[str, dict[str, str]]:
    """A class's first paragraph, and what its docstrings say of each field, those of its bases included."""
    kind = _home(name)
    meanings: dict[str, str] = {}
    bases = [*reversed(kind.__mro__)]
    if name == "RecommendationOut":
        bases.insert(0, tuner.evidence.Recommendation)
    for each in bases:
        section = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")[2]
        for match in re.finditer(r"^    (\w+): ((?:.+\n?)(?:^     +.+\n?)*)", section, re.MULTILINE):
            meanings[match[1]] = _plain(" ".join(match[2].split()))
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return _plain(" ".join(first.split())), meanings


def _plain(text: str) -> str:
    """Docstring markup as Markdown, in JSON's words."""
    return re.sub(r"\bNone\b", "null", text.replace("``", "`")).strip()


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    return line(header) + line(("---",) * len(header)) + "".join(map(line, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
