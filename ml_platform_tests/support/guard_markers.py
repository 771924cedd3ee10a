"""The platform's guards, found by their markers, and a way to switch off each one alone.

A guard is a condition that leads to a refusal, excuses from one, or calls a function that refuses. A comment on its
line, or on the line above, marks it::

    # guard: ledger-gap
    if entry.sequence != sequence + 1:

Several conditions on one line take the markers in order: ``# guard: no-lower-bound, no-upper-bound``. The marker
``# no guard: reason`` is for a condition that looks like a guard and decides nothing, ``# no guard (3): reason`` for
three of them.

The conditions are found in the syntax tree: in the modules that decide, and in every function that has a marker. A new
condition without a marker is therefore a problem, and so is a marker without a condition.
"""

import ast
import copy
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from ml_platform.evaluation import gates
from ml_platform.release import authentication, evidence, integration_test, promote, register, rollback
from ml_platform.release.ledger import decisions, follow
from ml_platform.settings import PROJECT_ROOT

# In these modules every condition has a marker; elsewhere, every condition of a function that has a marker.
MODULES_THAT_DECIDE = (
    gates,
    evidence,
    register,
    promote,
    rollback,
    authentication,
    integration_test,
    decisions,
    follow,
)
MARKER = re.compile(r"# (guard|no guard)(?: \((\d+)\))?: (.+)")


@dataclass(frozen=True)
class Guard:
    """One guard: the id on its marker, its module and function, and its number among the function's conditions."""

    id: str
    module: str
    function: str
    number: int


# A condition's line and column, and a call that switches it off in the syntax tree.
Switch = tuple[tuple[int, int], Callable[[], None]]
# A function returns one of these if it finds no problem.
EXCUSES = {"''", "None", "[]", "GateOutcome.PASS"}


def read_guards() -> tuple[dict[str, Guard], list[str]]:
    """Return the guards in the platform's source by id, and the problems of their markers."""
    guards, problems = list[Guard](), list[str]()
    decide = {module.__name__ for module in MODULES_THAT_DECIDE}
    for path in sorted((PROJECT_ROOT / "ml_platform").rglob("*.py")):
        source, place = path.read_text(), path.relative_to(PROJECT_ROOT)
        module = ".".join(place.with_suffix("").parts)
        markers = _read_markers(source)
        if not markers and module not in decide:
            continue
        for name, function in _functions(source).items():
            conditions = Counter(line for (line, _), _ in _switches(function))
            if module not in decide and not conditions.keys() & markers.keys():
                continue
            marked = {line: markers.pop(line, []) for line in conditions}
            problems += [
                f"{place}:{line}: {count} conditions and {len(marked[line])} markers"
                for line, count in conditions.items()
                if len(marked[line]) != count
            ]
            ids = [one for line in conditions for one in marked[line]]
            guards += [Guard(one, module, name, number) for number, one in enumerate(ids) if one]
        problems += [f"{place}:{line}: a marker without a condition" for line in markers]
    uses = Counter(guard.id for guard in guards)
    problems += [f"{count} guards have the id {one}" for one, count in uses.items() if count > 1]
    return {guard.id: guard for guard in guards}, problems


@contextmanager
def switched_off(guard: Guard) -> Iterator[None]:
    """Run a function without one of its guards, also for callers that imported it by name."""
    module = importlib.import_module(guard.module)
    function = inspect.unwrap(attrgetter(guard.function)(module))
    definition = _functions(Path(inspect.getfile(module)).read_text())[guard.function]
    _, switch = _switches(definition)[guard.number]
    switch()
    tree = ast.fix_missing_locations(ast.Module([_without_annotations(definition)], []))
    made: dict[str, Any] = {}
    exec(compile(tree, f"without {guard.id}", "exec"), dict(function.__globals__), made)  # noqa: S102 - our own source
    whole = function.__code__
    function.__code__ = made[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = whole


def _read_markers(source: str) -> dict[int, list[str]]:
    """Map each marked line of code to its ids, in order; the id of a condition that is no guard is empty."""
    markers, ids = dict[int, list[str]](), list[str]()
    for number, line in enumerate(source.split("\n"), 1):
        if match := MARKER.search(line):
            kind, count, text = match.groups()
            ids += text.split(", ") if kind == "guard" else [""] * int(count or 1)
        if ids and not line.lstrip().startswith("#"):
            markers[number], ids = ids, []
    return markers


def _functions(source: str) -> dict[str, ast.FunctionDef]:
    """Return a module's functions and methods by qualified name."""
    body = ast.parse(source).body
    named = [("", node) for node in body]
    named += [(f"{node.name}.", inner) for node in body if isinstance(node, ast.ClassDef) for inner in node.body]
    return {f"{prefix}{node.name}": node for prefix, node in named if isinstance(node, ast.FunctionDef)}


def _without_annotations(definition: ast.FunctionDef) -> ast.FunctionDef:
    """Drop decorators, and annotations, which may name imports under TYPE_CHECKING."""
    definition.decorator_list = []
    definition.returns = None
    for argument in [*definition.args.args, *definition.args.kwonlyargs]:
        argument.annotation = None
    return definition


def _switches(function: ast.FunctionDef) -> list[Switch]:
    """Return the switches of a function's conditions, in the order of the source."""
    # A function that compares two names or makings refuses if they are the same.
    refused = "same" in function.name
    return sorted(
        (switch for node in ast.walk(function) for switch in _find_switches(node, refused)), key=itemgetter(0)
    )


def _find_switches(node: ast.AST, refused: bool) -> Iterator[Switch]:
    if isinstance(node, ast.If | ast.IfExp):
        refuses = _refuses(node)
        if refuses is not None:
            yield from _conditions(node, "test", refuses=refuses)
    if isinstance(node, ast.Expr) and _calls_a_check(node.value):
        yield _position(node), _replace(node, "value", ast.Constant(None))
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
        yield _position(node), _replace(node, "value", ast.List(elts=[], ctx=ast.Load()))
    if isinstance(node, ast.Return):
        yield from _returned(node, refused)


def _position(node: ast.expr | ast.stmt) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _calls_a_check(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and "require" in ast.unparse(node.func)


def _refuses(node: ast.If | ast.IfExp) -> bool | None:
    """Return True if the condition leads to a refusal, False if it excuses from one, None if it does neither."""
    if isinstance(node, ast.IfExp):
        branches = [ast.unparse(branch) in EXCUSES for branch in (node.body, node.orelse)]
        # Beside a text, None is an excuse; beside another value, it is a missing value.
        missing = ast.unparse(node.orelse) == "None" and not isinstance(node.body, ast.Constant | ast.JoinedStr)
        return branches[1] and not missing if any(branches) else None
    last = node.body[-1]
    if isinstance(last, ast.Continue) or ast.unparse(node.test) == "refusal is None":
        return False
    if isinstance(last, ast.Return):
        return last.value is not None and ast.unparse(last.value) not in EXCUSES
    words = isinstance(last, ast.Assign) and isinstance(last.value, ast.JoinedStr)
    message = words or (isinstance(last, ast.Expr) and ".append(" in ast.unparse(last))
    check = any(_calls_a_check(inside) for statement in node.body for inside in ast.walk(statement))
    return True if isinstance(last, ast.Raise) or message or check else None


def _returned(node: ast.Return, refused: bool) -> Iterator[Switch]:
    """Switch off a condition that a function returns, alone or as the last of several values."""
    values = node.value.elts if isinstance(node.value, ast.Tuple) else []
    if values and isinstance(values[-1], ast.Compare | ast.BoolOp):
        yield from _operands(values, len(values) - 1, ast.And, switched=True)
    elif isinstance(node.value, ast.Compare | ast.BoolOp):
        yield from _conditions(node, "value", refuses=refused)


def _conditions(node: ast.AST, name: str, *, refuses: bool) -> Iterator[Switch]:
    """Switch off a condition or, if it has several alternatives that refuse or excuse, each alone."""
    condition = getattr(node, name)
    joined = ast.Or if refuses else ast.And
    if isinstance(condition, ast.BoolOp) and isinstance(condition.op, joined):
        for place in range(len(condition.values)):
            yield from _operands(condition.values, place, joined, switched=not refuses)
    else:
        yield _position(condition), _replace(node, name, ast.Constant(not refuses))


def _operands(values: list[ast.expr], place: int, joined: type[ast.boolop], *, switched: bool) -> Iterator[Switch]:
    operand = values[place]
    if isinstance(operand, ast.BoolOp) and isinstance(operand.op, joined):
        for inner in range(len(operand.values)):
            yield from _operands(operand.values, inner, joined, switched=switched)
    else:
        yield _position(operand), _set(values, place, switched)


def _replace(node: ast.AST, name: str, value: ast.expr) -> Callable[[], None]:
    return lambda: setattr(node, name, copy.copy(value))


def _set(parts: list[ast.expr], place: int, value: bool) -> Callable[[], None]:
    def switch() -> None:
        parts[place] = ast.Constant(value)

    return switch
