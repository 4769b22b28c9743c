"""What an operator can set: environment variables `RLM_…` and one TOML file, checked at start.

Without any of it the server runs with its embedded defaults: loopback, a data directory, SQLite, a development tenant.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from rlm_server.ledger.amounts import NANO
from sandbox.limits import Limits

Usd = Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=16, decimal_places=9)]

UsdPerMillion = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9)]
"""A rate: US dollars for 1,000,000 tokens."""

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


class ConfigError(Exception):
    """A setting is wrong; the message names it and says what it may be."""


def data_dir() -> Path:
    """Return where the server keeps its data: `$XDG_DATA_HOME/rlm-server`."""
    return Path(os.environ.get("XDG_DATA_HOME", "") or Path.home() / ".local" / "share") / "rlm-server"


class CompatibleModel(BaseModel, extra="forbid"):
    """A model at an OpenAI-compatible endpoint, with the price the operator states for it (0 included).

    The price may be left out here where `rlm-server prices set` has stated one. Where a cache rate is left out, input
    read from the endpoint's cache, or written to it, costs as other input does.
    """

    base_url: str
    upstream: str = ""
    """The name the endpoint knows the model by; the name callers use where empty."""
    api_key: SecretStr = SecretStr("")
    input_usd_per_million: UsdPerMillion | None = None
    output_usd_per_million: UsdPerMillion | None = None
    cache_read_usd_per_million: UsdPerMillion | None = None
    cache_write_usd_per_million: UsdPerMillion | None = None
    context_window: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_a_whole_price_or_none(self) -> Self:
        said = {name for name in self.model_fields_set if name.endswith("_usd_per_million")}
        for name in ("input_usd_per_million", "output_usd_per_million"):
            if said and getattr(self, name) is None:
                raise ValueError(f"{name} is missing, with {', '.join(sorted(said))} given")
        return self


class SandboxLimits(BaseModel, extra="forbid"):
    """Limits of sandboxes; the units are those of `sandbox.limits.Limits`."""

    memory_bytes: int = Field(default=512 << 20, ge=128 << 20, le=4 << 30)
    turn_seconds: float = Field(default=60, gt=0, le=3600)
    output_bytes: int = Field(default=64 << 10, ge=1024, le=16 << 20)
    frame_bytes: int = Field(default=32 << 20, ge=1024, le=256 << 20)
    door_bytes: int = Field(default=256 << 20, ge=1024, le=4 << 30)
    door_calls: int = Field(default=10_000, ge=1, le=1_000_000)
    door_waiting: int = Field(default=1_000, ge=1, le=10_000)
    file_bytes: int = Field(default=64 << 20, ge=0, le=1 << 30)
    files: int = Field(default=1_000, ge=1, le=100_000)
    open_files: int = Field(default=64, ge=8, le=1_024)

    def limits(self, beside: SandboxLimits | None = None) -> Limits:
        """Return the limits; what is not set here is as in `beside`."""
        own = self.model_dump(include=set(SandboxLimits.model_fields), exclude_unset=beside is not None)
        return Limits(**(beside.model_dump() if beside else {}) | own)


class TenantSettings(SandboxLimits):
    """What is another for one tenant."""

    context_bytes: int | None = Field(default=None, ge=0)
    """As in `Settings`."""
    weight: float = Field(default=1, ge=0.01, le=100)
    """Its share of a provider's calls in flight, where others wait for that provider too."""
    fallbacks: bool | list[str] = False
    """Which of the models that `Settings.fallbacks` names may answer its calls: all, none, or these."""


class _Environment(EnvSettingsSource):
    """Reads fractions as decimals, as the file's are: some of them are money, and a float holds few amounts exactly."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ARG002
        return json.loads(value, parse_float=Decimal)


class Settings(BaseSettings):
    """The server's settings. Money is in US dollars, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="RLM_", extra="forbid", env_nested_delimiter="__", hide_input_in_errors=True
    )

    data_dir: Path = Field(default_factory=data_dir)
    listen: str = "127.0.0.1:7400"
    metrics_listen: str = ""
    """Where metrics are served over HTTP, to anyone who asks there: host:port, or a port of loopback; nowhere where
    empty."""
    database_url: SecretStr = SecretStr("")
    """A Postgres database (`postgresql://…`) that keeps accounts, runs and contexts' metadata, for this server alone. A
    SQLite file in the data directory does where this is empty."""

    anthropic_api_key: SecretStr = SecretStr("")
    openai_api_key: SecretStr = SecretStr("")
    models: dict[str, CompatibleModel] = Field(default_factory=dict)
    """Models at OpenAI-compatible endpoints, by the names callers use."""
    model: str = ""
    """The root model where a run names none; by default the best there is a key for, else the scripted one."""
    sub_model: str = ""

    hour_budget_usd: Usd | None = None
    day_budget_usd: Usd | None = None
    month_budget_usd: Usd | None = None
    """What the development tenant may spend in every hour, day and month of UTC."""
    tenant_budget_usd: Usd = Decimal(100)
    """What the development tenant may spend in all."""
    run_budget_usd: Usd = Decimal(1)
    """What a run may spend that names no budget."""

    sessions: int = Field(default=256, ge=1, le=4096)
    runs: int = Field(default=64, ge=1, le=1024)
    max_turns: int = Field(default=30, ge=1, le=1000)
    max_depth: int = Field(default=4, ge=0, le=16)
    wall_seconds: float = Field(default=3600, gt=0, le=7 * 86400)
    call_seconds: float = Field(default=180, gt=0, le=3600)
    """One attempt at a model call."""
    provider_calls: int = Field(default=64, ge=1, le=10_000)
    """Calls in flight to one provider, with one key."""
    tenant_calls: int = Field(default=256, ge=1, le=10_000)
    """Calls of one tenant that are under way, or wait for money or a provider; its others wait for these."""
    run_calls: int = Field(default=64, ge=1, le=10_000)
    """The same of one run."""
    fallbacks: dict[str, list[str]] = Field(default_factory=dict)
    """Models that may answer in place of one that stays busy or cannot be reached, in order; see `TenantSettings`."""
    images: dict[str, list[ModuleName]] = Field(default_factory=dict)
    """Golden images beside `core` and `data`: a name, and the modules that are imported."""
    sandbox: SandboxLimits = Field(default_factory=SandboxLimits)
    """What a sandbox may use at most; a request may lower it."""
    tenants: dict[str, TenantSettings] = Field(default_factory=dict)
    """Tenants with other limits, by name; what one does not say is as in `sandbox` and `context_bytes`."""
    rest_seconds: float = Field(default=300, gt=0)
    """A session that rests so long hibernates; its next turn wakes it."""
    session_idle_seconds: float = Field(default=86_400, gt=0)
    """A session without a turn for so long is ended."""
    session_seconds: float = Field(default=7 * 86_400, gt=0)
    """A session that exists for so long is ended."""
    tenant_sessions: int = Field(default=10_000, ge=1)
    """Sessions of one tenant, those that hibernate included."""
    worker_bytes: int = Field(default=8 << 30, ge=256 << 20)
    """Memory of one worker process; one that holds more is killed, and its sessions go on in another."""
    context_bytes: int = Field(default=100 << 30, ge=0)
    """Contexts of one tenant together, in bytes of UTF-8; where a text has wider characters, up to four times as much
    is stored."""
    max_context_bytes: int = Field(default=64 << 30, ge=1, le=1 << 40)
    """One context, in bytes of UTF-8."""
    context_retention_days: float = Field(default=0, ge=0)
    """A context that nobody has used for so long, nor holds, is removed; 0 keeps all for ever."""
    context_store: str = ""
    """URL of an object store that keeps the contexts (`s3://bucket/prefix`); the data directory keeps them where empty.
    No other server may have the same."""
    context_cache_bytes: int = Field(default=100 << 30, ge=0)
    """Contexts kept in the data directory beside `context_store`; those in use may be more."""
    upload_idle_seconds: float = Field(default=300, gt=0)
    """An upload's stream of which nothing comes for so long is ended."""
    upload_rest_seconds: float = Field(default=86_400, gt=0)
    """An upload that broke off can be gone on with for so long."""
    unconfined: bool = False
    """Serve several tenants even where worker processes cannot be confined."""
    grace_seconds: float = Field(default=10, ge=0)
    """What calls in flight get to finish when the server stops."""

    def context_quota(self, tenant: str) -> int:
        """Return how many bytes a tenant's contexts may have together."""
        own = self.tenants[tenant].context_bytes if tenant in self.tenants else None
        return self.context_bytes if own is None else own

    @field_validator("images")
    @classmethod
    def _are_others(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name) or name in ("core", "data"):
                raise ValueError(f"{name[:50]!r} cannot name an image: letters, digits and -; core and data exist")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must be a URL postgresql://…, or empty for SQLite")
        return value

    @property
    def database(self) -> str | Path:
        """Where the database is: a URL, or a file in the data directory."""
        return self.database_url.get_secret_value() or self.data_dir / "rlm.sqlite"

    @field_validator("metrics_listen")
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
        path = os.environ.get("RLM_CONFIG", "")
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"), parse_float=Decimal) if path else {}
        return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, content)

    @classmethod
    def load(cls, **given: Any) -> Settings:
        """Read the settings, provider keys from their usual variables included.

        Raises:
            ConfigError: a setting is wrong.
        """
        path = os.environ.get("RLM_CONFIG", "")
        if path and not Path(path).is_file():
            raise ConfigError(f"RLM_CONFIG: there is no file {path}")
        for name, variable in (("anthropic_api_key", "ANTHROPIC_API_KEY"), ("openai_api_key", "OPENAI_API_KEY")):
            if os.environ.get(variable, "") and f"RLM_{name.upper()}" not in os.environ:
                given.setdefault(name, os.environ[variable])
        try:
            return cls(**given)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise ConfigError(f"the configuration is wrong: {wrong}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"RLM_CONFIG: {path} is not TOML: {error}") from None
        except ValueError as error:
            raise ConfigError(f"the configuration is wrong: {error}") from None


def nano(usd: Decimal) -> int:
    """Return US dollars in nano-US-dollars."""
    return int(usd * NANO)
