"""The system prompt of a node: the same for every turn of it, so that providers can cache it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlm_server.broker.prices.table import PER
from rlm_server.broker.providers import client
from rlm_server.broker.routes import Route, Routes
from rlm_server.repl.functions import Functions
from rlm_server.runs.told.feedback import FEEDBACK_CHARACTERS
from rlm_server.runs.told.profiles import advice
from rlm_server.runs.told.quantities import dollars

MOST_MODELS = 10
"""Models that are named: the one that is asked unless told, the node's own, and then the cheapest."""

PROMPT_CHARACTERS, REPLY_CHARACTERS = 100_000, 1_000
"""Of a call whose cost is told."""

CHARACTERS_A_TOKEN = 4
"""In plain English, about. What a model can read is told for fewer, so that it fits in other languages too."""
SURE_CHARACTERS_A_TOKEN = 3

_SYSTEM = """\
You answer a question about a text that is too large to read. The text is the variable `context` in a Python REPL that
you control: a Python str, or, for many documents, a read-only sequence of str (with `.names`; slices are sequences).
You never see it except for what your code prints, so look at it with code.

Write Python in fenced blocks marked `repl`, and end your reply there: what they print comes back to you.

```repl
print(len(context), context[:500])
```

The code runs in a sandbox without network; variables persist from turn to turn. Of what a block prints you are shown
{shown:,} characters at most, both ends of it: print little, and keep results in variables. The standard library is
there, and numpy, pandas, scipy and others.{numbers}

Besides `context` the code may use:
{functions}
{tools}
Models that calls may name, and about what they cost for {prompt:,} characters of prompt and {reply:,} of reply:
{models}

Work in steps: look at how the text is built; plan; select, split or filter with code; ask models about meaning, many
parts at once; combine the results with code; check; answer.
- Before a large batch, try one of a few prompts and look at a reply. Read replies tolerantly, and ask again only for
  what is missing.
- {parallel} calls go on at once, and the others of a batch wait their turn. An identical call is answered from memory,
  free.
- A slot of a batch whose call failed holds a str that begins with "Error: ", or the exception where you pass
  return_exceptions=True. The other slots are good.
- Every call costs money. The budget is enforced: a call that may cost more than is left raises an exception.
- Do not set answer["ready"] in a block whose output you have yet to see. Once you have seen the values, the block that
  formats them may set it.
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node's system prompt says of its run: the models that there are, and what goes on at once."""

    functions: Functions
    routes: Routes
    model: str
    """The node's own."""
    sub_model: str
    """The one that `llm_query` asks where code names none."""
    parallel: int
    """Calls of a run that go on at once."""
    numbers: str = ""
    """What there is to say of the numbers of its image, in one line."""
    tools: str = ""
    """What there is to say of its tools, in lines."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """By patterns of models' names, beside `profiles.PROFILES`."""
    instructions: str = ""
    """Of whoever asks, for the whole run."""
    is_child: bool = False


def system(facts: Facts) -> str:
    """Compose the system prompt of a node."""
    rules = _SYSTEM.format(
        shown=FEEDBACK_CHARACTERS,
        numbers=f" {facts.numbers}" if facts.numbers else "",
        functions=facts.functions.prompt,
        tools=f"\n{facts.tools}\n" if facts.tools else "",
        prompt=PROMPT_CHARACTERS,
        reply=REPLY_CHARACTERS,
        models=_models(facts),
        parallel=facts.parallel,
    )
    own = advice(facts.model, facts.advice)
    parts = [rules, f"{own}\n" if own else "", wanted(facts.instructions, is_child=facts.is_child)]
    return "\n".join(part for part in parts if part)


def wanted(instructions: str, *, is_child: bool = False) -> str:
    """Tell the instructions of whoever asks apart from the server's rules; empty where there are none."""
    if not instructions:
        return ""
    whose = _OF_THE_RUN if is_child else _OF_THE_CALLER
    return f"{whose}\n<instructions>\n{instructions}\n</instructions>\n"


_OF_THE_CALLER = """\
Whoever asks the question gives instructions besides. Follow them in what you do and in how you answer. They change none
of the rules above: neither how code is run, nor how an answer is given."""

_OF_THE_RUN = """\
Your question is a part of a larger one, for which whoever asked it gave instructions. Follow what of them concerns your
part. They change none of the rules above: neither how code is run, nor how an answer is given."""


def _models(facts: Facts) -> str:
    first = [name for name in dict.fromkeys((facts.sub_model, facts.model)) if name in facts.routes.models]
    names = [name for name in facts.routes.models if name in first or name != client.NAME]
    cost = {name: cost_of(facts.routes.route(name)) for name in names}
    others = sorted((name for name in names if name not in first), key=lambda name: (cost[name], name))
    listed = [*first, *others][:MOST_MODELS]
    lines = [
        f"- {name}"
        + (" (asked where you name none)" if name == facts.sub_model else "")
        + f": {dollars(cost[name]) if cost[name] else 'free'}{_reads(facts.routes.route(name))}"
        for name in listed
    ]
    if len(names) > len(listed):
        lines.append(f"- and {len(names) - len(listed)} more.")
    return "\n".join(lines)


def cost_of(route: Route) -> int:
    """Return about what a call costs that has `PROMPT_CHARACTERS` and is answered with `REPLY_CHARACTERS`."""
    rates = route.price.rates
    tokens = PROMPT_CHARACTERS // CHARACTERS_A_TOKEN, REPLY_CHARACTERS // CHARACTERS_A_TOKEN
    return (tokens[0] * rates.input + tokens[1] * rates.output) // PER


def _reads(route: Route) -> str:
    window = route.context_window
    return f", reads about {window * SURE_CHARACTERS_A_TOKEN:,} characters at once" if window is not None else ""
