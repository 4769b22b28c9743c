"""What every model costs on this server: the pinned table, and before it what the operator states.

Of two statements for one model, the configuration's goes before the one in the data directory: it is what was reviewed
and deployed, and no file beside it changes silently what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum

from rlm_server.broker.prices.table import Listed, Price, Prices, PricesConflict, Rates
from rlm_server.broker.providers import client, scripted
from rlm_server.broker.providers.registry import COMPATIBLE
from rlm_server.config.settings import CompatibleModel, ConfigError, Settings, nano
from rlm_server.config.stated_prices import Key, StatedPrice, StatedPrices

SCRIPTED_PRICE = Price(Rates(nano(Decimal(1)), nano(Decimal(5))))
"""Simulated: $1 for a million tokens of input, $5 of output, so that budgets can be seen at work."""

CLIENT_PRICE = Price(Rates(0, 0))
"""A client that plays the model is paid by nobody here."""


class Origin(StrEnum):
    """Where a price comes from: the table of this package, or an operator, or a script or a client that has none."""

    PINNED = "pinned"
    STATED = "stated"
    STATED_IN_CONFIGURATION = "stated in the configuration"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of a server, and where those that are not pinned come from.

    `kept` are those of the data directory, `configured` those of the configuration.
    """

    prices: Prices
    kept: Mapping[Key, StatedPrice]
    configured: Mapping[Key, StatedPrice]

    @classmethod
    def of(
        cls, settings: Settings, scripts: Iterable[str] = (), kept: Mapping[Key, StatedPrice] | None = None
    ) -> PriceList:
        """Put together what a server with these settings and scripted models has, or would have with others `kept`.

        Raises:
            ConfigError: what is stated in the data directory is wrong, or contradicts itself.
        """
        file = StatedPrices(settings.data_dir)
        if kept is None:
            kept = file.read()
        configured = {Key(COMPATIBLE.name, name): price for name, m in settings.models.items() if (price := _stated(m))}
        stated: dict[tuple[str, str], Price] = {key: p.price(key.provider) for key, p in {**kept, **configured}.items()}
        if settings.client_model:
            stated[client.NAME, client.NAME] = CLIENT_PRICE
        stated |= {(scripted.NAME, name): SCRIPTED_PRICE for name in scripts}
        try:
            return cls(Prices.load(stated), kept, configured)
        except PricesConflict as error:
            raise ConfigError(f"{file.path}: {error}; unset one of them") from None

    @property
    def overruled(self) -> list[Key]:
        """What is stated in the data directory to no effect, as the configuration has a price for it too."""
        return sorted(self.kept.keys() & self.configured.keys())

    def origin(self, listed: Listed) -> Origin:
        """Where the price of a model comes from."""
        if not listed.stated:
            return Origin.PINNED
        if listed.provider in (scripted.NAME, client.NAME):
            return Origin.SIMULATED
        key = Key(listed.provider, listed.model)
        return Origin.STATED_IN_CONFIGURATION if key in self.configured else Origin.STATED


def age(prices: Prices, today: date) -> str:
    """Say how old the pinned table is on a day of UTC."""
    days = (today - prices.as_of).days
    if days < 0:
        return f"of {prices.as_of}, which by this machine's clock is yet to come"
    return f"of {prices.as_of}, {days} {'day' if days == 1 else 'days'} old"


def _stated(model: CompatibleModel) -> StatedPrice | None:
    if model.input_usd_per_million is None or model.output_usd_per_million is None:
        return None
    return StatedPrice(
        input=model.input_usd_per_million,
        output=model.output_usd_per_million,
        cache_read=model.cache_read_usd_per_million,
        cache_write=model.cache_write_usd_per_million,
    )
