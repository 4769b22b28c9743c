"""A play: the tools of a run, each asked the run's question."""

from __future__ import annotations

import re

_TOOL = re.compile(r"^- (\w+)\(\w+: str\)", re.M)
"""The line of a tool that takes one text and nothing else, in the list that a model is sent."""
_HEAD = "Tools of this run"


def tools(system: str) -> list[str]:
    """Return the tools that a node's model is told of which take one text and nothing else."""
    return _TOOL.findall(system.partition(_HEAD)[2])


def write_code(first: str, names: list[str]) -> str:
    """Play the model of a node: have each tool asked the question, and answer with what they return."""
    question = first.removeprefix("Question:\n").partition("\n")[0]
    return f"""\
I ask each tool.
```repl
question = {question!r}
FINAL("\\n".join(f"{{tool.__name__}}: {{tool(question)}}" for tool in ({", ".join(names)},)))
```"""
