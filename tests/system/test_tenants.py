"""What an operator says of tenants and keys is in force at once, and is theirs alone to say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import context_pb2, run_pb2, tenant_pb2, types_pb2

from rlm_server.api import requests, responses
from rlm_server.clock import now
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import UNITS, Limit
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.tenants import Tenants
from rlm_server.tenants.terms import OwnTerms
from tests.servers import Served
from tests.system.accountant import units
from tests.system.every_call import make, methods
from tests.system.operator import Operator, operating, until
from tests.system.stage import ENDED, USD, Caller, Play, code, eventually, header, part, refusal

DENIED, UNAUTHENTICATED = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
BUDGET = types_pb2.Budget


def at(milliseconds: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp


async def forever(prompt: str) -> str:
    await asyncio.Event().wait()
    return prompt


# ---- who may call what -------------------------------------------------------------------------------------------


async def test_a_key_opens_the_services_of_its_kind_alone(server: Served) -> None:
    async with server(Play("")) as served, operating(served) as operator:
        for method in methods():
            operators = method.containing_service.name == "TenantService"
            said = await refusal(make(served.caller if operators else operator.caller, method))
            assert (said.code, said.reason) == (DENIED, "WRONG_KIND_OF_KEY"), method.full_name
            assert said.said["key_kind"] == ("operator" if operators else "tenant")


async def test_a_key_that_is_unknown_revoked_or_expired_is_refused_in_the_same_words(server: Served) -> None:
    async with server(Play("")) as served, operating(served) as operator:
        await operator.create("acme")
        revoked = await operator.key("acme")
        expiring = await operator.key("acme", expire_time=at(now() + 400))
        assert (await refusal(served.another(expiring.secret).get("run_x"))).reason == "NOT_FOUND"
        await operator.revoke(revoked.key.key_id)
        refused = set()
        for secret in (revoked.secret, "rlm_" + "x" * 43):
            said = await refusal(served.another(secret).get("run_x"))
            refused.add((said.code, said.reason, said.message))

        async def expired() -> bool:
            said = await refusal(served.another(expiring.secret).get("run_x"))
            if said.reason == "UNAUTHENTICATED":
                refused.add((said.code, said.reason, said.message))
            return said.reason == "UNAUTHENTICATED"

        await until(expired)
        assert refused == {(UNAUTHENTICATED, "UNAUTHENTICATED", "the key is not valid")}


async def test_a_key_is_replaced_by_another_while_both_work(server: Served) -> None:
    async with server(Play(code("FINAL(1)"))) as served, operating(served) as operator:
        await operator.create("acme")
        old, new = await operator.key("acme"), await operator.key("acme", labels={"for": "rotation"})
        run = await served.another(old.secret).create()
        assert (await served.another(new.secret).get(run.run_id)).run_id == run.run_id
        await operator.revoke(old.key.key_id)
        assert (await refusal(served.another(old.secret).get(run.run_id))).code is UNAUTHENTICATED
        assert (await served.another(new.secret).get(run.run_id)).run_id == run.run_id
        assert [key.labels for key in await operator.keys("acme")] == [{"for": "rotation"}]
        assert [key.prefix for key in await operator.keys("acme", show_inactive=True)] == [
            old.secret[:10],
            new.secret[:10],
        ]


@pytest.mark.parametrize("how", ["revoked", "expired", "revoked on the machine", "deleted"])
async def test_open_streams_end_when_their_key_does(server: Served, how: str) -> None:
    play = Play(code("llm_query('x')"), sub=forever)
    async with server(play) as served, operating(served) as operator:
        await operator.create("acme", budget=BUDGET(nano_usd=USD))
        acme = served.another((await operator.key("acme")).secret)
        run, session = (
            await acme.create(budget=BUDGET(nano_usd=USD // 4)),
            await acme.open_session(budget=BUDGET(nano_usd=USD // 4)),
        )
        expire = {"expire_time": at(now() + 3_000)} if how == "expired" else {}
        made = await operator.key("acme", **expire)
        acme = served.another(made.secret)
        upload = acme.contexts.UploadContext(metadata=acme.metadata)
        await upload.write(header(100, "0" * 64))
        await upload.write(part(0, b"a part"))
        streams = [
            asyncio.ensure_future(refusal(acme.ended(run.run_id))),
            asyncio.ensure_future(refusal(acme.turn(session, "llm_query('y')"))),
            asyncio.ensure_future(refusal(upload)),
        ]
        if how != "expired":
            await eventually(lambda: len(play.subcalls) >= 2)
        match how:
            case "revoked":
                await operator.revoke(made.key.key_id)
            case "revoked on the machine":
                await served.running.keys.revoke(made.key.key_id)
            case "deleted":
                await operator.delete("acme", force=True)
        async with asyncio.timeout(20):
            for said in await asyncio.gather(*streams):
                assert (said.code, said.reason, said.message) == (
                    UNAUTHENTICATED,
                    "UNAUTHENTICATED",
                    "the key is not valid",
                )
        if how != "deleted":  # what it began goes on
            again = served.another((await operator.key("acme")).secret)
            assert (await again.get(run.run_id)).state not in ENDED


async def test_the_secret_is_told_once_and_a_request_that_comes_again_makes_no_second_key(
    server: Served, tmp_path: Path
) -> None:
    for start in range(2):
        async with server(Play(""), data_dir=tmp_path / "kept") as served, operating(served) as operator:
            if start == 0:
                await operator.create("acme", request_id="make acme")
                first = await operator.key("acme", request_id="once")
                assert (bool(first.secret), first.repeated) == (True, False)
            assert (await operator.create("acme", request_id="make acme")).tenant_id == "acme"
            again = await operator.key("acme", request_id="once")
            assert (again.secret, again.repeated, again.key) == ("", True, first.key)
            assert len(await operator.keys("acme")) == 1
            other = tenant_pb2.CreateApiKeyRequest(tenant_id="acme", labels={"a": "b"}, request_id="once")
            for reused in (operator.call(other), operator.create("acme", weight=2, request_id="make acme")):
                said = await refusal(reused)
                assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_when_a_key_was_used_last_is_told(server: Served, tmp_path: Path) -> None:
    async with server(Play(""), data_dir=tmp_path / "kept") as served, operating(served) as operator:
        await operator.create("acme")
        used, unused = await operator.key("acme"), await operator.key("acme")
        await refusal(served.another(used.secret).get("run_x"))
    async with server(Play(""), data_dir=tmp_path / "kept") as served, operating(served) as operator:
        told = {key.key_id: key.HasField("last_use_time") for key in await operator.keys("acme")}
        assert told == {used.key.key_id: True, unused.key.key_id: False}


# ---- what is said of a tenant ------------------------------------------------------------------------------------


async def test_what_is_said_of_a_tenant_goes_before_the_configuration_and_both_before_what_holds_for_all(
    server: Served,
) -> None:
    own = {"acme": {"max_turns": 7, "batch": 70}}
    async with server(Play(""), tenants=own, max_turns=9, failed_calls=90) as served, operating(served) as operator:
        await operator.create("acme", limits={"batch": 5})
        got = await operator.get("acme")
        told = {limit.name: (limit.value, limit.source) for limit in got.limits}
        assert told["batch"] == (5, tenant_pb2.LIMIT_SOURCE_TENANT)
        assert told["max_turns"] == (7, tenant_pb2.LIMIT_SOURCE_CONFIGURATION)
        assert told["failed_calls"] == (90, tenant_pb2.LIMIT_SOURCE_SERVER)
        await operator.update("acme", "limits.batch", "limits.max_turns", limits={"max_turns": 3})
        limits = await operator.limits("acme")
        assert (limits["batch"], limits["max_turns"]) == (70, 3)
        await operator.update("acme", "*")
        assert (await operator.limits("acme"))["max_turns"] == 7


async def test_limits_are_in_force_when_the_call_that_changes_them_returns(server: Served) -> None:
    async with server(Play(code("FINAL(1)"))) as served, operating(served) as operator:
        acme = await served.tenant("acme")
        assert (await acme.ask()).run.answer == "1"
        await operator.update("acme", "limits", limits={"max_turns": 2, "turn_seconds": 1.5, "tenant_sessions": 1})
        said = await refusal(acme.create(limits=run_pb2.RunLimits(max_turn_count=3)))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["limits.max_turn_count"])
        await acme.open_session()
        assert (await refusal(acme.open_session())).reason == "TOO_MANY_SESSIONS"
        await operator.update("acme", "limits")
        await acme.open_session()
        assert (await acme.ask(limits=run_pb2.RunLimits(max_turn_count=3))).run.answer == "1"


async def test_models_and_images_that_a_tenant_may_not_use_are_as_if_they_were_not_there(server: Served) -> None:
    said_in_code = "try:\n    print(llm_query('x', model='dear'))\nexcept ValueError as error:\n    print(error)"
    play, dear = Play(code(said_in_code), code("FINAL('done')")), Play("dear")
    async with server(play, {"dear": dear}) as served, operating(served) as operator:
        acme = await served.tenant("acme")
        await operator.update("acme", allowed_models=["pl?y", "cheap-*"], allowed_images=["core"])
        for asked, field in (({"model": "dear"}, "model"), ({"sub_model": "dear"}, "sub_model")):
            said = await refusal(acme.create(**asked))
            assert (said.reason, said.fields) == ("UNKNOWN_MODEL", [field])
            assert said.message.endswith("the models are: play")
        assert (await refusal(acme.create(image="data"))).fields == ["image"]
        assert "there is no model 'dear'" in (await acme.ask()).printed
        assert dear.asked == []
        assert "dear" not in play.asked[0].system
        await operator.update("acme", "allowed_models", "allowed_images")
        assert (await acme.ask(image="data", sub_model="dear")).run.answer == "done"


async def test_a_budget_of_every_unit_and_window_is_in_force_at_once(server: Served) -> None:
    play = Play(code("llm_query('a')"), code("FINAL(llm_query('b'))"))
    async with server(play) as served, operating(served) as operator:
        acme = await served.tenant("acme")
        run: dict[str, Any] = {"budget": BUDGET(nano_usd=USD // 10)}
        assert (await acme.ask(**run)).run.answer == "ok"
        for field in ("budget", "hour_budget", "day_budget", "month_budget"):
            spent = (await operator.get("acme")).tenant.spent
            for unit in ("calls", "cpu_ms", "tokens", "nano_usd"):
                used = max(1, dict(zip(UNITS, units(spent), strict=True))[unit])
                wanted = responses.budget(Limit(**{unit: used}))
                said: dict[str, Any] = {field: wanted}
                await operator.update("acme", field, **said)
                got = await operator.get("acme")
                limits = [got.budget] if field == "budget" else [window.limit for window in got.windows]
                assert [getattr(requests.budget(limit), unit) for limit in limits] == [used]
                asked = await asyncio.gather(acme.ask(**run), return_exceptions=True)
                assert isinstance(asked[0], grpc.aio.AioRpcError) or asked[0].run.answer != "ok", (field, unit)  # type: ignore[union-attr]
                spent = (await operator.get("acme")).tenant.spent
            await operator.update("acme", field)
        assert (await acme.ask(**run)).run.answer == "ok"


async def test_a_budget_below_what_was_spent_is_refused_by_its_field(server: Served) -> None:
    async with server(Play(code("FINAL(llm_query('b'))"))) as served, operating(served) as operator:
        acme = await served.tenant("acme")
        await acme.ask()
        said = await refusal(operator.update("acme", budget=BUDGET(call_count=1)))
        assert (said.reason, said.fields) == ("INVALID_FIELD", ["tenant.budget"])
        assert "already used" in said.message


async def test_a_call_in_line_for_a_budget_goes_on_when_the_budget_is_raised(server: Served) -> None:
    async with server(Play(code("FINAL(1)"))) as served, operating(served) as operator:
        await operator.create("acme", budget=BUDGET(nano_usd=1))
        acme = served.another((await operator.key("acme")).secret)
        assert (await refusal(acme.create(budget=BUDGET(nano_usd=USD // 2)))).reason == "BUDGET_EXCEEDED"
        await operator.update("acme", budget=BUDGET(nano_usd=USD))
        assert (await acme.ask(budget=BUDGET(nano_usd=USD // 2))).run.answer == "1"


async def test_a_tenant_without_a_budget_of_its_own_has_the_servers_of_each_unit(
    server: Served, tmp_path: Path
) -> None:
    kept = {"data_dir": tmp_path / "kept"}
    async with server(Play(""), tenant_budget_usd=3, day_budget_usd=2, **kept) as served, operating(served) as operator:
        await operator.create("usual")
        await operator.create("own", budget=BUDGET(call_count=5))
        await operator.create("rich", budget=BUDGET(nano_usd=9 * USD))
    async with server(Play(""), tenant_budget_usd=4, **kept) as served, operating(served) as operator:
        budgets = {name: (await operator.get(name)) for name in ("usual", "own", "rich")}
        assert budgets["usual"].budget == BUDGET(nano_usd=4 * USD)
        assert budgets["own"].budget == BUDGET(nano_usd=4 * USD, call_count=5)
        assert budgets["rich"].budget == BUDGET(nano_usd=9 * USD)
        assert [list(got.windows) for got in budgets.values()] == [[], [], []]
        for name, got in budgets.items():
            assert (await served.running.ledger.balance(name)).limit.nano_usd == got.budget.nano_usd


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"tenant_id": "Acme"}, "tenant.tenant_id", "lower-case"),
    ({"tenant_id": ""}, "tenant.tenant_id", "lower-case"),
    ({"tenant_id": "a" * 64}, "tenant.tenant_id", "1 to 63"),
    ({"tenant_id": "run_1"}, "tenant.tenant_id", "lower-case"),
    ({"weight": 0.001}, "tenant.weight", "from 0.01 to 100"),
    ({"weight": float("nan")}, "tenant.weight", "from 0.01 to 100"),
    ({"limits": {"max_turn": 1}}, "tenant.limits.max_turn", "is it max_turns?"),
    ({"limits": {"max_turns": 0}}, "tenant.limits.max_turns", "from 1 to 1000 turns"),
    ({"limits": {"max_turns": 1.5}}, "tenant.limits.max_turns", "a whole number"),
    ({"limits": {"max_turns": float("inf")}}, "tenant.limits.max_turns", "from 1 to 1000 turns"),
    ({"limits": {"memory_bytes": 1}}, "tenant.limits.memory_bytes", "bytes"),
    ({"allowed_models": ["nobody"]}, "tenant.allowed_models", "there are: play"),
    ({"allowed_models": [""]}, "tenant.allowed_models", "1 to 200"),
    ({"allowed_images": ["nothing"]}, "tenant.allowed_images", "core"),
    ({"allowed_fallbacks": ["x"] * 65}, "tenant.allowed_fallbacks", "may be 64"),
    ({"labels": {str(n): "" for n in range(17)}}, "tenant.labels", "may be 16"),
    ({"labels": {"x" * 64: ""}}, "tenant.labels", "1 to 63"),
    ({"labels": {"x": "y" * 64}}, "tenant.labels.x", "63"),
    ({"budget": BUDGET(nano_usd=-1)}, "tenant.budget.nano_usd", "from 1 to"),
    ({"day_budget": BUDGET(call_count=0)}, "tenant.day_budget.call_count", "from 1 to"),
]


async def test_what_may_not_be_said_of_a_tenant_is_named_with_what_it_may_be(server: Served) -> None:
    async with server(Play("")) as served, operating(served) as operator:
        await operator.create("globex")
        for asked, field, words in WRONG:
            terms = {"tenant_id": "acme", **asked}
            said = await refusal(operator.create(**terms))
            assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field]), asked
            assert words in said.message
            if "tenant_id" not in asked:
                assert (await refusal(operator.update("globex", **asked))).fields == [field]
        for path in ("spent", "tenant_id", "limits.", "budget.nano_usd", "x" * 1_000):
            if path != "limits.":
                assert (await refusal(operator.update("globex", path))).fields == ["update_mask"]
        assert (await operator.get("globex")).tenant.limits == {}
        said = await refusal(operator.key("globex", expire_time=at(now() - 1)))
        assert said.fields == ["expire_time"]


async def test_tenants_and_keys_are_listed_in_pages(server: Served) -> None:
    async with server(Play("")) as served, operating(served) as operator:
        names = sorted(["development", *(f"t{n}" for n in range(5))])
        for name in names[1:]:
            await operator.create(name)
        seen, token = list[str](), ""
        while True:
            page = await operator.call(tenant_pb2.ListTenantsRequest(page_size=2, page_token=token))
            seen += [tenant.tenant_id for tenant in page.tenants]
            token = page.next_page_token
            if not token:
                break
        assert seen == names
        most = await operator.call(tenant_pb2.ListTenantsRequest(page_size=1_000_000))
        assert [tenant.tenant_id for tenant in most.tenants] == names
        made = [(await operator.key("t1")).key.key_id for _ in range(3)]
        first = await operator.call(tenant_pb2.ListApiKeysRequest(tenant_id="t1", page_size=2))
        rest = await operator.call(
            tenant_pb2.ListApiKeysRequest(tenant_id="t1", page_size=2, page_token=first.next_page_token)
        )
        assert [key.key_id for key in (*first.keys, *rest.keys)] == made
        wrong = tenant_pb2.ListApiKeysRequest(tenant_id="t2", page_token=first.next_page_token)
        assert (await refusal(operator.call(wrong))).fields == ["page_token"]


# ---- the end of a tenant -----------------------------------------------------------------------------------------


async def occupied(operator: Operator, acme: Caller) -> str:
    """Give a tenant a run and a session under way, a context, and an upload."""
    await acme.upload("some text")
    await acme.open_session(budget=BUDGET(nano_usd=USD // 4))
    upload = acme.contexts.UploadContext(metadata=acme.metadata)
    begun = context_pb2.UploadHeader(name="half", size_bytes=100, sha256="0" * 64)
    begun.request_id = "half"
    await upload.write(context_pb2.UploadContextRequest(header=begun))
    await upload.write(part(0, b"a part"))
    run: str = (await acme.create(budget=BUDGET(nano_usd=USD // 4))).run_id
    return run


async def test_a_tenant_that_has_something_is_deleted_by_force_alone_and_its_money_stays(
    server: Served, tmp_path: Path
) -> None:
    play = Play(code("llm_query('paid')"), code("llm_query('wait')"), sub=lambda p: forever(p) if p == "wait" else "ok")
    async with server(play, data_dir=tmp_path / "kept") as served, operating(served) as operator:
        await operator.create("acme", budget=BUDGET(nano_usd=USD))
        acme = served.another((await operator.key("acme")).secret)
        run = await occupied(operator, acme)
        await eventually(lambda: "wait" in play.subcalls)
        said = await refusal(operator.delete("acme"))
        assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TENANT_IN_USE")
        counts = {what: said.said[what] for what in ("keys", "runs", "sessions", "uploads", "contexts")}
        assert counts == dict.fromkeys(counts, "1")
        assert (await acme.get(run)).state == run_pb2.RUN_STATE_RUNNING
        deleted = await operator.delete("acme", force=True, request_id="end")
        assert deleted.HasField("delete_time")
        assert await operator.delete("acme", force=True, request_id="end") == deleted
        assert (await refusal(acme.get(run))).code is UNAUTHENTICATED
        spent = (await served.running.ledger.balance("acme")).posted
        assert (spent.calls > 0, spent.nano_usd > 0) == (True, True)
        assert list((tmp_path / "kept" / "uploads").iterdir()) == []
        await eventually(lambda: not list((tmp_path / "kept" / "contexts").iterdir()))
        for gone in (operator.get("acme"), operator.update("acme", weight=2), operator.key("acme")):
            assert (await refusal(gone)).reason == "NOT_FOUND"
        said = await refusal(operator.create("acme"))
        assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TENANT_EXISTS")
        listed = await operator.call(tenant_pb2.ListTenantsRequest(show_deleted=True))
        assert [tenant.tenant_id for tenant in listed.tenants] == ["acme", "development"]
        assert (await served.caller.ask(budget=BUDGET(nano_usd=1), question="mine?")).run.state


async def test_what_a_tenant_has_is_removed_at_the_next_start_where_the_server_was_away(
    server: Served, tmp_path: Path
) -> None:
    kept = {"data_dir": tmp_path / "kept"}
    async with server(Play(code("FINAL(1)")), **kept) as served:
        acme = await served.tenant("acme")
        await acme.upload("text")
        await acme.ask()
    async with await Database.visit(tmp_path / "kept" / "rlm.sqlite", MIGRATIONS) as database:
        await Tenants(database).delete("acme", force=True)
    async with server(Play(""), **kept) as served:
        await eventually(lambda: not list((tmp_path / "kept" / "contexts").iterdir()))

        async def cleared() -> bool:
            return not (await served.running.tenants.changed_since(-1)).leaving

        await until(cleared)


async def test_the_development_tenant_can_be_deleted_and_does_not_come_back(server: Served, tmp_path: Path) -> None:
    kept = {"data_dir": tmp_path / "kept"}
    async with server(Play(""), **kept) as served, operating(served) as operator:
        await operator.delete("development", force=True)
    async with server(Play(""), **kept) as served, operating(served) as operator:
        assert served.running.key == ""
        assert (await refusal(operator.get("development"))).reason == "NOT_FOUND"


async def test_runs_are_kept_for_as_long_as_their_tenant_keeps_them(server: Served, tmp_path: Path) -> None:
    kept = {"data_dir": tmp_path / "kept"}
    async with server(Play(code("FINAL(1)")), **kept) as served, operating(served) as operator:
        acme = await served.tenant("acme")
        run, mine = (await acme.ask()).run.run_id, (await served.caller.ask()).run.run_id
        await operator.update("acme", limits={"run_retention_days": 0.1 / 86_400})
        key = (await operator.key("acme")).secret
    async with server(Play(""), **kept) as served:
        acme = served.another(key)

        async def gone() -> bool:
            try:
                await acme.get(run)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.NOT_FOUND
            return False

        await until(gone)
        assert (await served.caller.get(mine)).answer == "1"


async def test_on_postgres_too_a_command_and_the_server_see_what_the_other_says(
    server: Served, postgres_url: str
) -> None:
    play = Play(code("llm_query('x')"), sub=forever)
    async with server(play, database_url=postgres_url) as served, operating(served) as operator:
        await operator.create("acme", limits={"max_turns": 3}, day_budget=BUDGET(call_count=9), request_id="once")
        assert await operator.create(
            "acme", limits={"max_turns": 3}, day_budget=BUDGET(call_count=9), request_id="once"
        )
        made = await operator.key("acme")
        acme = served.another(made.secret)
        run = await acme.create(budget=BUDGET(nano_usd=USD))
        watching = asyncio.ensure_future(refusal(acme.ended(run.run_id)))
        await eventually(lambda: play.subcalls)
        async with await Database.visit(postgres_url, MIGRATIONS) as database:
            await Tenants(database).update(
                "acme", lambda tenant: replace(tenant, terms=OwnTerms(budget=Limit(calls=50)))
            )
            await Keys(database).revoke(made.key.key_id)
        assert (await watching).reason == "UNAUTHENTICATED"
        got = await operator.get("acme")
        assert (got.tenant.budget.call_count, list(got.windows), dict(got.tenant.limits)) == (50, [], {})
        await operator.delete("acme", force=True)
        assert (await served.running.ledger.balance("acme")).posted.calls == 2
