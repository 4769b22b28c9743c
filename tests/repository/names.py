"""What the pages, docstrings and comments of the repository name: paths, and dotted names of modules and what is in
them. Each is looked up, so that nothing speaks of what has moved.

A path is written from the root of the repository, or from the root of one of its packages. A dotted name is written
from a package, or as the code around it would write it.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGES = ("rlm_server", "sandbox", "clients/python/rlm_client", "tests", "benchmarks", "examples")
"""Folders that dotted names begin in; paths may begin in the first three as well."""

COMMENTED = (".proto", ".sql", ".toml", ".yml", ".yaml")
"""Of files, beside Python's, whose comments are read."""

ENDINGS = ("py", "pyi", "md", "proto", "sql", "toml", "json", "txt", "yaml", "yml")
"""Of names of files that have no folder: `node.py`."""

FOREIGN = {"host", "hooks", "compression", "dspy"}
"""First words of dotted names that are neither ours, nor this Python's, nor of a package that is installed."""

ELSEWHERE = {
    "10.0.0.0/8": "a network",
    "Memory.read": "wasmtime's",
    "NNNN_what_it_changes.sql": "how a migration is to be named",
    "_testlimitedcapi.py": "a file that the conformance tests add in the guest",
    "a.b": "any name",
    "anthropic/claude-sonnet-5-5": "a model",
    "chat/completions": "an interface of a provider's",
    "compatible/local": "a model",
    "docs.md": "WASI's own",
    "openai/gpt-7": "a model",
    "stated-prices.json": "a file in the data directory",
}
"""What looks like a path or a name of the repository and is none."""

_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(.*\))?")
_NAME_OF_A_FILE = re.compile(rf"[\w-]+\.(?:{'|'.join(ENDINGS)})")
_PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?(?:::\w+)?")
_FROM_THE_ROOT = re.compile(
    r"(?<![\w/.~-])((?:\.github|\.ci|benchmarks|clients|docker|docs|examples|proto|requirements|rlm_server|sandbox|"
    r"scripts|tests)/[\w./*-]*\w)"
)


@dataclass(frozen=True, slots=True)
class Prose:
    """A page, docstring or comment of a file; `variables` are names that the code beside it has of its own."""

    path: str
    text: str
    variables: frozenset[str] = field(default=frozenset())


@cache
def tracked() -> frozenset[str]:
    """Return the files of the repository, those that are new included, and the folders they are in."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    files = [name for name in listed if (ROOT / name).exists()]
    return frozenset(files) | {str(folder) for name in files for folder in Path(name).parents}


def prose() -> Iterator[Prose]:
    """Yield all that is written for people."""
    for path in sorted(tracked()):
        file = ROOT / path
        if path.endswith(".py") and "_pb2" not in path:
            yield from _of_python(path, file.read_text())
        elif path.endswith(".md"):
            yield Prose(path, file.read_text())
        elif file.is_file() and (path.endswith(COMMENTED) or path.startswith(("scripts/", "docker/", "Makefile"))):
            comments = re.findall(r"(?:#|//) .*", file.read_bytes().decode("utf-8", "replace"))
            yield Prose(path, "\n".join(comments))


def _of_python(path: str, source: str) -> Iterator[Prose]:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    variables = frozenset(
        {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        | {node.arg for node in nodes if isinstance(node, ast.arg)}
        | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    )
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Prose(path, node.value.value, variables)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Prose(path, token.string, variables)


def missing(written: Prose) -> list[str]:
    """Return what a text names and there is not: paths, files, links and dotted names."""
    found = [path for path in _FROM_THE_ROOT.findall(written.text) if not is_path(path)]
    if written.path.endswith(".md"):
        found += [link for link in _LINK.findall(written.text) if not is_link(link, written.path)]
    for span in _SPAN.findall(_FENCE.sub("", written.text)):
        found += [word for word in span.split() if not _is_known(word.rstrip(",;:"), span, written)]
    return found


def _is_known(word: str, span: str, written: Prose) -> bool:
    if word in ELSEWHERE or word.startswith(("/", "~", "$", "-", "<", ".venv/")) or "://" in word:
        return True
    if _NAME_OF_A_FILE.fullmatch(word):
        return is_name_of_a_file(word) or is_dotted(word, written)
    if "/" in word and _PATH.fullmatch(word):
        return is_path(word.partition("::")[0])
    dotted = _DOTTED.fullmatch(span)
    return dotted is None or is_dotted(dotted[1], written)


def is_path(path: str) -> bool:
    """Whether there is a file or folder of this path, which may have stars in it."""
    wanted = path.rstrip("/.")
    for folder in ("", *PACKAGES[:3]):
        whole = f"{folder}/{wanted}".lstrip("/")
        if whole in tracked() or ("*" in whole and any(True for _ in ROOT.glob(whole))):
            return True
    return False


def is_name_of_a_file(name: str) -> bool:
    """Whether any file of the repository is called so."""
    return any(path.endswith(f"/{name}") or path == name for path in tracked())


def is_link(link: str, page: str) -> bool:
    """Whether a page's link leads somewhere: out of the repository, or to a file and, in a page, to a heading."""
    if "://" in link or link.startswith("mailto:"):
        return True
    file, _, heading = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    if not target.exists():
        return False
    return not heading or heading in _headings(target.read_text())


def _headings(page: str) -> set[str]:
    lines = re.findall(r"^#+ (.+)$", _FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


# ---- dotted names ------------------------------------------------------------------------------------------------


def is_dotted(name: str, written: Prose) -> bool:
    """Whether a dotted name is one of ours, of Python's, or of a variable of the code it stands beside."""
    first = name.split(".")[0]
    if first in FOREIGN or hasattr(builtins, first) or first in written.variables or _is_anothers(first):
        return True
    if any(_is_within(f"{package}{name}") for package in _packages(written.path)):
        return True
    return _is_member(name) or _is_in_the_protocol(name) or _is_literal(name)


@cache
def _is_anothers(name: str) -> bool:
    """Whether a module of this name is Python's, or of an installed package."""
    ours = {package.rpartition("/")[2] for package in PACKAGES}
    return name in sys.stdlib_module_names or (name not in ours and find_spec(name) is not None)


def _packages(path: str) -> Iterator[str]:
    yield ""
    parts = list(Path(path).parent.parts)
    while parts:
        yield ".".join(parts).removeprefix("clients.python.") + "."
        parts.pop()
    for package in (*PACKAGES, *(room for room in tracked() if (ROOT / room / "__init__.py").is_file())):
        yield package.replace("/", ".").removeprefix("clients.python.") + "."
    yield "sandbox.guest."


@cache
def _modules() -> dict[str, str]:
    """Return every module and package by its dotted name."""
    found = {}
    for path in tracked():
        dotted = path.removeprefix("clients/python/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if path.startswith(PACKAGES) and (path.endswith(".py") or (ROOT / path).is_dir()):
            found[dotted] = path if path.endswith(".py") else ""
    return found


def _is_within(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if module in _modules():
            return end == len(parts) or (bool(_modules()[module]) and _has(_members(_modules()[module]), parts[end:]))
    return False


Members = dict[str, "Members"]


def _has(members: Members, rest: list[str]) -> bool:
    return not rest or (rest[0] in members and (len(rest) == 1 or _has(members[rest[0]], rest[1:])))


@cache
def _members(path: str) -> Members:
    return _defined(ast.parse((ROOT / path).read_text()))


def _defined(scope: ast.AST) -> Members:
    found: Members = {}
    for node in ast.iter_child_nodes(scope):
        match node:
            case ast.ClassDef():
                found[node.name] = _defined(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found[node.name] = {}
            case ast.Import() | ast.ImportFrom():
                found |= {(alias.asname or alias.name): {} for alias in node.names}
            case ast.Assign():
                names = [one for target in node.targets for one in ast.walk(target)]
                found |= {one.id: {} for one in names if isinstance(one, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = {}
    return found


@cache
def _classes() -> dict[str, Members]:
    found: dict[str, Members] = {}
    for path in filter(None, _modules().values()):
        for name, members in _members(path).items():
            if name[:1].isupper() or name[:2].strip("_")[:1].isupper():
                found.setdefault(name, {}).update(members)
    return found


def _is_member(name: str) -> bool:
    first, *rest = name.split(".")
    return first in _classes() and _has(_classes()[first], rest)


@cache
def _protocol() -> str:
    return "\n".join((ROOT / path).read_text() for path in sorted(tracked()) if path.endswith(".proto"))


def _is_in_the_protocol(name: str) -> bool:
    """Whether it is a package, a call or a field: `rlm.v1`, `RunService.CreateRun`, `Run.answer`."""
    if f"package {name};" in _protocol():
        return True
    first, *rest = name.split(".")
    body = re.search(rf"^(?:service|message|enum) {first} {{\n(.*?)^}}", _protocol(), re.MULTILINE | re.DOTALL)
    return body is not None and len(rest) == 1 and re.search(rf"\b{rest[0]}\b", body[1]) is not None


@cache
def _literals() -> frozenset[str]:
    sources = [(ROOT / path).read_text() for path in filter(None, _modules().values()) if not path.startswith("tests/")]
    return frozenset(literal for source in sources for literal in re.findall(r'"([a-z_]+\.[a-z_]+)"', source))


def _is_literal(name: str) -> bool:
    """Whether it is what the code calls something at run time, as the door's requests: `sandbox.wait`."""
    return name in _literals()
