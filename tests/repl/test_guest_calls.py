"""What programs write to ask models and children, and what they get: in a real sandbox, over a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from tests.servers import Served
from tests.system.stage import Caller, Play, code


class Model(Play):
    """Shouts prompts, and does otherwise with some."""

    def __init__(self) -> None:
        super().__init__("")

    async def reply(self, request: ModelRequest) -> str:
        self.asked.append(request)
        prompt = request.messages[0].content
        if prompt == "refuse":
            raise ProviderError(Failure.TOO_LONG, "the prompt is longer than the model takes", billed=False)
        return {"empty": "", "thinking": " " * 100_000}.get(prompt, prompt.upper())


@pytest.fixture
async def model() -> Model:
    return Model()


@pytest.fixture
async def caller(server: Served, model: Model) -> AsyncIterator[Caller]:
    async with server(model) as served:
        yield served.caller


async def printed(caller: Caller, *blocks: str) -> list[str]:
    session = await caller.open_session()
    turns = [await caller.turn(session, block) for block in blocks]
    return [turn.printed or f"{turn.result.error.type}: {turn.result.error.message}\n" for turn in turns]


async def test_a_call_is_made_as_its_keywords_say(caller: Caller, model: Model) -> None:
    block = "llm_query('a', system='be brief', max_tokens=9, temperature=0, fresh=True)"
    batch = "llm_query_batched(['b'], system='be brief', max_tokens=8.0, temperature=1)"
    later = "await llm_query_async('c', max_tokens=7)"
    assert await printed(caller, block, batch, later) == ["'A'\n", "['B']\n", "'C'\n"]
    assert [(r.system, r.max_tokens, r.temperature) for r in model.asked] == [
        ("be brief", 9, 0.0),
        ("be brief", 8, 1.0),
        ("", 7, None),
    ]


async def test_an_answer_says_whether_it_was_cut_off(caller: Caller) -> None:
    block = """
whole, cut = llm_query('hello'), llm_query('hello, world', max_tokens=2)
print(whole, whole.cut, cut, cut.cut, isinstance(cut, str))
print([one.cut for one in llm_query_batched(['x', 'a long prompt', 'refuse'], max_tokens=2)])
print(llm_query(cut), cut + '!', {cut: 1}['HELLO, W'])
"""
    assert await printed(caller, block) == [
        "HELLO False HELLO, W True True\n[False, True, False]\nHELLO, W HELLO, W! 1\n"
    ]


async def test_an_empty_answer_raises_what_code_can_catch(caller: Caller) -> None:
    block = """
for prompt in 'empty', 'thinking', 'refuse':
    try: llm_query(prompt)
    except ModelError as error: print(type(error).__name__, error.kind)
print(llm_query_batched(['empty', 'a', 'refuse']))
print([type(one).__name__ for one in llm_query_batched(['empty', 'a'], return_exceptions=True)])
"""
    refused = "Error: play: the prompt is longer than the model takes"
    assert await printed(caller, block) == [
        "ModelError empty\nAnswerCut empty\nModelError too_long\n"
        f"['Error: play: the answer is empty', 'A', '{refused}']\n['ModelError', 'Answer']\n"
    ]


@pytest.mark.parametrize("wrong", ["'hello'", "b'hello'", "{'a': 1}", "None", "7"])
async def test_what_is_no_list_of_prompts_is_a_type_error_and_costs_nothing(
    caller: Caller, model: Model, wrong: str
) -> None:
    for name in ("llm_query_batched", "rlm_query_batched"):
        (said,) = await printed(caller, f"{name}({wrong})")
        assert said.startswith("TypeError: prompts must be a list, not ")
    (said,) = await printed(caller, f"await llm_query_batched_async({wrong})")
    assert said.startswith("TypeError: prompts must be a list, not ")
    assert model.asked == []


async def test_a_batch_takes_any_iterable_and_none_of_it(caller: Caller, model: Model) -> None:
    blocks = ("llm_query_batched([])", "llm_query_batched(())", "await llm_query_batched_async([])")
    assert await printed(caller, *blocks) == ["[]\n"] * 3
    assert model.asked == []
    assert await printed(caller, "llm_query_batched(f'p{i}' for i in range(2))") == ["['P0', 'P1']\n"]
    many = "answers = llm_query_batched([f'p{i}' for i in range(2500)]); print(len(answers), answers[0], answers[-1])"
    assert await printed(caller, many) == ["2500 P0 P2499\n"]


async def test_a_bad_prompt_fails_its_own_slot(caller: Caller, model: Model) -> None:
    block = "for one in llm_query_batched(['a', None, 7, 'b', 'half \\udc80']): print(one)"
    assert await printed(caller, block) == [
        "A\nError: prompts must be str, not NoneType\nError: prompts must be str, not int\nB\n"
        "Error: prompts holds half a surrogate pair, at 5\n"
    ]
    models = "for one in llm_query_batched(['a', 'b', 'c'], model=['play', 'nobody', 7]): print(one)"
    assert await printed(caller, models) == [
        "A\nError: there is no model 'nobody'; the models are: play\nError: model must be str, not int\n"
    ]
    kinds = "[type(one).__name__ for one in llm_query_batched([1, 'a'], return_exceptions=True)]"
    assert await printed(caller, kinds) == ["['TypeError', 'Answer']\n"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("max_tokens=0", "ValueError: max_tokens must be positive, not 0"),
        ("max_tokens='9'", "TypeError: max_tokens must be int, not str"),
        ("max_tokens=True", "TypeError: max_tokens must be int, not bool"),
        ("temperature=3", "ValueError: temperature must be from 0 to 2, not 3.0"),
        ("temperature=float('nan')", "ValueError: temperature must be from 0 to 2, not nan"),
        ("temperature='hot'", "TypeError: temperature must be a number, not str"),
        ("system=7", "TypeError: system must be str, not int"),
        ("top_p=1", "TypeError: llm_query() got an unexpected keyword argument 'top_p'"),
    ],
)
async def test_a_keyword_that_cannot_be_is_said_so(caller: Caller, wrong: str, said: str) -> None:
    assert await printed(caller, f"llm_query('a', {wrong})") == [f"{said}\n"]


async def test_a_passage_in_the_place_of_a_model_is_named_by_its_beginning(caller: Caller) -> None:
    (said,) = await printed(caller, "llm_query('a', ''.join(map(str, range(1000))))")
    passage = "".join(map(str, range(1_000)))
    assert passage[:60] in said
    assert passage[:61] not in said


async def test_children_take_an_empty_list_and_json_and_no_model_for_a_context(server: Served) -> None:
    lines = (
        "print(rlm_query('q', []), rlm_query('q', {'a': [1]}), rlm_query('q', [{'a': 1}]))",
        "print(rlm_query_batched(['q', 3], [[], 'text']), rlm_query_batched([]))",
        "try: rlm_query('q', 'play')\nexcept ValueError as error: print(error)",
        "try: rlm_query_batched(['q'], 'play')\nexcept TypeError as error: print(error)",
        "print(rlm_query_batched(['q', 'q'], ['text', 'play'])[1])",
        "FINAL('done')",
    )

    class Tree(Play):
        async def reply(self, request: ModelRequest) -> str:
            if request.messages[0].content.startswith("Question:\nq\n"):
                return code("FINAL(f'<{context}>' if isinstance(context, str) else f'{len(context)} documents')")
            return await super().reply(request)

    play = Tree(*map(code, lines))
    async with server(play) as served:
        ended = await served.caller.ask()
    assert ended.run.answer == "done"
    told = "\n".join(message.content for message in play.asked[-1].messages)
    assert '0 documents <{"a": [1]}> <[{"a": 1}]>' in told
    assert "['0 documents', 'Error: prompt must be str, not int'] []" in told
    assert "the context is the name of a model: write rlm_query(prompt, model='play') to ask it" in told
    assert "contexts must be a list with one for each prompt, not str" in told
    assert "Error: the context is the name of a model" in told


async def test_the_model_is_told_of_answers_that_were_cut_off(server: Served) -> None:
    ask = code("_ = llm_query_batched(['a long prompt', 'another long prompt'], max_tokens=1)")

    class Told(Play):
        async def reply(self, request: ModelRequest) -> str:
            prompt = request.messages[0].content
            return prompt if prompt.endswith("long prompt") else await super().reply(request)

    play = Told(ask, code("FINAL('done')"))
    async with server(play) as served:
        await served.caller.ask()
    cut = "the answer of play was cut off at 1 tokens: its end is missing, and `.cut` is True."
    assert f"2 model calls of your code: {cut}" in play.asked[-1].messages[-1].content
