"""A play: counting the exception classes of packages in a text of Python sources, with children and sub-calls."""

from __future__ import annotations

import re

QUESTION = """\
The text holds Python source files, each after a header line `===== FILE: <package>/<path> =====`.
An exception class is declared by a line that starts, after any spaces, with the word `class`, and that names at least
one base class ending in `Error` or `Exception` inside the brackets on that same line.
Which five packages declare the most exception classes, and how many each? Answer with five lines of the form
`package: count`, the most first; of equal counts the name that sorts first."""

CHILD_QUESTION = (
    "How many of the lines in the text declare an exception class: a class that names at least one base class ending "
    "in `Error` or `Exception` inside the brackets? Answer with the number alone."
)

SUB_PROMPT = (
    "Below are numbered lines of Python source. Which of them declare a class that names at least one base class "
    "ending in `Error` or `Exception` inside the brackets? Answer with their numbers, separated by spaces, or `none`."
)

_TEXT = """\
if isinstance(context, str):
    text = context
else:
    names = [name if "/" in name else f"{name or number}/" for number, name in enumerate(context.names)]
    text = "\\n".join(f"===== FILE: {name} =====\\n{document}" for name, document in zip(names, context))"""

_LOOK = f"""\
I look at how the text is built.
```repl
{_TEXT}
print(len(text), "characters")
print(text[:600])
```"""

_SELECT = f'''\
Every file follows a header that names its package. I select the class lines of each package, give packages with many
of them to children, and ask the sub-model about the others in parts.
```repl
import re

class_line = re.compile(r"^[ ]*class[ ].*$", re.M)
lines_of = {{}}
headers = list(re.finditer(r"^===== FILE: ([^/\\n]+)/.* =====$", text, re.M))
for header, following in zip(headers, [*headers[1:], None]):
    start, end = header.end(), following.start() if following else len(text)
    found = class_line.findall(text, start, end)
    if found:
        lines_of.setdefault(header[1], []).extend(line.strip()[:300] for line in found)
large = sorted((p for p in lines_of if len(lines_of[p]) > 1000), key=lambda p: -len(lines_of[p]))[:8]
small = [(package, line) for package in lines_of if package not in large for line in lines_of[package]]
print(len(headers), "files,", len(lines_of), "packages with classes,", sum(map(len, lines_of.values())), "class lines")
print("to children:", large)
```
```repl
question = """{CHILD_QUESTION}"""
answers = rlm_query_batched([question] * len(large), ["\\n".join(lines_of[p]) for p in large]) if large else []
counts = {{package: int(answer) for package, answer in zip(large, answers)}}
print(counts)
```
```repl
ask = """{SUB_PROMPT}"""
size = 150
parts = [small[i : i + size] for i in range(0, len(small), size)]
prompts = [ask + "\\n\\n" + "\\n".join(f"{{n}}: {{line}}" for n, (_, line) in enumerate(part)) for part in parts]
replies = llm_query_batched(prompts) if prompts else []
for part, reply in zip(parts, replies):
    for number in reply.split():
        if number.isdigit():
            package = part[int(number)][0]
            counts[package] = counts.get(package, 0) + 1
best = sorted(counts, key=lambda p: (-counts[p], p))[:5]
print(len(prompts), "sub-calls;", [(p, counts[p]) for p in best])
```'''

_ANSWER = """\
```repl
answer["content"] = "The count was not completed: an earlier block failed."
if "best" in globals():
    answer["content"] = "\\n".join(f"{p}: {counts[p]}" for p in best) or "No package declares an exception class."
answer["ready"] = True
```"""

_CHILD = f'''\
```repl
{_TEXT}
lines = text.split("\\n")
if len(lines) > 2000 and budget()["depth"] > 0:
    half = len(lines) // 2
    halves = ["\\n".join(lines[:half]), "\\n".join(lines[half:])]
    total = sum(int(reply) for reply in rlm_query_batched(["""{CHILD_QUESTION}"""] * 2, halves))
else:
    parts = [lines[i : i + 150] for i in range(0, len(lines), 150)]
    ask = """{SUB_PROMPT}"""
    prompts = [ask + "\\n\\n" + "\\n".join(f"{{n}}: {{line}}" for n, line in enumerate(part)) for part in parts]
    total = sum(len([n for n in reply.split() if n.isdigit()]) for reply in llm_query_batched(prompts))
FINAL(total)
```'''

_BASES = re.compile(r"class\s+\w+\s*\((.*)\)\s*:")
_EXCEPTION = re.compile(r"(Error|Exception)\s*(,|$)")


def knows(first: str) -> bool:
    """Whether a conversation with this first message belongs to this play."""
    return any(known in first for known in (QUESTION, CHILD_QUESTION, SUB_PROMPT))


def write_code(first: str, turn: int) -> str:
    """Play the model of a node."""
    if QUESTION not in first:
        return _CHILD
    return (_LOOK, _SELECT, _ANSWER)[min(turn, 2)]


def answer(prompt: str) -> str:
    """Play the sub-model: judge the lines in the prompt."""
    numbered = (line.partition(": ") for line in prompt.splitlines() if line[:1].isdigit())
    found = [number for number, _, line in numbered if declares_exception(line)]
    return " ".join(found) or "none"


def declares_exception(line: str) -> bool:
    """Whether a line of Python source declares a class with a base that ends in Error or Exception."""
    bases = _BASES.match(line.strip())
    return bases is not None and _EXCEPTION.search(bases[1]) is not None
