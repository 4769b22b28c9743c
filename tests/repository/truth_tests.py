"""Where the product takes what is empty for what is absent: truth tests of what may be both.

`python -m tests.repository.truth_tests` prints them. mypy gives the types, so that none is found by its name only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mypy import build
from mypy.modulefinder import BuildSource
from mypy.nodes import Expression, MypyFile, Node, TypeInfo
from mypy.options import Options
from mypy.types import Instance, LiteralType, NoneType, ProperType, TupleType, Type, UnionType, get_proper_type

from tests.repository.arrows import SOURCES, modules

Place = tuple[int, int, int, int]
"""The first line and column of an expression, and its last."""

_LENGTH, _TRUTH = "__len__", "__bool__"
_EMPTY = {
    "''": "builtins.str", "b''": "builtins.bytes", "0": "builtins.int", "0.0": "builtins.float", "()": "builtins.tuple",
    "[]": "builtins.list", "{}": "builtins.dict",
}  # fmt: skip
"""What is empty, and its type."""


@dataclass(frozen=True, slots=True)
class Found:
    """A truth test of something that may be empty as well as absent, or that has a length of the product's own."""

    module: str
    line: int
    code: str
    type: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: `{self.code}` is {self.type}"


def found(paths: Mapping[str, Path]) -> list[Found]:
    """Return the truth tests of modules that can take an empty thing for an absent one, or the other way round.

    A test is of an optional value that can be false by itself, such as `str | None`, or of a class of these modules
    that has a length. `value or ""` is none where that is a text: there, empty and absent come to the same.
    """
    types = _types(paths)
    return [
        Found(module, test.lineno, ast.unparse(test), str(type))
        for module, path in paths.items()
        for test, default in tests_in(ast.parse(path.read_text()))
        if (type := types[module].get(_place(test))) is not None
        and _is_ambiguous(get_proper_type(type), _EMPTY.get(default), paths)
    ]


def tests_in(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Yield the expressions whose truth decides something, `not`, `and` and `or` taken apart.

    With each comes the code of what stands for it where it is false, as in `value or ""`; empty where nothing does.
    """
    for node in ast.walk(tree):
        match node:
            case ast.If() | ast.While() | ast.IfExp() | ast.Assert():
                yield from _operands(node.test)
            case ast.comprehension():
                yield from (operand for test in node.ifs for operand in _operands(test))
            case ast.match_case(guard=ast.expr() as guard):
                yield from _operands(guard)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield from _operands(operand)
            case ast.Call(func=ast.Name(id="bool"), args=[argument]):
                yield from _operands(argument)
            case ast.BoolOp(op=op, values=[*values, last]):
                for number, value in enumerate(values, start=1):
                    default = ast.unparse(last) if isinstance(op, ast.Or) and number == len(values) else ""
                    yield from ((operand, default) for operand, _ in _operands(value))


def _operands(test: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    """Yield a test, unless it is one whose parts are looked at themselves."""
    if isinstance(test, ast.BoolOp):
        yield from _operands(test.values[-1])  # the others are looked at wherever it stands
    elif not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
        yield test, ""


def _is_ambiguous(type: ProperType, default: str | None, paths: Mapping[str, Path]) -> bool:
    members = [get_proper_type(item) for item in type.items] if isinstance(type, UnionType) else [type]
    others = [member for member in members if not isinstance(member, NoneType)]
    if len(others) < len(members) and any(_can_be_false(member) and not _is(member, default) for member in others):
        return True
    return any(
        isinstance(member, Instance) and member.type.module_name in paths and _has(member, _LENGTH) for member in others
    )


def _is(type: ProperType, default: str | None) -> bool:
    """Whether a default is the empty value of a type, or of one that it stands for, as `{}` for a mapping."""
    if not isinstance(type, Instance) or default is None:
        return False
    return type.type.fullname == default or (type.type.fullname, default) == ("typing.Mapping", "builtins.dict")


def _can_be_false(type: ProperType) -> bool:
    if isinstance(type, TupleType):
        return not type.items
    return isinstance(type, LiteralType) or _has(type, _LENGTH) or _has(type, _TRUTH)


def _has(type: ProperType, name: str) -> bool:
    return isinstance(type, Instance) and type.type.get(name) is not None


# ---- the types -------------------------------------------------------------------------------------------------------


def _types(paths: Mapping[str, Path]) -> dict[str, dict[Place, Type]]:
    """Return the type of every expression of modules, by its place. Libraries without stubs are not looked at."""
    options = Options()
    options.export_types = options.preserve_asts = True
    options.incremental = False
    options.cache_dir = "/dev/null"
    options.follow_imports = "skip"
    options.ignore_errors = options.namespace_packages = options.explicit_package_bases = True
    options.mypy_path = [str(folder) for folder in dict.fromkeys(SOURCES.values())]
    sources = [BuildSource(str(path), module) for module, path in paths.items()]
    built = build.build(sources, options)
    return {
        module: {_place(node): type for node in _expressions(built.files[module]) if (type := built.types.get(node))}
        for module in paths
    }


def _place(node: ast.expr | Expression) -> Place:
    if isinstance(node, Expression):
        return node.line, node.column, node.end_line or 0, node.end_column or 0
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0


def _expressions(module: MypyFile) -> Iterator[Expression]:
    """Yield every expression below a module."""
    waiting: list[object] = [*module.defs]
    seen = set[int]()
    while waiting:
        node = waiting.pop()
        if isinstance(node, list | tuple):
            waiting += node
        elif isinstance(node, Node) and id(node) not in seen and not isinstance(node, TypeInfo | MypyFile):
            seen.add(id(node))
            if isinstance(node, Expression):
                yield node
            waiting += (getattr(node, name, None) for name in _attributes(type(node)))


_known: dict[type, list[str]] = {}


def _attributes(kind: type) -> list[str]:
    """Return the names of a node's parts; not of what a name stands for, which lies elsewhere."""
    if kind not in _known:
        elsewhere = {"node", "info", "names", "type", "unanalyzed_type"}
        names = (name for name in dir(kind) if not name.startswith("__") and name not in elsewhere)
        _known[kind] = [name for name in names if not callable(getattr(kind, name, None))]
    return _known[kind]


if __name__ == "__main__":
    wrong = found(modules())
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))
