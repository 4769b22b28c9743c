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
words = {words!r}
documents = [context] if isinstance(context, str) else context
size, characters, passages, scored = 4000, 0, 0, []
for number, document in enumerate(documents):
    characters += len(document)
    for start in range(0, len(document), size):
        passages += 1
        passage = document[start : start + size + 200].lower()
        score = sum(word in passage for word in words)
        if score:
            scored.append((-score, number, start))
best = [(number, start) for _, number, start in sorted(scored)[:8]]
print(len(documents), "documents with" if documents is context else "text with", characters, "characters;", words)
print(len(scored), "of", passages, "passages share a word with the question")
```""",
    """\
I ask the sub-model about the best of them, all at once.
```repl
ask = {ask!r}
best, size = globals().get("best", []), 4000
documents = [context] if isinstance(context, str) else context
texts = [documents[number][start : start + size + 200] for number, start in best]
prompts = [f"{ask}\\nQuestion: {question}\\nText:\\n{text}" for text in texts]
replies = llm_query_batched(prompts, return_exceptions=True) if prompts else []
failed = [reply for reply in replies if not isinstance(reply, str)]
told = [(number, reply) for (number, _), reply in zip(best, replies) if reply not in (*failed, "nothing")]
names = context.names if documents is context else None
found = [f"{names[number]}: {line}" if names else line for number, reply in told for line in reply.splitlines()]
print(len(told), "of", len(prompts), "had something;", len(failed), "calls failed", failed[:1])
```""",
    """\
```repl
lead = "(No model answered this: these are the passages that share most words with the question.)"
found = globals().get("found", [])
answer["content"] = "\\n".join([lead, *dict.fromkeys(found)]) if found else lead + " None does."
answer["ready"] = True
```""",
)


def write_code(first: str, turn: int) -> str:
    """Play the model of a node."""
    question = first.removeprefix("Question:\n").rpartition("\n\nEnvironment:")[0] or first
    said = {"{words!r}": repr(_words(question)), "{ask!r}": repr(_SUB_PROMPT)}
    code = _CODE[min(turn, 2)]
    for name, value in said.items():
        code = code.replace(name, value)
    return code.replace("```repl\n", f"```repl\nquestion = {question!r}\n", 1)


def answer(prompt: str) -> str:
    """Play the sub-model: copy the lines that share most words with the question."""
    head, _, text = prompt.partition("\nText:\n")
    wanted = set(_words(head.removeprefix(_SUB_PROMPT)))
    scored = [(len(wanted & set(_words(line))), line.strip()) for line in text.splitlines()]
    best = sorted((-score, i) for i, (score, _) in enumerate(scored) if score)[:2]
    return "\n".join(scored[i][1][:300] for _, i in sorted(best, key=lambda found: found[1])) or "nothing"


def _words(text: str) -> list[str]:
    return [w for w in dict.fromkeys(word.lower() for word in _WORD.findall(text)) if w not in _COMMON][:20]
