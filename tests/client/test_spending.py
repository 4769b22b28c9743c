"""`rlm budget`, `rlm usage`, and what the client asks for to show them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from rlm.v1 import budget_pb2, budget_pb2_grpc, types_pb2
from rlm_client import Budget, BudgetRefused, Client, Entries, InvalidArgument, NotFound
from rlm_client.cli import main
from rlm_client.durations import milliseconds

from tests.client.fake_server import KEY
from tests.client.real_server import RealServer

USD = 1_000_000_000
ESCAPE = "\x1b[2J"


class Books(budget_pb2_grpc.BudgetServiceServicer):
    """A server of budgets that answers from its fields, in pages of two, and remembers what it was asked."""

    def __init__(self) -> None:
        self.target = ""
        self.requests: list[Any] = []
        self.budget = budget_pb2.GetBudgetResponse()
        self.accounts: list[budget_pb2.Account] = []
        self.rows: list[budget_pb2.UsageRow] = []
        self.entries: list[budget_pb2.Entry] = []
        self.chunks: list[bytes] = []
        self.breaks = False
        self.events: list[budget_pb2.BudgetEvent] = []
        self.tested = budget_pb2.TestWebhookResponse(taken=True)

    def GetBudget(self, request: Any, context: Any) -> budget_pb2.GetBudgetResponse:
        self.requests.append(request)
        return self.budget

    def CreateAccount(self, request: Any, context: Any) -> budget_pb2.CreateAccountResponse:
        self.requests.append(request)
        return budget_pb2.CreateAccountResponse(account=request.account)

    def UpdateAccount(self, request: Any, context: Any) -> budget_pb2.UpdateAccountResponse:
        self.requests.append(request)
        return budget_pb2.UpdateAccountResponse(account=request.account)

    def ListAccounts(self, request: Any, context: Any) -> budget_pb2.ListAccountsResponse:
        self.requests.append(budget_pb2.ListAccountsRequest.FromString(request.SerializeToString()))
        at = int(request.page_token or 0)
        token = str(at + 2) if at + 2 < len(self.accounts) else ""
        return budget_pb2.ListAccountsResponse(accounts=self.accounts[at : at + 2], next_page_token=token)

    def CloseAccount(self, request: Any, context: Any) -> budget_pb2.CloseAccountResponse:
        self.requests.append(request)
        return budget_pb2.CloseAccountResponse(account=budget_pb2.Account(account_id=request.account_id, closed=True))

    def ListUsage(self, request: Any, context: Any) -> budget_pb2.ListUsageResponse:
        self.requests.append(budget_pb2.ListUsageRequest.FromString(request.SerializeToString()))
        at = int(request.page_token or 0)
        token = str(at + 2) if at + 2 < len(self.rows) else ""
        return budget_pb2.ListUsageResponse(rows=self.rows[at : at + 2], next_page_token=token)

    def ListEntries(self, request: Any, context: Any) -> budget_pb2.ListEntriesResponse:
        self.requests.append(request)
        at = int(request.page_token or 0)
        token = str(at + 2) if at + 2 < len(self.entries) else ""
        return budget_pb2.ListEntriesResponse(entries=self.entries[at : at + 2], next_page_token=token)

    def ExportEntries(self, request: Any, context: Any) -> Iterator[budget_pb2.ExportEntriesResponse]:
        self.requests.append(request)
        for chunk in self.chunks:
            yield budget_pb2.ExportEntriesResponse(data=chunk, last_number=17)
        if self.breaks:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    def ListBudgetEvents(self, request: Any, context: Any) -> budget_pb2.ListBudgetEventsResponse:
        self.requests.append(budget_pb2.ListBudgetEventsRequest.FromString(request.SerializeToString()))
        at = int(request.page_token or 0)
        token = str(at + 2) if at + 2 < len(self.events) else ""
        return budget_pb2.ListBudgetEventsResponse(events=self.events[at : at + 2], next_page_token=token)

    def SetWebhook(self, request: Any, context: Any) -> budget_pb2.SetWebhookResponse:
        self.requests.append(request)
        secret = "whsec_x" if request.rotate_secret else ""
        return budget_pb2.SetWebhookResponse(webhook=budget_pb2.Webhook(url=request.url, enabled=True), secret=secret)

    def GetWebhook(self, request: Any, context: Any) -> budget_pb2.GetWebhookResponse:
        return budget_pb2.GetWebhookResponse(webhook=budget_pb2.Webhook(url=f"https://a{ESCAPE}", enabled=True))

    def TestWebhook(self, request: Any, context: Any) -> budget_pb2.TestWebhookResponse:
        return self.tested

    def DisableWebhook(self, request: Any, context: Any) -> budget_pb2.DisableWebhookResponse:
        self.requests.append(request)
        return budget_pb2.DisableWebhookResponse(webhook=budget_pb2.Webhook(url="https://a", enabled=False))


@pytest.fixture
def books() -> Iterator[Books]:
    made = Books()
    with ThreadPoolExecutor(max_workers=4) as threads:
        server = grpc.server(threads)
        budget_pb2_grpc.add_BudgetServiceServicer_to_server(made, server)
        made.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield made
        finally:
            server.stop(grace=None).wait()


def rlm(target: str, *arguments: str, key: str = KEY) -> Result:
    return CliRunner().invoke(main, ["--server", target, "--key", key, *arguments])


def amounts(nano_usd: int, tokens: int = 0, calls: int = 0, cpu_ms: int = 0) -> types_pb2.Amounts:
    return types_pb2.Amounts(nano_usd=nano_usd, token_count=tokens, call_count=calls, cpu_time=milliseconds(cpu_ms))


def entry(number: int, **more: Any) -> budget_pb2.Entry:
    made = budget_pb2.Entry(number=number, hold_id=f"call_{number}.1", run_id="run_1", model="gpt", **more)
    made.time.FromDatetime(datetime(2026, 11, 25, 7, 30))
    return made


# ---- rlm budget ------------------------------------------------------------------------------------------------------


def test_a_budget_is_a_table_of_limits_what_was_spent_and_what_is_left(books: Books) -> None:
    books.budget = budget_pb2.GetBudgetResponse(
        account=budget_pb2.Account(
            account_id="acme",
            limit=types_pb2.Budget(nano_usd=100 * USD, call_count=5_000),
            posted=amounts(1_500_000, 12_345, 3, 2_500),
            pending=amounts(USD // 2, 100, 1),
            overrun=amounts(500_000),
            left=budget_pb2.Allowance(nano_usd=9 * USD, call_count=0),
        )
    )
    result = rlm(books.target, "budget")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "account acme"
    cells = [[cell for cell in line.split("  ") if cell] for line in lines[1:]]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["limit", "spent", "held", "promised", "left"],
        ["US dollars", "$100.00", "$0.002", "$0.50", "$0.00", "$9.00"],
        ["tokens", "no limit", "12,345", "100", "0", "no limit"],
        ["model calls", "5,000", "3", "1", "0", "0"],
        ["cpu seconds", "no limit", "2.5", "0.0", "0.0", "no limit"],
    ]
    assert len({len(line) for line in lines[2:]}) <= 2  # columns stand under each other


def test_windows_are_shown_with_their_ends_and_a_warning_near_their_limits(books: Books) -> None:
    window = budget_pb2.BudgetWindow(
        span=budget_pb2.WINDOW_SPAN_DAY,
        label="2026-11-25",
        limit=types_pb2.Budget(nano_usd=USD, token_count=100),
        posted=amounts(USD * 81 // 100, 79),
        left=budget_pb2.Allowance(nano_usd=USD * 19 // 100, token_count=21),
    )
    window.end_time.FromDatetime(datetime(2026, 11, 26))
    books.budget = budget_pb2.GetBudgetResponse(account=budget_pb2.Account(account_id="acme"), windows=[window])
    result = rlm(books.target, "budget")
    assert "\nday 2026-11-25, ends 2026-11-26 00:00Z\n" in result.stdout
    assert "$0.19" in result.stdout
    assert result.stderr == "day 2026-11-25: 81 % of the US dollars are spent\n"


def test_the_account_to_show_can_be_named(books: Books) -> None:
    books.budget.account.account_id, books.budget.account.closed = "run_1", True
    assert rlm(books.target, "budget", "run_1").stdout.startswith("account run_1 (ended)\n")
    assert books.requests == [budget_pb2.GetBudgetRequest(account_id="run_1")]


def test_a_budget_as_json_is_the_protocols_own(books: Books) -> None:
    books.budget = budget_pb2.GetBudgetResponse(
        account=budget_pb2.Account(account_id="acme", left=budget_pb2.Allowance(call_count=0))
    )
    (line,) = rlm(books.target, "budget", "--json").stdout.splitlines()
    assert json.loads(line) == {"account": {"account_id": "acme", "left": {"call_count": "0"}}}


# ---- rlm usage -------------------------------------------------------------------------------------------------------


def test_usage_is_a_table_with_its_sum(books: Books) -> None:
    books.rows = [
        budget_pb2.UsageRow(key="", amounts=amounts(0, cpu_ms=1_500), entry_count=2),
        budget_pb2.UsageRow(
            key="gpt",
            amounts=amounts(USD, 1_000, 3),
            entry_count=3,
            ambiguous_entry_count=1,
            ambiguous_amounts=amounts(USD // 4),
        ),
        budget_pb2.UsageRow(key=f"x{ESCAPE}", amounts=amounts(1, 1, 1), entry_count=1),
    ]
    result = rlm(books.target, "usage", "--by", "model")
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in result.stdout.splitlines()]
    assert rows == [
        ["model", "cost", "tokens", "calls", "cpu s", "entries", "ambiguous", "of the cost"],
        ["(sandbox)", "$0.00", "0", "0", "1.5", "2", "0"],
        ["gpt", "$1.00", "1,000", "3", "0.0", "3", "1", "$0.25"],
        ["x\\x1b[2J", "$0.000000001", "1", "1", "0.0", "1", "0"],
        ["in all", "$1.000000001", "1,001", "4", "1.5", "6", "1", "$0.25"],
    ]
    assert [request.by for request in books.requests] == [budget_pb2.USAGE_GROUPING_MODEL] * 2


def test_usage_is_by_day_where_nothing_else_is_asked_for(books: Books) -> None:
    books.rows = [budget_pb2.UsageRow(key="2026-11-25", entry_count=1)]
    (line,) = rlm(books.target, "usage", "--json").stdout.splitlines()
    assert json.loads(line) == {"key": "2026-11-25", "entry_count": "1"}
    assert books.requests[0].by == budget_pb2.USAGE_GROUPING_DAY


def test_entries_are_listed_over_all_pages(books: Books) -> None:
    books.entries = [
        entry(1, amounts=amounts(USD, 1234, 1), ambiguous=True),
        entry(2, amounts=amounts(0, 5, 1)),
        budget_pb2.Entry(number=9, hold_id="turn_1", run_id=f"{ESCAPE}", amounts=amounts(0, cpu_ms=2_000)),
    ]
    lines = rlm(books.target, "usage", "--entries").stdout.splitlines()
    assert lines[0].split() == [
        "1", "2026-11-25", "07:30:00Z", "run_1", "call_1.1", "gpt", "$1.00", "1,234", "tokens", "ambiguous",
    ]  # fmt: skip
    assert "ambiguous" not in lines[1]
    assert lines[2].split()[-4:] == ["$0.00", "2.0", "cpu", "s"]
    assert "\x1b" not in lines[2]
    shown = rlm(books.target, "usage", "--entries", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in shown] == ["1", "2", "9"]


def test_everything_that_narrows_it_down_is_passed_on(books: Books) -> None:
    narrow = [
        *("--since", "2026-11-01", "--until", "2026-12-01T12:30", "--run", "run_1", "--node", "node_1"),
        *("--model", "", "--ambiguous", "--after", "7"),
    ]
    wanted = Entries("run_1", "node_1", "", datetime(2026, 11, 1), datetime(2026, 12, 1, 12, 30), True, 7).message()
    assert wanted.HasField("model")
    assert wanted.since.ToDatetime() == datetime(2026, 11, 1)
    for how in ("--by=run", "--entries", "--export=csv"):
        assert rlm(books.target, "usage", how, *narrow).exit_code == 0
    assert [request.filter for request in books.requests] == [wanted] * 3


def test_a_time_is_taken_with_its_zone() -> None:
    zone = timezone(timedelta(hours=2))
    there, here = datetime(2026, 11, 25, 9, tzinfo=zone), datetime(2026, 11, 25, 7)
    assert Entries(since=there).message() == Entries(since=here).message()
    assert Entries(since=here.replace(tzinfo=UTC)).message() == Entries(since=here).message()


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_an_export_is_the_file_itself_on_stdout(books: Books, format: str) -> None:
    books.chunks = ["a,b\r\n1,ä\r\n".encode(), b"2,'=x\r\n"]
    result = rlm(books.target, "usage", "--export", format)
    assert result.exit_code == 0
    assert result.stdout_bytes == b"".join(books.chunks)
    assert "--after 17" in result.stderr
    assert budget_pb2.ExportFormat.Name(books.requests[0].format) == f"EXPORT_FORMAT_{format.upper()}"


def test_an_export_that_breaks_off_fails(books: Books) -> None:
    books.chunks, books.breaks = [b"a\r\n"], True
    result = rlm(books.target, "usage", "--export", "csv")
    assert result.exit_code == 1
    assert "gone" in result.stderr
    assert "--after" not in result.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ["--by", "hour"],
        ["--by", "day", "--entries"],
        ["--entries", "--export", "csv"],
        ["--export", "xml"],
        ["--export", "csv", "--json"],
        ["--since", "yesterday"],
        ["--after", "-1"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_wrong_usage(books: Books, wrong: list[str]) -> None:
    assert rlm(books.target, "usage", *wrong).exit_code == 2
    assert books.requests == []


# ---- with the real server --------------------------------------------------------------------------------------------


def test_what_a_run_cost_is_found_again_in_every_view(real: RealServer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("class AError(Exception): pass\n" * 10)
    with Client(real.target, real.key) as client:
        run = client.ask("How many?", text).run
        assert client.get_budget(run.run_id).account.posted == run.spent
        of_run = Entries(run_id=run.run_id)
        (row,) = client.list_usage("run", of_run)
        assert (row.key, row.amounts) == (run.run_id, run.spent)
        entries = list(client.list_entries(of_run))
        assert sum(one.amounts.nano_usd for one in entries) == run.spent.nano_usd > 0
        with pytest.raises(NotFound):
            client.get_budget("run_nothing")
        with pytest.raises(InvalidArgument) as refused:
            list(client.list_usage(entries=Entries(since=datetime(2026, 2, 1), until=datetime(2026, 1, 1))))
        assert [violation.subject for violation in refused.value.violations] == ["filter.until"]
        with pytest.raises(BudgetRefused):
            client.create_session(budget=Budget(usd=1_000_000))
    assert run.run_id in rlm(real.target, "usage", "--by", "run", key=real.key).stdout
    table = rlm(real.target, "usage", "--export", "csv", "--run", run.run_id, key=real.key).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert sum(int(one["nano_usd"]) for one in rows) == run.spent.nano_usd
    shown = rlm(real.target, "budget", key=real.key)
    assert (shown.exit_code, shown.stdout.splitlines()[0]) == (0, "account development")


# ---- rlm account -----------------------------------------------------------------------------------------------------


def test_an_account_is_made_with_what_the_options_say(books: Books) -> None:
    done = rlm(
        books.target, "account", "create", "bob", "--parent", "one", "--name", "Bob", "--label", "team=a=b",
        "--limit", "5", "--day", "1.50 usd, 7 calls", "--minute", "900 tokens",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (request,) = books.requests
    assert request.request_id
    made = request.account
    assert (made.account_id, made.parent_id, made.name, dict(made.labels)) == ("bob", "one", "Bob", {"team": "a=b"})
    assert made.limit == types_pb2.Budget(nano_usd=5 * USD)
    assert {one.span: one.limit for one in made.window_limits} == {
        budget_pb2.WINDOW_SPAN_DAY: types_pb2.Budget(nano_usd=USD * 3 // 2, call_count=7),
        budget_pb2.WINDOW_SPAN_MINUTE: types_pb2.Budget(token_count=900),
    }
    assert "every day" in done.output


def test_changing_an_account_keeps_what_is_not_named(books: Books) -> None:
    books.budget.account.account_id = "bob"
    for span in (budget_pb2.WINDOW_SPAN_HOUR, budget_pb2.WINDOW_SPAN_DAY):
        books.budget.account.window_limits.add(span=span, limit=types_pb2.Budget(call_count=1))
    done = rlm(books.target, "account", "set", "bob", "--hour", "none", "--month", "3", "--reset", "day")
    assert done.exit_code == 0, done.output
    request = books.requests[-1]
    assert list(request.update_mask.paths) == ["window_limits"]
    assert {one.span: one.limit for one in request.account.window_limits} == {
        budget_pb2.WINDOW_SPAN_DAY: types_pb2.Budget(call_count=1),
        budget_pb2.WINDOW_SPAN_MONTH: types_pb2.Budget(nano_usd=3 * USD),
    }
    assert list(request.reset_windows) == [budget_pb2.WINDOW_SPAN_DAY]


def test_accounts_are_listed_page_by_page_shown_and_closed(books: Books) -> None:
    books.accounts = [
        budget_pb2.Account(account_id=f"customer-{number}", name=ESCAPE, posted=amounts(USD)) for number in range(5)
    ]
    listed = rlm(books.target, "account", "list", "--label", "team=a")
    assert [line.split()[0] for line in listed.output.splitlines()] == [f"customer-{number}" for number in range(5)]
    assert ESCAPE not in listed.output
    assert dict(books.requests[0].labels) == {"team": "a"}
    closed = rlm(books.target, "account", "close", "bob")
    assert "(closed)" in closed.output
    books.budget.account.account_id = "bob"
    assert "account bob" in rlm(books.target, "account", "show", "bob").output


@pytest.mark.parametrize("wrong", ["five", "5 euros", "-1", "1.5 tokens", "0"])
def test_a_limit_that_is_no_amount_is_refused_before_anything_is_asked(books: Books, wrong: str) -> None:
    done = rlm(books.target, "account", "create", "bob", f"--limit={wrong}")
    assert done.exit_code == 2, done.output
    assert books.requests == []


def test_usage_is_summed_up_by_account_and_by_a_label(books: Books) -> None:
    books.rows = [budget_pb2.UsageRow(key="one", amounts=amounts(USD))]
    done = rlm(books.target, "usage", "--by", "label", "--label", "team", "--account", "bob", "--having", "plan=free")
    assert done.output.split()[0] == "team"
    (request,) = books.requests
    assert (request.by, request.label, request.filter.account_id) == (
        budget_pb2.USAGE_GROUPING_LABEL, "team", "bob",
    )  # fmt: skip
    assert dict(request.filter.labels) == {"plan": "free"}
    assert rlm(books.target, "usage", "--by", "account").exit_code == 0
    assert rlm(books.target, "usage", "--by", "label").exit_code == 2
