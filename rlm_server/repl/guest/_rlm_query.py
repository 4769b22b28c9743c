"""`rlm_query` and its kin: the program has a child RLM answer. Runs inside the sandbox."""

import json

from _documents import Documents, located
from _requests import Request, asking
from _rlm import offered
from _slots import Slots, each, listed, model_named, only, sendable


@offered
@asking
def rlm_query(prompt, context=None, model=None, budget=None):
    """Let a child RLM answer, with a REPL of its own and `context` as its text (the prompt where there is none).

    context: a text, or documents: a list of texts, or some of the documents here, such as context[10:20]. A dict, or a
    list of other things than texts, becomes a text of JSON.
    budget: the most it may spend in US dollars; without one, half of what is left here.
    """
    question, context, model = _item(prompt, context, model)
    return Request("rlm_query", only, prompts=[question], contexts=[context], model=model, budget=budget)


@offered
@asking
def rlm_query_batched(prompts, contexts=None, model=None, budget=None, return_exceptions=False):
    """Let one child RLM for each prompt answer, all at once; `contexts` gives each its text. `budget` is each one's.

    A failed one gives "Error: " and its message as text in its slot, or the exception with return_exceptions=True.
    """
    prompts = listed("prompts", prompts)
    if isinstance(contexts, str):
        raise TypeError(
            "contexts must be a list with one for each prompt, not str; a model goes by its name: model=..."
        )
    contexts = [None] * len(prompts) if contexts is None else listed("contexts", contexts)
    if len(contexts) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(contexts)} contexts")
    slots = Slots(len(prompts), return_exceptions)
    fit = slots.fit(_item, zip(prompts, contexts, each("model", model, len(prompts)), strict=True))
    questions, contexts, models = ([one[part] for one in fit] for part in range(3))
    return Request("rlm_query", slots.values, prompts=questions, contexts=contexts, model=models, budget=budget)


def _item(prompt, context, model):
    question = sendable("prompt", prompt)
    return question, question if context is None else _as_sent(context), model_named(model)


def _as_sent(context):
    """Return a context as a request holds it; a long string that is part of the context here is only named."""
    if isinstance(context, Documents):
        numbers = context._numbers
        return {"corpus": context._corpus, "documents": [numbers.start, numbers.stop, numbers.step]}
    if isinstance(context, list | tuple) and all(isinstance(one, str) for one in context):
        return [sendable("context", one) for one in context]
    if isinstance(context, dict | list | tuple):
        return sendable("context", json.dumps(context, ensure_ascii=False))
    part = located(context) if type(context) is str else None
    return sendable("context", context) if part is None else part
