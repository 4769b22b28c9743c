"""`llm_query` and its kin: the program asks a model. Runs inside the sandbox."""

import operator

from _requests import Request, asking
from _rlm import offered
from _slots import Slots, each, listed, model_named, only, sendable


@offered
@asking
def llm_query(prompt, model=None, *, system=None, max_tokens=None, temperature=None, stop=None, fresh=False):
    """Ask a model once and return its answer, a str; `.cut` is True where it was cut off.

    system: a system prompt.
    max_tokens: the most that the answer may have. A lower one lets more calls go at once under a small budget.
    temperature: from 0 to 2, for models that take one.
    stop: a str, or up to four, before which the model is to stop.
    fresh: ask again, though an identical call was answered before.
    """
    form = _form(system, max_tokens, temperature, stop, fresh)
    return Request("llm_query", only, prompts=[sendable("prompt", prompt)], model=model_named(model), **form)


@offered
@asking
def llm_query_batched(
    prompts,
    model=None,
    return_exceptions=False,
    *,
    system=None,
    max_tokens=None,
    temperature=None,
    stop=None,
    fresh=False,
):
    """Ask a model about every prompt at once; answers come in the order of the prompts.

    A failed one gives "Error: " and its message as text in its slot, or the exception with return_exceptions=True.
    model: one for all, or a list with one for each. The others are as in llm_query.
    """
    prompts = listed("prompts", prompts)
    slots = Slots(len(prompts), return_exceptions)
    form = _form(system, max_tokens, temperature, stop, fresh)
    fit = slots.fit(_item, zip(prompts, each("model", model, len(prompts)), strict=True))
    return Request("llm_query", slots.values, prompts=[prompt for prompt, _ in fit], model=_models(fit), **form)


def _item(prompt, model):
    return sendable("prompts", prompt), model_named(model)


def _models(fit):
    """Return the models of what is sent: one where it is the same for all."""
    models = [model for _, model in fit]
    return models[0] if len(set(models)) == 1 else models


def _form(system, max_tokens, temperature, stop, fresh):
    """Return how to ask, as a request holds it: without what is not said."""
    said = {}
    if system is not None:
        said["system"] = sendable("system", system)
    if max_tokens is not None:
        said["max_tokens"] = _tokens(max_tokens)
    if temperature is not None:
        said["temperature"] = _temperature(temperature)
    if stop is not None:
        said["stop"] = _stops(stop)
    if fresh:
        said["fresh"] = True
    return said


def _tokens(value):
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"max_tokens must be int, not {type(value).__name__}")
    value = operator.index(value)
    if value < 1:
        raise ValueError(f"max_tokens must be positive, not {str(value)[:60]}")
    return min(value, (1 << 32) - 1)


def _stops(value):
    """Return the texts before which a model is to stop; what they may be is for the host to say."""
    if isinstance(value, str):
        return [sendable("stop", value)]
    if not isinstance(value, list | tuple):
        raise TypeError(f"stop must be str, or a list of str, not {type(value).__name__}")
    return [sendable("stop", one) for one in value]


def _temperature(value):
    if isinstance(value, str | bytes | bool) or not hasattr(value, "__float__"):
        raise TypeError(f"temperature must be a number, not {type(value).__name__}")
    value = float(value)
    if not 0 <= value <= 2:
        raise ValueError(f"temperature must be from 0 to 2, not {value}")
    return value
