"""The page of all settings, made from the settings' own types: `python -m rlm_server.config.page docs/settings.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlm_server.config.described import NAME, Section, Setting, docs, sections
from rlm_server.config.settings import Settings
from rlm_server.config.sources import OTHER_VARIABLES

EXAMPLE = """\
listen = "0.0.0.0:7400"
run_budget_usd = 0.5
max_turns = 20

[sandbox]
turn_seconds = 30

[tenants.acme]
weight = 2
max_depth = 1
memory_bytes = 268435456
"""
"""A file, which the page shows."""

HEAD = f"""\
# Settings

`make docs` makes this page from the settings' own types. Edit those, not the page.

Each setting has a name in one TOML file, whose path is in `RLM_CONFIG`, and an environment variable. An argument of
`rlm-server serve` goes before the variable, the variable before the file, the file before the default.

```toml
{EXAMPLE}```

The same as variables: a table's name and its setting's are joined by `__`, and a whole table may be JSON. Names of your
choice, such as a tenant's, are lower case in variables, except in JSON.

```sh
RLM_MAX_TURNS=20 RLM_SANDBOX__TURN_SECONDS=30 RLM_TENANTS='{{"acme": {{"weight": 2}}}}' .venv/bin/rlm-server serve
```

Everything is checked at start. A setting that does not exist is an error, as a variable too, and so is a value beyond
its bounds: the message names the setting, what it may be, and where the value came from.

Below, `{NAME}` stands for a name of your choice. What is shown as KiB, MiB, GiB or TiB is set in bytes, as a number.
"""

COLUMNS = ("Setting", "Variable", "Type", "Default", "May be", "Unit", "What it is")


def text(settings: type[Settings] = Settings) -> str:
    """Return the page."""
    return "\n".join([HEAD, *(line for section in sections(settings) for line in _section(section)), *_others()])


def _section(section: Section) -> Iterator[str]:
    table = ".".join(section.table)
    yield f"## {f'`[{table}]`: {section.title[0].lower()}{section.title[1:]}' if table else section.title}\n"
    if section.doc:
        yield f"{section.doc}\n"
    yield _row(COLUMNS)
    yield _row(["---"] * len(COLUMNS))
    explained = docs(section)
    for one in section.settings:
        yield _row(_cells(one, explained[one.path[-1]]))
    yield ""


def _cells(setting: Setting, doc: str) -> tuple[str, ...]:
    variable = f"`{setting.variable}`"
    if setting.other_variable:
        variable += f", else `{setting.other_variable}`"
    name = f"`{setting.path[-1]}`"
    return name, variable, setting.kind, setting.default, setting.bounds, setting.unit, doc


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _others() -> Iterator[str]:
    yield "## Other variables\n"
    yield "These begin with `RLM_` and are no settings. What Kubernetes sets for services is passed over as well.\n"
    yield _row(["Variable", "What it is"])
    yield _row(["---", "---"])
    for name, doc in OTHER_VARIABLES.items():
        yield _row([f"`{name}`", doc])
    yield ""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rlm_server.config.page FILE")
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
