"""Whatever the models do, a run ends in a state that says what happened, and its books are right."""

from __future__ import annotations

import asyncio

import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from tests.servers import Served, Server
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Ended, Play, code

SUCCEEDED, FAILED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED
EXHAUSTED = run_pb2.RUN_STATE_EXHAUSTED

BUSY = ProviderError(Failure.RATE_LIMITED, "the provider's rate limit is reached", billed=False)
OVERLOADED = ProviderError(Failure.OVERLOADED, "the provider is overloaded", billed=False)
BAD_KEY = ProviderError(Failure.AUTH, "the provider does not accept this server's key", billed=False)
CUT = ProviderError(Failure.GONE, "the provider's answer was cut off", billed=True)


def check(served: Server, ended: Ended) -> None:
    check_story(ended)
    check_settled(served.data_dir)


def guards(ended: Ended) -> list[str]:
    names = [run_pb2.GuardKind.Name(guard.kind) for guard in ended.bodies("guard")]
    return [name.removeprefix("GUARD_KIND_").lower() for name in names]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (code("FINAL('yes')"), "yes"),
        (code("FINAL(6 * 7)"), "42"),
        (code("found = 'yes'\nFINAL_VAR('found')"), "yes"),
        (code("SUBMIT('yes')"), "yes"),
        (code("SUBMIT(a=1, b=2)"), '{"a": 1, "b": 2}'),
        (code("answer['content'] = 'yes'\nanswer['ready'] = True"), "yes"),
        (code("answer = {'content': 'yes', 'ready': True}"), "yes"),
        ("```python\nFINAL('yes')\n```", "yes"),
        ("Now I know.\nFINAL(yes)", "yes"),
        ('FINAL("two\nlines")', "two\nlines"),
        (code("FINAL('x' * 3_000_000)"), "x" * 3_000_000),
        (code("FINAL('')"), None),
        ("FINAL()", None),
        (code("FINAL('\\ud83d')"), None),
        ("FINAL_VAR()", None),
        ("FINAL_VAR('')", None),
    ],
    ids=range(16),
)
async def test_every_form_of_answer_is_taken(server: Served, reply: str, answer: str | None) -> None:
    async with server(Play(reply, code("FINAL('another')"))) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED, ended.run.end_message
        whole = await served.caller.read_answer(ended.run.run_id)
        assert whole == (answer if answer is not None else "another")
        assert ended.bodies("answer")[-1].text == whole[:MAX_EVENT_TEXT]
        check(served, ended)


@pytest.mark.parametrize(
    ("content", "draft"),
    [
        ("0", "0"), ("[]", "[]"), ("False", "False"), ("''", "before"), ("None", "before"),
        ("__import__('numpy').arange(3)", "[0, 1, 2]"),
    ],
)  # fmt: skip
async def test_a_draft_is_what_the_answer_holds_whatever_that_is(server: Served, content: str, draft: str) -> None:
    play = Play(code("answer['content'] = 'before'"), code(f"answer['content'] = {content}"), BAD_KEY)
    async with server(play) as served:
        ended = await served.caller.ask(image="data")
        assert [one.result.error.type for one in ended.bodies("code_finished")] == ["", ""]
        assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_FAILED, draft)


async def test_a_variable_of_an_earlier_turn_is_given_in_plain_text(server: Served) -> None:
    async with server(Play(code("found = 'y' + 'es'"), "FINAL_VAR(found)")) as served:
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.answer) == (SUCCEEDED, "yes")
        check(served, ended)


async def test_blocks_run_in_order_and_stop_at_the_first_error(server: Served) -> None:
    play = Play(code("print('one')", "1 / 0", "print('three')"), code("FINAL('done')"))
    async with server(play) as served:
        ended = await served.caller.ask()
        assert ended.printed == "one\n"
        assert [block.block for block in ended.bodies("code_started")] == [1, 2, 1]
        told = play.asked[1].messages[-1].content
        assert "ZeroDivisionError" in told
        assert "1 block after it did not run" in told
        check(served, ended)


async def test_the_text_itself_is_never_sent_to_the_root_model(server: Served) -> None:
    play = Play(code("n = len(context)"), code("FINAL(n)"))
    async with server(play) as served:
        context = await served.caller.upload("a secret phrase " * 1000)
        ended = await served.caller.ask(context_id=context.context_id)
        assert ended.run.answer == "16000"
        sent = [message.content for request in play.asked for message in request.messages]
        assert not any("secret" in text for text in sent)
        assert "16,000 characters" in sent[0]


async def test_a_reply_without_code_is_told_so_and_ends_the_run_when_it_goes_on(server: Served) -> None:
    class Talk:
        turn = 0

        async def reply(self, request: ModelRequest) -> str:
            self.turn += 1
            if self.turn > 1:
                told = request.messages[-1].content
                assert "no `repl` block" in told or "No more code will run" in told
            return f"I think about it, for the {self.turn}th time."

    async with server(Talk()) as served:
        ended = await served.caller.ask()
        assert ended.run.state == EXHAUSTED
        assert ended.run.end_message.startswith("errors_in_a_row")
        assert set(guards(ended)) == {"no_code"}
        check(served, ended)


async def test_turns_that_fail_one_after_another_end_the_run(server: Served) -> None:
    async with server(Play(*[code(f"raise ValueError({i})") for i in range(9)])) as served:
        ended = await served.caller.ask()
        assert ended.run.state == EXHAUSTED
        assert ended.run.end_message.startswith("errors_in_a_row")
        assert ended.nodes[0].turn_count == 5
        check(served, ended)


async def test_code_that_repeats_itself_ends_the_run(server: Served) -> None:
    play = Play(code("print(1)"))
    async with server(play) as served:
        ended = await served.caller.ask()
        assert ended.run.state == EXHAUSTED
        assert "no progress" in ended.run.end_message
        assert guards(ended) == ["repeated", "repeated", "last_word"]
        assert "before" in play.asked[2].messages[-1].content
        check(served, ended)


async def test_the_last_turn_is_followed_by_a_closing_answer(server: Served) -> None:
    play = Play(code("print(1)"), code("print(2)"), code("print(3)"), "My best guess is 3.")
    async with server(play) as served:
        ended = await served.caller.ask(limits=run_pb2.RunLimits(max_turn_count=3))
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, "My best guess is 3.")
        assert ended.run.end_message.startswith("max_turns")
        assert len(play.asked) == 4
        check(served, ended)


async def test_an_answer_begun_is_kept_when_a_limit_ends_the_run(server: Served) -> None:
    begun = code("answer['content'] = 'so far'\nprint(1)")
    async with server(Play(begun, code("raise ValueError"))) as served:
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, "so far")
        check(served, ended)


# ---- providers that fail -----------------------------------------------------------------------------------------


class Failing:
    """Raises what it is given, one for each call of a kind of model, and then answers."""

    def __init__(self, *errors: ProviderError, node: bool) -> None:
        self.errors, self.node = list(errors), node

    async def reply(self, request: ModelRequest) -> str:
        if bool(request.system) == self.node and self.errors:
            raise self.errors.pop(0)
        if not request.system:
            return "ok"
        return code("try: print(llm_query('x'))\nexcept RuntimeError as error: print(error)", "FINAL('done')")


@pytest.mark.parametrize("error", [BUSY, OVERLOADED], ids=["rate limited", "overloaded"])
@pytest.mark.parametrize("node", [True, False], ids=["the node's model", "a sub-model"])
async def test_a_busy_provider_is_asked_again_and_billed_once(server: Served, error: ProviderError, node: bool) -> None:
    async with server(Failing(error, node=node)) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED
        assert "ok" in ended.printed
        assert ended.run.spent.call_count == 2
        states = [hold["state"] for hold in rows(served.data_dir, "SELECT state FROM hold WHERE model <> ''")]
        assert sorted(states) == ["posted", "posted", "voided"]
        check(served, ended)


async def test_events_name_the_model_that_answered_where_it_is_a_fallback(server: Served) -> None:
    def refuse(prompt: str) -> str:
        raise BAD_KEY

    twice = "print(llm_query('x'))\nprint(llm_query('x'))"
    other = Play(code(twice, "FINAL('done')"), sub=lambda _: "from the other")
    settings: dict[str, object] = {"fallbacks": {"play": ["other"]}, "tenants": {"development": {"fallbacks": True}}}
    async with server(Play(BAD_KEY, sub=refuse), {"other": other}, **settings) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED, ended.run.end_message
        assert ended.printed == "from the other\n" * 2
        assert [reply.model for reply in ended.bodies("model_replied")] == ["other"]
        assert [started.model for started in ended.bodies("call_started")] == ["play", "play"]
        assert [(done.call.model, done.call.memo) for done in ended.bodies("call_finished")] == [
            ("other", False),
            ("other", True),
        ]
        check(served, ended)


@pytest.mark.parametrize("error", [BAD_KEY, CUT], ids=["bad key", "cut off"])
async def test_a_node_whose_model_fails_fails_with_the_reason(server: Served, error: ProviderError) -> None:
    async with server(Failing(error, node=True), root_attempts=1) as served:
        ended = await served.caller.ask()
        assert ended.run.state == FAILED
        assert error.failure in ended.run.end_message
        assert str(error) in ended.run.end_message
        assert ended.run.spent.call_count == int(error.billed)
        check(served, ended)


@pytest.mark.parametrize("error", [BAD_KEY, CUT], ids=["bad key", "cut off"])
async def test_a_sub_call_that_fails_raises_in_the_code_and_the_run_goes_on(
    server: Served, error: ProviderError
) -> None:
    async with server(Failing(error, node=False)) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED
        assert str(error) in ended.printed
        (finished,) = ended.bodies("call_finished")
        assert str(error) in finished.call.error
        assert finished.call.spent.call_count == int(error.billed)
        check(served, ended)


async def test_an_error_of_a_script_is_an_internal_error_that_leaks_nothing(server: Served) -> None:
    class Broken:
        async def reply(self, request: ModelRequest) -> str:
            raise KeyError("an internal detail")

    async with server(Broken()) as served:
        ended = await served.caller.ask()
        assert ended.run.state == FAILED
        assert "detail" not in ended.run.end_message
        check(served, ended)


class Silent:
    """A model that never answers: the node's, or the sub-model."""

    def __init__(self, *, node: bool) -> None:
        self.node = node

    async def reply(self, request: ModelRequest) -> str:
        if bool(request.system) == self.node:
            await asyncio.Event().wait()
        return code("try: llm_query('x')\nexcept RuntimeError as error: print(error)", "FINAL('done')")


async def test_a_model_that_never_answers_is_given_up_and_paid_in_full(server: Served) -> None:
    async with server(Silent(node=True), call_seconds=0.3, root_attempts=1) as served:
        ended = await served.caller.ask()
        assert ended.run.state == FAILED
        assert "timed_out" in ended.run.end_message
        (hold,) = rows(served.data_dir, "SELECT * FROM hold WHERE model <> ''")
        assert (hold["state"], hold["actual_nano_usd"]) == ("posted", hold["nano_usd"])
        assert ended.run.spent.nano_usd == hold["nano_usd"]
        check(served, ended)


async def test_a_sub_model_that_never_answers_is_given_up_and_the_run_goes_on(server: Served) -> None:
    async with server(Silent(node=False), call_seconds=0.3) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED
        assert "no answer came within 0.3 s" in ended.printed
        (finished,) = ended.bodies("call_finished")
        assert finished.call.spent.call_count == 1
        check(served, ended)


@pytest.mark.parametrize("node", [True, False], ids=["the node's model", "a sub-model"])
async def test_the_time_of_a_run_ends_it_whatever_it_waits_for(server: Served, node: bool) -> None:
    async with server(Silent(node=node), wall_seconds=0.5) as served:
        ended = await served.caller.ask()
        assert ended.run.state == EXHAUSTED
        assert ended.run.end_message.startswith("wall_seconds")
        check(served, ended)


async def test_the_time_of_a_run_ends_its_children_too(server: Served) -> None:
    play = Play(
        code("rlm_query_batched(['middle'] * 3, list('abc'))"),
        middle=code("rlm_query_batched(['leaf'] * 2, [context + '1', context + '2'])"),
        leaf=code("while True: pass"),
        again=code("FINAL(1)"),
    )
    async with server(play, wall_seconds=1.5, sessions=10) as served:
        ended = await served.caller.ask()
        assert ended.run.state == EXHAUSTED
        assert ended.run.end_message.startswith("wall_seconds")
        check(served, ended)
        assert (await served.caller.ask("again")).run.state == SUCCEEDED


async def test_half_a_surrogate_pair_in_a_reply_harms_nobody(server: Served) -> None:
    replies = Play(code("print(llm_query('x'))\n# \ud83d", "FINAL('done \ud83d')"), sub=lambda _: "a\udc00b")
    async with server(replies) as served:
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.answer) == (SUCCEEDED, "done ?"), ended.run.end_message
        assert "a?b" in ended.printed
        check(served, ended)


# ---- depth, memo -------------------------------------------------------------------------------------------------


async def test_below_the_last_level_a_child_is_one_call(server: Served) -> None:
    play = Play(code("FINAL(rlm_query('a child', 'its text'))"), sub=lambda prompt: f"answered {prompt!r}")
    async with server(play) as served:
        ended = await served.caller.ask(limits=run_pb2.RunLimits(max_depth=0))
        assert ended.run.answer == repr("a child\n\nText:\nits text").join(["answered ", ""])
        assert guards(ended) == ["max_depth"]
        assert "depth cap" in ended.printed
        assert len(ended.nodes) == 1
        check(served, ended)


@pytest.mark.parametrize("model", ["nobody", ""])
async def test_a_child_with_a_model_that_is_not_there_is_an_error_in_the_code(server: Served, model: str) -> None:
    ask = f"try: rlm_query('a', model={model!r})\nexcept ValueError as error: print(error)"
    async with server(Play(code(ask, "FINAL('done')"))) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED
        assert f"there is no model {model!r}; the models are: play" in ended.printed
        assert len(ended.nodes) == 1
        check(served, ended)


async def test_a_child_that_fails_is_an_error_in_its_parents_code(server: Served) -> None:
    play = Play(
        code("print(rlm_query_batched(['good', 'bad']))", "FINAL('done')"), good=code("FINAL('fine')"), bad=BAD_KEY
    )
    async with server(play) as served:
        ended = await served.caller.ask()
        assert ended.run.state == SUCCEEDED
        assert "'fine'" in ended.printed
        assert "Error: the child RLM ended failed" in ended.printed
        assert sorted(node.state for node in ended.nodes) == [SUCCEEDED, SUCCEEDED, FAILED]
        check(served, ended)


async def test_children_get_their_own_text_and_names(server: Served) -> None:
    play = Play(
        code(
            "secret = 7\nprint(rlm_query_batched(['read'] * 20, ['text äöü 🎉 %d' % i for i in range(20)]))", "FINAL(1)"
        ),
        read=code("FINAL(context[5:] + str('secret' in globals()))"),
    )
    async with server(play) as served:
        ended = await served.caller.ask()
        assert str([f"äöü 🎉 {i}False" for i in range(20)]) in ended.printed
        check(served, ended)


async def test_identical_prompts_are_asked_once(server: Served) -> None:
    play = Play(
        code("print(llm_query_batched(['same'] * 10 + ['other']))"),
        code("print(llm_query('same'), rlm_query('child', 'text'))", "FINAL('done')"),
        child=code("FINAL(llm_query('same'))"),
    )
    async with server(play) as served:
        ended = await served.caller.ask()
        assert sorted(play.subcalls) == ["other", "same"]
        finished = [body.call for body in ended.bodies("call_finished")]
        assert len(finished) == 13
        assert len([call for call in finished if call.memo]) == 11
        assert all(call.spent == types_pb2.Amounts() for call in finished if call.memo)
        assert ended.run.spent.call_count == 2 + 1 + 2
        again = await served.caller.ask()
        assert again.run.spent.call_count == 5, "what one run asked is not another's"
        check(served, ended)


async def test_without_a_context_there_is_an_empty_one(server: Served) -> None:
    async with server(Play(code("FINAL(repr(context))"))) as served:
        ended = await served.caller.ask()
        assert ended.run.answer == "''"
        check(served, ended)
