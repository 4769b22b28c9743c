"""`rlm_query` and its kin: the program has a child RLM answer. Runs inside the sandbox."""

from functools import partial

from _documents import Documents, located
from _requests import Request, asking
from _rlm import offered, only, slots, text


@offered
@asking
def rlm_query(prompt, context=None, model=None, budget=None):
    """Let a child RLM answer, with a REPL of its own and `context` as its text (the prompt where there is none).

    context: a text, or documents: a list of texts, or some of the documents here, such as context[10:20].
    budget: the most it may spend in US dollars; without one, half of what is left here.
    """
    question = text("prompt", prompt)
    context = question if context is None else _as_sent("context", context)
    return Request("rlm_query", only, prompts=[question], contexts=[context], model=model, budget=budget)


@offered
@asking
def rlm_query_batched(prompts, contexts=None, model=None, budget=None, return_exceptions=False):
    """Let one child RLM for each prompt answer, all at once; `contexts` gives each its text. `budget` is each one's."""
    questions = [text("prompts", prompt) for prompt in prompts]
    contexts = questions if contexts is None else [_as_sent("contexts", context) for context in contexts]
    if len(contexts) != len(questions):
        raise ValueError(f"{len(questions)} prompts but {len(contexts)} contexts")
    finish = partial(slots, return_exceptions)
    return Request("rlm_query", finish, prompts=questions, contexts=contexts, model=model, budget=budget)


def _as_sent(name, context):
    """Return a context as a request holds it; a long string that is part of the context here is only named."""
    if isinstance(context, Documents):
        numbers = context._numbers
        return {"corpus": context._corpus, "documents": [numbers.start, numbers.stop, numbers.step]}
    if isinstance(context, list | tuple):
        return [text(name, one) for one in context]
    part = located(text(name, context))
    return context if part is None else part
