"""What outsiders can ask for runs in the threads of its purpose, in its tenant's turn, never in those of the loop."""

from __future__ import annotations

import ast

from tests.repository.arrows import ROOT

OF_THE_SERVER = {
    "broker/providers/lazy.py": "a provider's client is made once",
    "database/database.py": "a database is opened, and closed, once",
    "metrics.py": "the page of the metrics is opened and closed once",
    "shares/memory.py": "modules are imported when the server starts",
    "tools/deployed.py": "a module is imported once",
    "webhooks/deliveries.py": "a module is imported once",
}
"""Where the server uses a thread of the loop's for itself, and for what: a burst of requests makes no more of them."""


def shares_threads(source: str) -> bool:
    """Return whether a module runs anything in the threads that everybody shares."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr == "to_thread")
        or (isinstance(node, ast.ImportFrom) and any(name.name == "to_thread" for name in node.names))
        or (isinstance(node, ast.Call) and _in_default_executor(node))
        for node in ast.walk(ast.parse(source))
    )


def _in_default_executor(call: ast.Call) -> bool:
    named = isinstance(call.func, ast.Attribute) and call.func.attr == "run_in_executor"
    return named and bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value is None


def test_only_the_server_itself_uses_the_threads_that_everybody_shares() -> None:
    package = ROOT / "rlm_server"
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if shares_threads(path.read_text())}
    assert found == OF_THE_SERVER.keys()


def test_each_form_is_found() -> None:
    for form in ("await asyncio.to_thread(f)", "from asyncio import to_thread", "loop.run_in_executor(None, f)"):
        assert shares_threads(f"async def g():\n    {form}\n"), form
    assert not shares_threads("async def g():\n    await loop.run_in_executor(pool, f)\n")
