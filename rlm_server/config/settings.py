"""What an operator can set: environment variables `RLM_…` and one TOML file, checked at start.

Without any of it the server runs with its embedded defaults: loopback, a data directory, SQLite, a development tenant.
`docs/settings.md` lists all of it, and is made from what is here (see `page`).
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from rlm_server.broker.limits import CallLimits
from rlm_server.broker.providers.registry import ProviderSpec
from rlm_server.config import sources
from rlm_server.config.declared import (
    DefaultWords,
    Unit,
    extended,
    key_fields,
    limit_fields,
    overlaid,
    own_limit_fields,
)
from rlm_server.config.described import DELIMITER, PREFIX
from rlm_server.ledger import BUDGET_SPANS, NANO, Limit
from rlm_server.repl.limits import RunLimits
from rlm_server.shares.limits import TenantLimits
from rlm_server.tenants.terms import LEAST_WEIGHT, MOST_WEIGHT, OwnTerms, Terms
from rlm_server.webhooks.hosts import Hosts
from sandbox.limits import Limits, PoolLimits, declared

Usd = Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=16, decimal_places=9), Unit("US dollars")]

UsdPerMillion = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9), Unit("US dollars for 1,000,000 tokens")]

Seconds = Annotated[float, Field(gt=0), Unit("seconds")]

Pattern = Annotated[str, Field(min_length=1, max_length=200)]

Bytes = Annotated[int, Field(ge=0), Unit("bytes")]

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


_WHEEL = re.compile(r"(?P<path>.+\.whl)(#sha256=(?P<sha256>[0-9a-f]{64}))?")


class ConfigError(Exception):
    """A setting is wrong; the message names it and says what it may be."""


def data_dir() -> Path:
    """Return where the server keeps its data: `$XDG_DATA_HOME/rlm-server`."""
    return Path(os.environ.get("XDG_DATA_HOME", "") or Path.home() / ".local" / "share") / "rlm-server"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)  # most of them are parts, and never built alone


class DeploymentTool(_Strict):
    """Tools that the deployment answers, for runs that name them.

    One table for each, by its name. Either an entry point of the group `rlm_server.tools` answers it, an async function
    of the arguments and of who calls; or an HTTP endpoint, which is sent both as JSON by POST, and returns JSON.
    """

    entry_point: str = ""
    """The name of the entry point."""
    url: str = ""
    """The endpoint, at a host of `tool_hosts`."""
    authorization: SecretStr = SecretStr("")
    """The endpoint's `authorization` header, where it wants one."""
    description: str = ""
    """What it does and returns, for models."""
    arguments_schema: str = ""
    """Its arguments: a JSON Schema as text. None where empty."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3_600), Unit("seconds")] = 30.0
    """How long one call may take."""
    result_bytes: Annotated[int, Field(gt=0, le=1 << 20), Unit("bytes")] = 1 << 20
    """The most that one call may return."""
    cost_usd: Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9), Unit("US dollars")] = Decimal(0)
    """What one call costs the run, whatever comes of it."""
    tenants: list[str] = Field(default_factory=list)
    """The tenants that may use it, by names or patterns; all where empty."""


class CompatibleModel(_Strict):
    """Models at OpenAI-compatible endpoints.

    One table for each, by the name that callers use. The price may be left out here where `rlm-server prices set` has
    stated one. Where a cache rate is left out, input read from the endpoint's cache, or written to it, costs as other
    input does.
    """

    base_url: str
    """The endpoint, without `/chat/completions`."""
    upstream: str = ""
    """The name the endpoint knows the model by; the name callers use where empty."""
    api_key: SecretStr = SecretStr("")
    """The endpoint's key, where it wants one."""
    input_usd_per_million: UsdPerMillion | None = None
    """What input costs, 0 included."""
    output_usd_per_million: UsdPerMillion | None = None
    """What output costs, 0 included."""
    cache_read_usd_per_million: UsdPerMillion | None = None
    """What input costs that is read from the endpoint's cache."""
    cache_write_usd_per_million: UsdPerMillion | None = None
    """What input costs that is written to the endpoint's cache."""
    context_window: Annotated[int, Field(gt=0), Unit("tokens")] | None = None
    """The most input that the model takes."""

    @model_validator(mode="after")
    def _has_a_whole_price_or_none(self) -> Self:
        said = {name for name in self.model_fields_set if name.endswith("_usd_per_million")}
        for name in ("input_usd_per_million", "output_usd_per_million"):
            if said and getattr(self, name) is None:
                raise ValueError(f"{name} is missing, with {', '.join(sorted(said))} given")
        return self


class ImageSettings(_Strict):
    """Golden images.

    What a session has that starts from one: a table for each, by its name.
    """

    imports: list[ModuleName] = Field(default_factory=list)
    """The modules that are imported already, of the standard library, of numpy and pandas, or of a wheel."""
    wheels: list[str] = Field(default_factory=list, max_length=64)
    """Wheels that are installed: paths of files, each of which may end in `#sha256=` and the hash that it must have.
    They are read when the server starts. Only pure Python is taken."""

    @field_validator("wheels")
    @classmethod
    def _are_wheels(cls, value: list[str]) -> list[str]:
        for source in value:
            if not _WHEEL.fullmatch(source):
                raise ValueError(
                    f"{source[:200]!r} must be the path of a .whl, or that and #sha256= with 64 lower-case hex digits"
                )
        return value

    @property
    def wheel_files(self) -> list[tuple[Path, str]]:
        """The path of each wheel, and the SHA-256 that it must have; empty where any will do."""
        found = [_WHEEL.fullmatch(source) for source in self.wheels]
        return [(Path(one["path"]), one["sha256"] or "") for one in found if one]


@extended(limit_fields(Limits))
class SandboxLimits(_Strict):
    """Sandboxes.

    What one session's sandbox may use at most. A request may lower what the protocol names, and raise none of it.
    """


@extended(
    own_limit_fields(TenantLimits, "the server's"),
    own_limit_fields(RunLimits, "the server's"),
    own_limit_fields(Limits, "the `sandbox`'s"),
)
class TenantSettings(_Strict):
    """One tenant's settings.

    What is another for one tenant: a table for each, by its name. What one does not say is as for all.
    """

    weight: Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT), Unit("shares")] = 1
    """Its share of a provider's calls in flight, where others wait for that provider too."""
    models: list[Pattern] = Field(default_factory=list)
    """The models it may ask, by names or patterns (`gpt-*`); all where empty."""
    images: list[Pattern] = Field(default_factory=list)
    """The images its sandboxes may start from, in the same form; all where empty."""
    fallbacks: bool | list[Pattern] = False
    """Which of the models that `fallbacks` names may answer its calls: all, none, or these."""
    redact_contents: bool | None = None
    """Whether contents of its runs are left out of what is kept and told of them."""

    @property
    def terms(self) -> OwnTerms:
        """What this says of the tenant."""
        fallbacks = self.fallbacks if isinstance(self.fallbacks, list) else ["*"] * self.fallbacks
        names = [name for kind in (TenantLimits, RunLimits, Limits) for name in declared(kind)]
        limits = {name: value for name in names if (value := getattr(self, name)) is not None}
        return OwnTerms(
            tuple(self.models),
            tuple(self.images),
            tuple(fallbacks),
            self.weight,
            limits,
            redact_contents=self.redact_contents,
        )


class ServingSettings(_Strict):
    """Serving."""

    data_dir: Annotated[Path, DefaultWords("`$XDG_DATA_HOME/rlm-server`, else `~/.local/share/rlm-server`")] = Field(
        default_factory=data_dir
    )
    """Where the server keeps what it keeps: database, contexts, hibernating sessions, stated prices, the key."""
    listen: str = "127.0.0.1:7400"
    """The address to serve on: host:port. Port 0 takes a free one. Off loopback it needs TLS, or `plaintext`."""
    tls_cert: Path | None = None
    """The server's certificate and those that lead to its authority, a PEM file. It is read again when it changes."""
    tls_key: Path | None = None
    """The key of that certificate, a PEM file."""
    tls_client_ca: Path | None = None
    """The authorities of clients' certificates, a PEM file. Where it is given, a client must show a certificate of
    theirs."""
    tls_tenants: dict[str, str] = Field(default_factory=dict)
    """Tenants by the names in clients' certificates: a URI or a DNS name, or where it has neither the common name. A
    call that sends no key is that tenant's."""
    plaintext: bool = False
    """Serve without TLS off loopback: a proxy adds it."""
    metrics_listen: str = ""
    """Where metrics are served over HTTP, to anyone who asks there: host:port, or a port of loopback; nowhere where
    empty."""
    database_url: SecretStr = SecretStr("")
    """A Postgres database (`postgresql://…`) that keeps accounts, runs and contexts' metadata, for this server alone. A
    SQLite file in the data directory does where this is empty."""
    log_json: bool = False
    """Whether the log is JSON, an object a line, instead of text."""
    log_calls: bool = True
    """Whether each call is a line of the log: its method, tenant, id, status, reason and how long it took."""
    health_listen: str = ""
    """Where health alone is served, without TLS, for probes that speak none: host:port, or a port of loopback; nowhere
    where empty."""
    drain_seconds: Annotated[float, Field(ge=0), Unit("seconds")] = 1
    """How long health says `NOT_SERVING`, and no new work begins, before the server that stops goes on to stop. It goes
    on at once where nobody watches health, and nobody has asked for it for a minute."""
    grace_seconds: Annotated[float, Field(ge=0), Unit("seconds")] = 10
    """What calls in flight get to finish after that."""

    @model_validator(mode="after")
    def _has_a_whole_certificate_or_none(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing, there = ("tls_key", "tls_cert") if self.tls_key is None else ("tls_cert", "tls_key")
            raise ValueError(f"{missing} is missing, with {there} given")
        if self.tls_cert is None and self.tls_client_ca is not None:
            raise ValueError("tls_cert is missing, with tls_client_ca given")
        if self.tls_client_ca is None and self.tls_tenants:
            raise ValueError("tls_client_ca is missing, with tls_tenants given")
        if self.tls_cert is not None and self.plaintext:
            raise ValueError("plaintext is true, with tls_cert given")
        return self

    @property
    def database(self) -> str | Path:
        """Where the database is: a URL, or a file in the data directory."""
        return self.database_url.get_secret_value() or self.data_dir / "rlm.sqlite"

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must be a URL postgresql://…, or empty for SQLite")
        return value

    @field_validator("metrics_listen", "health_listen")
    @classmethod
    def _is_address_or_port(cls, value: str) -> str:
        return cls._is_address(f"127.0.0.1:{value}" if value.isdigit() else value) if value else ""

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be host:port")
        return value


@extended(key_fields(), limit_fields(CallLimits))
class ModelSettings(_Strict):
    """Models and calls.

    `models` lists models at OpenAI-compatible endpoints. The root model writes a run's code, its sub-model answers
    `llm_query`.
    """

    model: str = ""
    """The root model where a run names none; by default the best there is a key for, else the scripted one."""
    sub_model: str = ""
    """The sub-model where a run or session names none."""
    client_model: bool = False
    """Whether runs may name the model `client`: a client of the tenant's plays it, free of charge. A tenant that has
    `models` of its own must have it among them."""
    models: dict[str, CompatibleModel] = Field(default_factory=dict)
    """Models at OpenAI-compatible endpoints, by the names callers use."""
    failure_costs: dict[str, str] = Field(default_factory=dict)
    """What a failed call counts as that a provider may have billed, by provider or model: `full` (its whole worst
    case), `input` (that of its input) or `none`. `full` where nothing is said."""
    fallbacks: dict[str, list[str]] = Field(default_factory=dict)
    """Models that may answer in place of one that stays busy or cannot be reached, in order, where a tenant allows
    it."""

    @property
    def call_limits(self) -> CallLimits:
        """The limits of model calls."""
        return overlaid(CallLimits(), self)

    def api_key(self, provider: ProviderSpec) -> str:
        """Return the key of a provider; empty where there is none."""
        key: SecretStr = getattr(self, provider.key_setting)
        return key.get_secret_value()


class BudgetSettings(_Strict):
    """Budgets."""

    hour_budget_usd: Usd | None = None
    """What a tenant may spend in every hour of UTC that was told no other budget."""
    day_budget_usd: Usd | None = None
    """What a tenant may spend in every day of UTC that was told no other budget."""
    month_budget_usd: Usd | None = None
    """What a tenant may spend in every month of UTC that was told no other budget."""
    tenant_budget_usd: Usd = Decimal(100)
    """What a tenant may spend in all that was told no other budget."""
    run_budget_usd: Usd = Decimal(1)
    """What a run or session may spend that names no budget."""
    deployment_tools: dict[str, DeploymentTool] = Field(default_factory=dict)
    """Tools that the deployment answers, by the names that runs and their code use."""
    tool_hosts: list[str] = Field(default_factory=list)
    """Hosts that endpoints of tools may be at, in the form of `webhook_hosts`."""
    webhook_hosts: list[str] = Field(default_factory=list)
    """Where tenants may have the events of their budgets sent: hosts or patterns (`hooks.example.com`,
    `*.example.com`), with a port where it is not the usual one, and `http://` before those that may be sent to without
    TLS. An address or a network (`10.0.0.0/8`) allows addresses that are not public. Nowhere where empty."""

    @field_validator("webhook_hosts")
    @classmethod
    def _are_hosts(cls, value: list[str]) -> list[str]:
        Hosts(value)
        return value


@extended(limit_fields(RunLimits))
class RunSettings(_Strict):
    """Runs.

    A request may lower what the protocol names, and raise none of it. Sessions have `wall_seconds`, `batch`,
    `failed_calls`, `run_failed_calls`, `memo_bytes` and `sub_tokens`.
    """

    runs: Annotated[int, Field(ge=1, le=1024), Unit("runs")] = 64
    """Runs that go on at once, of all tenants together."""
    default_depth: Annotated[int, Field(ge=0, le=16), Unit("levels")] = 2
    """Levels of child RLMs of a run whose request names no `max_depth`; where `max_depth` is less, that."""
    redact_contents: bool = False
    """Whether contents of tenants' runs are left out of what is kept and told of them, where a tenant was told nothing
    else."""
    model_advice: dict[str, Annotated[str, Field(max_length=2_000)]] = Field(default_factory=dict)
    """What models are told besides their rules, by patterns of their names (`*qwen*`); an empty text takes away what
    the server tells them for a pattern of its own."""


@extended(limit_fields(PoolLimits))
class SessionSettings(_Strict):
    """Sessions and their workers.

    A sandbox is a session's, whether a run has it or a caller.
    """

    sandbox: SandboxLimits = Field(default_factory=SandboxLimits)
    """What a sandbox may use at most."""
    images: dict[str, ImageSettings] = Field(default_factory=dict)
    """Golden images beside `core` and `data`, by their names."""
    session_idle_seconds: Seconds = 86_400
    """A session without a turn for so long is ended."""
    session_seconds: Seconds = 7 * 86_400
    """A session that exists for so long is ended."""
    budget_wait_seconds: Seconds = 60
    """How long a session's turn waits for room in budgets that other turns of its tenant hold."""
    unconfined: bool = False
    """Serve several tenants even where worker processes cannot be confined."""

    @property
    def pool_limits(self) -> PoolLimits:
        """The limits of the pool of sessions."""
        return overlaid(PoolLimits(), self)

    @field_validator("images")
    @classmethod
    def _are_others(cls, value: dict[str, ImageSettings]) -> dict[str, ImageSettings]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name) or name in ("core", "data"):
                raise ValueError(f"{name[:50]!r} cannot name an image: letters, digits and -; core and data exist")
        return value


class ContextSettings(_Strict):
    """Contexts."""

    max_context_bytes: Annotated[int, Field(ge=1, le=1 << 40), Unit("bytes")] = 64 << 30
    """One context, in bytes of UTF-8."""
    context_store: str = ""
    """URL of an object store that keeps the contexts (`s3://bucket/prefix`); the data directory keeps them where empty.
    No other server may have the same."""
    context_cache_bytes: Bytes = 100 << 30
    """Contexts kept in the data directory beside `context_store`; those in use may be more."""
    upload_idle_seconds: Seconds = 300
    """An upload's stream of which nothing comes for so long is ended, and so is one that is slower than
    `upload_bytes_per_second` for so long."""
    upload_bytes_per_second: Annotated[int, Field(ge=0), Unit("bytes")] = 1_024
    """What an upload's stream must bring each second, on average over `upload_idle_seconds`; what the server keeps it
    waiting does not count."""
    disk_reserve_bytes: Bytes = 1 << 30
    """What uploads leave free on the disk of the data directory, for the database and for sessions. One that would not
    is refused as on a full disk."""
    upload_rest_seconds: Seconds = 86_400
    """An upload that broke off can be gone on with for so long."""


@extended(limit_fields(TenantLimits))
class ShareSettings(_Strict):
    """Shares of the server.

    What one tenant may have of the server itself, at once and for long, so that others find it as if they were alone.
    """


class TenantList(_Strict):
    """Tenants with settings of their own."""

    tenants: dict[str, TenantSettings] = Field(default_factory=dict)
    """Tenants with other limits, by name."""


class Settings(
    ServingSettings,
    ModelSettings,
    BudgetSettings,
    RunSettings,
    SessionSettings,
    ContextSettings,
    ShareSettings,
    TenantList,
    BaseSettings,
):
    """The server's settings. Money is in US dollars, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", env_nested_delimiter=DELIMITER, hide_input_in_errors=True
    )

    def tenant_limits(self) -> TenantLimits:
        """Return what a tenant may have of the server itself that has no limits of its own."""
        return overlaid(TenantLimits(), self)

    def run_limits(self) -> RunLimits:
        """Return what runs may use at most, those of a tenant without limits of its own."""
        return replace(overlaid(RunLimits(), self), sandbox=overlaid(Limits(), self.sandbox))

    def terms(self) -> Terms:
        """Return the terms of all tenants, as far as the settings say them."""
        limits = self.run_limits()
        usds = {span: getattr(self, f"{span}_budget_usd") for span in BUDGET_SPANS}
        windows = {span: Limit(nano_usd=nano(usd)) for span, usd in usds.items() if usd is not None}
        return Terms(
            (self.tenant_limits(), limits, limits.sandbox),
            for_all=OwnTerms(
                budget=Limit(nano_usd=nano(self.tenant_budget_usd)),
                windows=windows,
                redact_contents=self.redact_contents,
            ),
            configured={name: own.terms for name, own in self.tenants.items()},
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments first, then the environment, then the file."""
        file = InitSettingsSource(settings_cls, dict(sources.File.read().content))
        return init_settings, sources.Environment(settings_cls), file

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """Read the settings, provider keys from their usual variables included.

        Raises:
            ConfigError: settings are wrong, or do not exist; the message names all of them.
        """
        wrong = sources.unknown_variables(cls)
        try:
            settings = cls(**given)
        except ValidationError as error:
            wrong += sources.problems(error, cls, given)
        except sources.SourceError as error:
            wrong.append(str(error))
        if wrong:
            raise ConfigError(f"the configuration is wrong: {'; '.join(wrong)}")
        return settings


def nano(usd: Decimal) -> int:
    """Return US dollars in nano-US-dollars."""
    return int(usd * NANO)
