"""A play for any question: it finds the passages that share most words with it. No understanding is involved."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w{3,}")
_COMMON = frozenset(
    """the and for with that this from what which who whose how many much does are was were has have had its into text
    question answer""".split()  # noqa: SIM905
)

_SUB_PROMPT = "Copy the sentences of the text that help to answer the question."

_CODE = (
    """\
I look for passages that share words with the question.
```repl
import re

words = {words!r}
print(len(context), "characters; words:", words)
size = 4000
scored = []
for start in range(0, len(context), size):
    passage = context[start : start + size + 200].lower()
    score = sum(word in passage for word in words)
    if score:
        scored.append((-score, start))
best = [start for _, start in sorted(scored)[:8]]
print(len(scored), "passages share a word with the question")
```""",
    """\
I ask the sub-model about the best of them, all at once.
```repl
ask = {ask!r}
prompts = [f"{ask}\\nQuestion: {question}\\nText:\\n{context[s : s + size + 200]}" for s in best]
found = [reply for reply in llm_query_batched(prompts) if reply != "nothing"] if prompts else []
print(len(found), "of", len(prompts), "had something")
```""",
    """\
```repl
lead = "(No model answered this: these are the passages that share most words with the question.)"
answer["content"] = "\\n".join([lead, *dict.fromkeys(found)]) if found else lead + " None does."
answer["ready"] = True
```""",
)


def write_code(first: str, turn: int) -> str:
    """Play the model of a node."""
    question = first.removeprefix("Question:\n").partition("\n\nEnvironment:")[0]
    said = {"{words!r}": repr(_words(question)), "{ask!r}": repr(_SUB_PROMPT)}
    code = _CODE[min(turn, 2)].replace("```repl\n", f"```repl\nquestion = {question!r}\n", 1)
    for name, value in said.items():
        code = code.replace(name, value)
    return code


def answer(prompt: str) -> str:
    """Play the sub-model: copy the lines that share most words with the question."""
    head, _, text = prompt.partition("\nText:\n")
    wanted = set(_words(head.removeprefix(_SUB_PROMPT)))
    scored = [(len(wanted & set(_words(line))), line.strip()) for line in text.splitlines()]
    best = sorted((-score, i) for i, (score, _) in enumerate(scored) if score)[:2]
    return "\n".join(scored[i][1][:300] for _, i in sorted(best, key=lambda found: found[1])) or "nothing"


def _words(text: str) -> list[str]:
    return [w for w in dict.fromkeys(word.lower() for word in _WORD.findall(text)) if w not in _COMMON][:20]
