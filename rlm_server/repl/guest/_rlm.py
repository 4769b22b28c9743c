"""The names a program in the REPL may use to ask models and to answer. Runs inside the sandbox."""

import collections
import sys
from functools import partial

import _documents
import _door
import _loop
import _runner
from _documents import Documents, located
from _requests import Request, asking

namespace = sys.modules["__main__"].__dict__


@asking
def llm_query(prompt, model=None):
    """Ask a model once and return its answer."""
    return Request("llm_query", _only, prompts=[_text("prompt", prompt)], model=model)


@asking
def llm_query_batched(prompts, model=None, return_exceptions=False):
    """Ask a model about every prompt at once; answers come in the order of the prompts.

    A failed one gives its error as text in its slot, or as an exception with return_exceptions=True.
    """
    prompts = [_text("prompts", prompt) for prompt in prompts]
    return Request("llm_query", partial(_slots, return_exceptions), prompts=prompts, model=model)


@asking
def rlm_query(prompt, context=None, model=None, budget=None):
    """Let a child RLM answer, with a REPL of its own and `context` as its text (the prompt where there is none).

    context: a text, or documents: a list of texts, or some of the documents here, such as context[10:20].
    budget: the most it may spend in US dollars; without one, half of what is left here.
    """
    question = _text("prompt", prompt)
    context = question if context is None else _given("context", context)
    return Request("rlm_query", _only, prompts=[question], contexts=[context], model=model, budget=budget)


@asking
def rlm_query_batched(prompts, contexts=None, model=None, budget=None, return_exceptions=False):
    """Let one child RLM for each prompt answer, all at once; `contexts` gives each its text. `budget` is each one's."""
    questions = [_text("prompts", prompt) for prompt in prompts]
    contexts = questions if contexts is None else [_given("contexts", context) for context in contexts]
    if len(contexts) != len(questions):
        raise ValueError(f"{len(questions)} prompts but {len(contexts)} contexts")
    slots = partial(_slots, return_exceptions)
    return Request("rlm_query", slots, prompts=questions, contexts=contexts, model=model, budget=budget)


class Match(collections.namedtuple("Match", "document start end text")):
    """Where a pattern matches: the document's number, the first character, the one after the last, and the text."""

    __slots__ = ()


class Matches(list):
    """Matches in the order of the text; `more` is True where there may be others beyond the limit."""

    more = False


def search(pattern, documents=None, limit=100):
    """Find where a regular expression (RE2's syntax) matches in the context, on the host: see Match and Matches.

    documents: only in these, by their numbers, or a part of the context such as context[10:20].
    """
    if isinstance(documents, Documents):
        documents = documents._numbers
    if documents is not None:
        documents = [documents] if isinstance(documents, int) else [int(number) for number in documents]
    found = _door.call("search", pattern=_text("pattern", pattern), documents=documents, limit=limit)
    matches = Matches(Match(*match) for match in found["matches"])
    matches.more = found["more"]
    return matches


def budget():
    """Return what is left: usd, tokens, calls (None where not limited), turns, depth, seconds."""
    return _door.call("budget")


def SHOW_VARS():
    """Print the program's variables with type and size."""
    for name, kind, length in _runner.variables():
        print(f"{name}: {kind}" + (f" of length {length}" if length >= 0 else ""))


def FINAL(value):
    """Give the answer."""
    answer_now(value)


def FINAL_VAR(name):
    """Give the value of the variable of this name (or the value itself) as the answer."""
    answer_now(namespace[name] if isinstance(name, str) and name in namespace else name)


def SUBMIT(*values, **named):
    """Give the answer: one value, or several by name."""
    answer_now(values[0] if len(values) == 1 and not named else named or values)


def answer_now(value):
    namespace["answer"] = {"content": value, "ready": True}


def _text(name, value):
    if not isinstance(value, str):
        raise TypeError(f"{name} must be str, not {type(value).__name__}")
    return value


def _given(name, context):
    """Return a context as the host takes it; a long string that is part of the context here is only named."""
    if isinstance(context, Documents):
        numbers = context._numbers
        return {"corpus": context._corpus, "documents": [numbers.start, numbers.stop, numbers.step]}
    if isinstance(context, list | tuple):
        return [_text(name, text) for text in context]
    part = located(_text(name, context))
    return context if part is None else part


def _failure(error):
    kind = _door.ERRORS.get(error["type"], RuntimeError)
    return kind(error["message"])


def _only(replies):
    if "error" in replies[0]:
        raise _failure(replies[0]["error"])
    return _noted(replies[0])


def _slots(return_exceptions, replies):
    found = []
    for reply in replies:
        if "error" not in reply:
            found.append(_noted(reply))
        elif return_exceptions:
            found.append(_failure(reply["error"]))
        else:
            found.append(f"Error: {reply['error']['message']}")
    return found


def _noted(reply):
    if reply.get("note"):
        print(f"[{reply['note']}]")
    return reply["ok"]


def _after():
    answer = namespace.get("answer")
    if not isinstance(answer, dict):
        answer = namespace["answer"] = {"content": "" if answer is None else answer, "ready": False}
    content, ready = answer.get("content"), bool(answer.get("ready"))
    content = "" if content is None else content if isinstance(content, str) else repr(content)
    if (ready or content) and (content, ready) != _said[0]:  # of anything else than a text, its truth says nothing
        _said[0] = (content, ready)
        _door.call("answer", content=content, ready=ready)


_said = [None]

for _stream in (sys.stdout, sys.stderr):  # a line is seen when it is printed, not when the turn ends
    _stream.reconfigure(line_buffering=True)

namespace["answer"] = {"content": "", "ready": False}
_runner.reserved["context"] = ""  # until there is one
_runner.after.append(_after)
_runner.internal.add("<_rlm>")
_asking = (llm_query, llm_query_batched, rlm_query, rlm_query_batched)
_runner.reserved.update(
    (function.__name__, function)
    for function in (*_asking, *map(_loop.awaitable, _asking), search, budget, SHOW_VARS, FINAL, FINAL_VAR, SUBMIT)
)
_documents._search[0] = search
