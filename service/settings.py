"""Settings of every process: one frozen class, environment variables with the prefix ``CLIPTUNE_``.

Passed in (`create_app(settings)`), never a global; only entry points call `load_settings`. An unknown
``CLIPTUNE_`` variable is refused, because a typo would otherwise silently mean the default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.devices import parse_devices
from service.errors import SettingsError
from service.trust import TrustRule, parse_trust
from tuner.monitors import parse_monitor
from tuner.training.remote import is_url, require_plain
from tuner.workloads.registrations import Registrations, installed, parse_registrations, parse_sources

PREFIX = "CLIPTUNE_"
#: File in ``home`` that holds the first access key; only its owner can read it.
KEY_FILE = "key"
_ALLOW_LIST = "CLIPTUNE_WORKLOADS"
#: Written by ``--report dotenv=`` for the later jobs of a pipeline, any of which may run `cliptune` too.
REPORTED = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("VERDICT", "CURRENT", "RECOMMENDED", "LOW", "HIGH", "STUDY_ID", "STUDY_URL", "STATUS"),
        *("NUM_FAILED", "NUM_WARNINGS", "EXIT_CODE"),
    )
)
#: Not read by the service: by the test suite and the benchmarks, or by nobody here.
FOREIGN = frozenset({"CLIPTUNE_TEST_POSTGRES_URL"}) | REPORTED


class Settings(BaseSettings):
    """Everything an operator can set; each field says its unit, default and range."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = Field(
        default=Path("~/.cliptune"),
        description="Folder of the SQLite database and of the access key made on first start.",
    )
    database_url: str = Field(
        default="",
        description="SQLAlchemy URL, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; "
        "empty means cliptune.db in home.",
    )
    checkpoint_dir: str = Field(
        default="",
        description="Folder of the checkpoints of running studies, readable by the workers alone, or an fsspec URL "
        "(s3://BUCKET/FOLDER); a study goes on from them if it is the same place for all workers. Empty means "
        "checkpoints in home.",
    )
    sqlite_journal_mode: Literal["auto", "wal", "truncate"] = Field(
        default="auto",
        description="auto is WAL from SQLite 3.51.3 on, and TRUNCATE below, where WAL can corrupt the file.",
    )
    database_wait_seconds: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="How long a starting process waits for the database, in seconds.",
    )
    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: int = Field(
        default=8765, ge=0, le=65535, description="Port that the API listens on; 0 picks a free one."
    )
    allowed_hosts: str = Field(
        default="",
        description="Comma-separated names that a request's Host header may carry, besides host and localhost; "
        "* allows all.",
    )
    max_body_bytes: int = Field(
        default=1_000_000, ge=1_000, le=100_000_000, description="Largest request body, in bytes."
    )
    max_trials: int = Field(default=200, ge=2, le=1000, description="Largest num_trials a study may ask for.")
    max_steps: int = Field(
        default=1_000_000, ge=1, le=10_000_000, description="Largest num_steps a study may ask for."
    )
    max_lane_steps: int = Field(
        default=100_000_000,
        ge=1,
        description="Largest budget of a study, in optimizer steps: (num_trials x num_seeds + 8 x fresh seeds) x "
        "num_steps.",
    )
    warm_start: bool = Field(
        default=True,
        description="Whether a new study's search begins with what similar studies of its tenant recommend. Read by "
        "workers.",
    )
    lease_seconds: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long a worker's lease is valid without renewal (TTL), in seconds.",
    )
    renew_seconds: float = Field(
        default=15.0,
        gt=0,
        le=900,
        description="How often a worker renews its lease, in seconds; 4 x renew <= lease.",
    )
    poll_seconds: float = Field(
        default=0.5, gt=0, le=5, description="How often an idle worker looks for a job, in seconds."
    )
    reap_seconds: float = Field(
        default=10.0, gt=0, le=60, description="How often the API ends expired leases, in seconds."
    )
    stall_seconds: float = Field(
        default=600.0,
        gt=0,
        description="A training process without a reported step for this long is killed, in seconds.",
    )
    kill_grace_seconds: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="Time between SIGTERM and SIGKILL to a training process, in seconds.",
    )
    max_lost: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Workers a job may lose in a row without progress before it fails.",
    )
    max_attempts: int = Field(
        default=3, ge=1, le=100, description="Times a job or trial may end in an error before it fails."
    )
    external_studies: int = Field(
        default=8,
        ge=1,
        le=100,
        description="Studies whose trials people train elsewhere that one worker looks after at the same time.",
    )
    max_failed_trials: int = Field(
        default=5, ge=0, description="Trials of a study that may fail before the study fails."
    )
    workloads: str = Field(
        default="",
        description="Workloads of your own that workers may train, NAME=MODULE:ATTRIBUTE separated by commas: a "
        "Workload class or a training function, importable from PYTHONPATH. Read by workers.",
    )
    workload_sources: str = Field(
        default="built_in,entry_points",
        description="Where workloads come from besides CLIPTUNE_WORKLOADS: built_in, entry_points (group "
        "cliptune.workloads of installed packages), both separated by a comma, or none. Read by workers.",
    )
    monitor: str = Field(
        default="",
        description="Where norms, clip fraction, losses and the objective of every trial that ends are shown: "
        "tensorboard:FOLDER, wandb:PROJECT or mlflow:ADDRESS; empty is nowhere. Read by workers.",
    )
    training_threads: int = Field(
        default=1,
        ge=0,
        le=1024,
        description="CPU threads of a training process; 0 lets torch choose. One is fastest for small models and "
        "on a machine that does other work too.",
    )
    devices: str = Field(
        default="auto",
        description="What this worker trains on, one slot each, separated by commas: cuda:0, or cpu, or cpu:2 for two "
        "threads instead of CLIPTUNE_TRAINING_THREADS. auto is every CUDA device that is found, or one cpu.",
    )
    studies: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Studies that a worker trains at the same time, sharing its slots; 0 is as many as it has slots.",
    )
    training_environment: str = Field(
        default="",
        description="Environment variables that training processes see besides the usual ones, by name or by prefix "
        "ending in an underscore, separated by commas: AWS_, for example, for checkpoints in S3.",
    )
    launcher: Literal["local", "ray"] = Field(
        default="local",
        description="Where a worker's training processes run: local is this machine, ray a cluster.",
    )
    ray_address: str = Field(
        default="auto",
        description="HOST:PORT of the cluster's head; auto is the cluster that this machine is a node of.",
    )
    ray_slots: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="Trainings that run or wait for a node of the cluster at the same time, per worker.",
    )
    ray_gpus: float = Field(
        default=1.0,
        ge=0,
        le=64,
        description="GPUs that a training asks the cluster for; fractions share one.",
    )
    ray_cpus: float = Field(
        default=1.0, ge=0, le=1024, description="CPU cores that a training asks the cluster for."
    )
    ray_runtime_env: str = Field(
        default="",
        description="JSON file with Ray's runtime environment, for workloads that are not installed on the nodes.",
    )
    ray_allow_insecure: bool = Field(
        default=False,
        description="Attach even to a cluster without token authentication, or of a version with known holes.",
    )
    webhook_allow: str = Field(
        default="",
        description="Hosts, addresses and networks (10.1.0.0/16), separated by commas, that webhooks may go to even if "
        "they are private, and by plain http; empty allows none. Read by the API, by serve and by deliver.",
    )
    webhook_ports: str = Field(
        default="443,8443", description="Ports that webhooks may go to, separated by commas."
    )
    webhook_ca_file: str = Field(
        default="",
        description="PEM file of certificate authorities that the receivers of webhooks may have besides the system's.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto is console on a terminal and JSON lines elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line that is written."
    )
    url: str = Field(
        default="",
        description="Address of the service for the client; empty means the one served from home, or port 8765. The "
        "API puts it into the addresses of badges; empty means the one that was asked.",
    )
    api_key: SecretStr = Field(
        default=SecretStr(""), description="Access key for the client; empty means the one kept in home."
    )
    id_token: SecretStr = Field(
        default=SecretStr(""),
        description="Identity token of a pipeline for the client, where there is no access key; GitLab's id_tokens "
        "fill it in.",
    )
    oidc: str = Field(
        default="",
        description="JSON list of rules that say whose pipelines may call the API with identity tokens, without a "
        "key: issuer, audience, match, tenant, scopes. Empty is off. Read by the API.",
    )

    @model_validator(mode="after")
    def _lease_outlives_renewals(self) -> Settings:
        if 4 * self.renew_seconds > self.lease_seconds:
            raise ValueError(
                f"CLIPTUNE_RENEW_SECONDS is {self.renew_seconds:g} and CLIPTUNE_LEASE_SECONDS {self.lease_seconds:g}: "
                "4 x renew must be <= lease, or a single slow renewal loses the job"
            )
        if self.kill_grace_seconds >= self.lease_margin_seconds:
            raise ValueError(
                f"CLIPTUNE_KILL_GRACE_SECONDS is {self.kill_grace_seconds:g} and a quarter of CLIPTUNE_LEASE_SECONDS "
                f"{self.lease_margin_seconds:g}: the grace must be shorter, or a training outlives its lease"
            )
        return self

    @model_validator(mode="after")
    def _checkpoint_url_is_plain(self) -> Settings:
        # Not a field's validator: its sentence would repeat the value, secrets and all.
        if is_url(self.checkpoint_dir):
            try:
                require_plain(self.checkpoint_dir)
            except ValueError as error:
                raise ValueError(f"CLIPTUNE_CHECKPOINT_DIR {error}") from None
        return self

    @field_validator("workloads")
    @classmethod
    def _names_targets(cls, text: str) -> str:
        parse_registrations(text, source=_ALLOW_LIST)
        return text

    @field_validator("workload_sources")
    @classmethod
    def _names_sources(cls, text: str) -> str:
        parse_sources(text)
        return text

    @field_validator("monitor")
    @classmethod
    def _names_a_monitor(cls, text: str) -> str:
        if text:
            parse_monitor(text)
        return text

    @field_validator("devices")
    @classmethod
    def _names_devices(cls, text: str) -> str:
        parse_devices(text, threads=1)
        return text

    @field_validator("training_environment")
    @classmethod
    def _passes_nothing_of_ours(cls, text: str) -> str:
        for each in (item.strip() for item in text.split(",") if item.strip()):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", each):
                raise ValueError(f"{each!r} is no name of an environment variable")
            if each.startswith(PREFIX) or (each.endswith("_") and PREFIX.startswith(each)):
                raise ValueError(
                    f"{each!r} would show training code this service's own settings: it never may"
                )
        return text

    @field_validator("oidc")
    @classmethod
    def _lists_rules(cls, text: str) -> str:
        parse_trust(text)
        return text

    @property
    def passed_on(self) -> tuple[str, ...]:
        """Names and prefixes of variables that training processes see besides the usual ones."""
        return tuple(each.strip() for each in self.training_environment.split(",") if each.strip())

    @property
    def trust(self) -> tuple[TrustRule, ...]:
        """The rules for identity tokens, in their order."""
        return parse_trust(self.oidc)

    @property
    def registrations(self) -> Registrations:
        """The workloads of this installation; nothing is imported."""
        allowed = parse_registrations(self.workloads, source=_ALLOW_LIST)
        return installed(parse_sources(self.workload_sources), allowed)

    @property
    def home_path(self) -> Path:
        """``home`` with ~ resolved."""
        return self.home.expanduser()

    @property
    def resolved_database_url(self) -> str:
        """``database_url``, or the SQLite file in ``home``."""
        return self.database_url or f"sqlite:///{self.home_path / 'cliptune.db'}"

    @property
    def checkpoint_root(self) -> str:
        """``checkpoint_dir`` as a URL or an absolute path, or ``checkpoints`` in ``home``."""
        if is_url(self.checkpoint_dir):
            return self.checkpoint_dir.rstrip("/")
        named = (
            Path(self.checkpoint_dir).expanduser() if self.checkpoint_dir else self.home_path / "checkpoints"
        )
        return str(named.absolute())

    @property
    def lease_margin_seconds(self) -> float:
        """How long before the lease's end a worker that could not renew kills its training: TTL / 4."""
        return self.lease_seconds / 4


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings from the environment, refusing unknown ``CLIPTUNE_`` names.

    Args:
        environ: the environment to check for unknown names; None is the process's own.
        **overrides: values that win over the environment, by field name.

    Returns:
        The settings.

    Raises:
        SettingsError: for an unknown name or a value out of bounds; names the variable.
    """
    names = {PREFIX + field.upper(): field for field in Settings.model_fields}
    for variable in sorted(os.environ if environ is None else environ):
        if variable.startswith(PREFIX) and variable not in names and variable not in FOREIGN:
            near = difflib.get_close_matches(variable, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `cliptune settings` lists them"
            raise SettingsError(f"{variable} is no setting of cliptune{hint}")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(dict(each)) for each in error.errors())) from None


def _sentence(error: Mapping[str, Any]) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{PREFIX}{str(error['loc'][0]).upper()}={error['input']!r}: {error['msg']}"
