"""`llm_query` and its kin: the program asks a model. Runs inside the sandbox."""

from functools import partial

from _requests import Request, asking
from _rlm import offered, only, slots, text


@offered
@asking
def llm_query(prompt, model=None):
    """Ask a model once and return its answer."""
    return Request("llm_query", only, prompts=[text("prompt", prompt)], model=model)


@offered
@asking
def llm_query_batched(prompts, model=None, return_exceptions=False):
    """Ask a model about every prompt at once; answers come in the order of the prompts.

    A failed one gives its error as text in its slot, or as an exception with return_exceptions=True.
    """
    prompts = [text("prompts", prompt) for prompt in prompts]
    return Request("llm_query", partial(slots, return_exceptions), prompts=prompts, model=model)
