"""The guards in the platform's source, found by reading it, and a way to switch each one off alone.

A guard is a condition whose outcome is a refusal, an excuse from one, or a call that refuses. Because they are found
and not listed, a guard that somebody adds is there from the first day, and asks for a mutant that it alone stops.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Guard:
    """One guard: the function that holds it, its number there, and its source."""

    function: Callable[..., Any]
    number: int
    source: str

    @property
    def name(self) -> str:
        """Module and function, and the guard as the source has it."""
        module = self.function.__module__.removeprefix("ml_platform.")
        return f"{module}.{self.function.__name__}: {self.source}"


Switch = tuple[str, Callable[[], None]]
# What a function returns where nothing is wrong.
EXCUSES = {"''", "None", "[]", "GateOutcome.PASS"}


def guards_in(module: ModuleType) -> list[Guard]:
    """Return the guards of all functions that a module defines."""
    mine = [found for _, found in inspect.getmembers(module, inspect.isfunction) if found.__module__ == module.__name__]
    return [guard for function in mine for guard in guards_of(function)]


def guards_of(function: Callable[..., Any]) -> list[Guard]:
    """Return the guards of one function, in the order of its source."""
    sources = [source for source, _ in _switches(_tree(function))]
    # The same condition may stand there twice.
    before = [sources[:number].count(source) for number, source in enumerate(sources)]
    names = [f"{source} #{count + 1}" if count else source for source, count in zip(sources, before, strict=True)]
    return [Guard(function, number, name) for number, name in enumerate(names)]


@contextmanager
def switched_off(guard: Guard) -> Iterator[None]:
    """Let a function do without one of its guards, for whoever calls it and however they imported it."""
    function = inspect.unwrap(guard.function)
    whole = function.__code__
    tree = _tree(function)
    _, switch = _switches(tree)[guard.number]
    switch()
    made: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(tree), guard.name, "exec"), dict(function.__globals__), made)  # noqa: S102 - our own source
    function.__code__ = made[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = whole


def _tree(function: Callable[..., Any]) -> ast.Module:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    # What annotations name may stand under TYPE_CHECKING.
    definition.returns = None
    for argument in [*definition.args.args, *definition.args.kwonlyargs]:
        argument.annotation = None
    return tree


def _switches(tree: ast.Module) -> list[Switch]:
    """Return every guard's source with what switches it off in the tree."""
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    # Who has the same name, or was made the same way, is refused for it.
    refused = "same" in function.name
    return [found for node in ast.walk(tree) for found in _of(node, refused)]


def _of(node: ast.AST, refused: bool) -> Iterator[Switch]:
    if isinstance(node, ast.If | ast.IfExp):
        refuses = _refuses(node)
        if refuses is not None:
            yield from _conditions(node, "test", refuses=refuses)
    if isinstance(node, ast.Expr) and _asks_for_something(node.value):
        yield ast.unparse(node.value).partition("(")[0], _replace(node, "value", ast.Constant(None))
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
        yield ast.unparse(node), _replace(node, "value", ast.List(elts=[], ctx=ast.Load()))
    if isinstance(node, ast.Return):
        yield from _returned(node, refused)


def _asks_for_something(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and "require" in ast.unparse(node.func)


def _refuses(node: ast.If | ast.IfExp) -> bool | None:
    """Whether the condition leads to a refusal (True) or excuses from one (False); None if it is no guard."""
    if isinstance(node, ast.IfExp):
        branches = [ast.unparse(branch) in EXCUSES for branch in (node.body, node.orelse)]
        # Beside words, None means that all is well; beside anything else, that it is missing.
        missing = ast.unparse(node.orelse) == "None" and not isinstance(node.body, ast.Constant | ast.JoinedStr)
        return branches[1] and not missing if any(branches) else None
    last = node.body[-1]
    if isinstance(last, ast.Continue) or ast.unparse(node.test) == "refusal is None":
        return False
    if isinstance(last, ast.Return):
        return last.value is not None and ast.unparse(last.value) not in EXCUSES
    words = isinstance(last, ast.Assign) and isinstance(last.value, ast.JoinedStr)
    said = words or (isinstance(last, ast.Expr) and ".append(" in ast.unparse(last))
    asked = any(_asks_for_something(inside) for statement in node.body for inside in ast.walk(statement))
    return True if isinstance(last, ast.Raise) or said or asked else None


def _returned(node: ast.Return, refused: bool) -> Iterator[Switch]:
    """Switch off a condition that a function returns, alone or as the last of several values."""
    values = node.value.elts if isinstance(node.value, ast.Tuple) else []
    if values and isinstance(values[-1], ast.Compare | ast.BoolOp):
        yield from _operands(values, len(values) - 1, ast.And, switched=True)
    elif isinstance(node.value, ast.Compare | ast.BoolOp):
        yield from _conditions(node, "value", refuses=refused)


def _conditions(node: ast.AST, name: str, *, refuses: bool) -> Iterator[Switch]:
    """Switch off a condition or, where several alternatives refuse or excuse, each alone."""
    condition = getattr(node, name)
    joined = ast.Or if refuses else ast.And
    if isinstance(condition, ast.BoolOp) and isinstance(condition.op, joined):
        for position in range(len(condition.values)):
            yield from _operands(condition.values, position, joined, switched=not refuses)
    else:
        yield ast.unparse(condition), _replace(node, name, ast.Constant(not refuses))


def _operands(values: list[ast.expr], position: int, joined: type[ast.boolop], *, switched: bool) -> Iterator[Switch]:
    found = values[position]
    if isinstance(found, ast.BoolOp) and isinstance(found.op, joined):
        for inner in range(len(found.values)):
            yield from _operands(found.values, inner, joined, switched=switched)
    else:
        yield ast.unparse(found), _set(values, position, switched)


def _replace(node: ast.AST, name: str, value: ast.expr) -> Callable[[], None]:
    return lambda: setattr(node, name, copy.copy(value))


def _set(parts: list[ast.expr], position: int, value: bool) -> Callable[[], None]:
    def switch() -> None:
        parts[position] = ast.Constant(value)

    return switch
