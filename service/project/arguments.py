"""Find calls whose arguments cannot work, from the source of a flow file: for `turnout check`.

A call at the top of a file is made when the file is loaded, and says itself what is wrong. One in
the body of a flow or task would say it in the first run only, so it is looked at here: whether what
turnout provides, or a task, takes these arguments at all, and the values that are written out.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from turnout.service.domain.errors import SetupError
from turnout.service.domain.event_types import problem_of_emit
from turnout.service.domain.pending import Pending, problem_of_check
from turnout.service.domain.task import Task
from turnout.service.domain.units import is_duration, parse_duration, parse_size
from turnout.service.governance.secrets import Secret, secret

from .source import AnyFunction, SourceVisitor, is_step
from .wrong_names import missing, options_of, too_many, unexpected

_RESTLESS = timedelta(milliseconds=100)
_NAMELESS = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
_LISTS = (ast.List, ast.ListComp, ast.GeneratorExp)
_SCHEMES = ("http://", "https://")


def arguments(module: ModuleType) -> tuple[list[SetupError], list[SetupError]]:
    """Return the problems and the warnings of a loaded flow file."""
    return _Visitor.look(module)


class _Visitor(SourceVisitor):
    """Collects the calls in functions whose arguments cannot work."""

    def __init__(self, names: dict[str, Any], file: str) -> None:
        super().__init__(names, file)
        self._made_at_load: set[ast.AST] = set()

    def entering(self, node: AnyFunction | ast.Lambda) -> None:
        """Leave out decorators and defaults at the top of the file: they were called."""
        if not self.functions:
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            for each in (*decorators, *node.args.defaults, *filter(None, node.args.kw_defaults)):
                self._made_at_load.update(ast.walk(each))

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802  the name that `ast` calls
        called = self.named(node.func)
        if self.functions and node not in self._made_at_load and called is not None:
            if is_step(called) or is_step(getattr(called, "__self__", None)):
                self._check_step(node, called)
            if _is_of_turnout(called):
                self._check_action(node, called)
        self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:  # noqa: N802  `ast` calls it
        value = node.value
        is_call = isinstance(value, ast.Call) and self.named(value.func) is secret
        is_shown = node.conversion != -1  # `{token!r}`, for a log
        if not is_shown and (is_call or isinstance(self.named(value), Secret)):
            written = ast.unparse(value)
            self.warn(value, f"{written} in a text is masked; write {written}.reveal()")
        self.generic_visit(node)

    # ---- what a call takes

    def _check_step(self, node: ast.Call, called: Any) -> None:
        """Refuse arguments that the function of a task does not have."""
        is_run = isinstance(called, MethodType) and called.__name__ == "run"
        task = called.__self__ if is_run else called
        if not issubclass(type(task), Task):
            return
        words = _unbound(node, task.function, node.args)
        if words is not None:
            self.report(node, f"{ast.unparse(node.func)}(…) {words}; it is {_written(task)}")

    def _check_action(self, node: ast.Call, called: Any) -> None:
        """Refuse arguments that a function of turnout's does not have, and values it refuses."""
        function = _function(called)
        name = "http" if _is_http(called) else function.__name__
        problem = _refused(node, name, function)
        if problem is not None:
            self.report(node, problem)
            return
        options = {each.arg: each.value for each in node.keywords if each.arg is not None}
        first = node.args[0] if node.args else None
        if name == "http":
            self._check_http(node, ast.unparse(node.func), function, options)
        elif name == "poll":
            self._check_poll(node, options)
        elif name in ("gather", "first") and isinstance(first, _LISTS):
            self.report(node, f"{name}(…) takes the calls themselves, not a list: {name}(*[…])")
        elif name == "sleep":
            self._check(node, "sleep(…)", first, parse_duration)
        elif name in ("wait_for", "approval"):
            self._check(node, f"{name}(timeout=…)", options.get("timeout"), parse_duration)
        said = _constant(first)
        if name == "wait_for" and isinstance(said, str):
            self.report(
                node, f'wait_for({said!r}) waits for a trigger: write wait_for(event("{said}")), '
                "and the same in awaits= of the flow",
            )  # fmt: skip
        problem = problem_of_emit(said) if name == "emit" and isinstance(said, str) else None
        if problem is not None:
            self.report(node, problem)
        if name == "approval" and isinstance(options.get("fields"), ast.Dict):
            self.report(
                node, "approval(fields=…) takes a class, such as a pydantic model or a dataclass, "
                "not a dict: its fields are those of the form",
            )  # fmt: skip

    def _check_http(
        self, node: ast.Call, written: str, function: Callable[..., Any],
        options: dict[str, ast.expr],
    ) -> None:  # fmt: skip
        place = list(inspect.signature(function).parameters).index("url")
        url = options.get("url", node.args[place] if len(node.args) > place else None)
        address = _constant(url)
        if isinstance(address, str) and not address.lower().startswith(_SCHEMES):
            self.report(
                node, f"{written}({address!r}): an address begins with https:// or http://; write "
                f"{'https://' + address.lstrip('/')!r}",
            )  # fmt: skip
        self._check(node, f"{written}(timeout=…)", options.get("timeout"), parse_duration)
        self._check(node, f"{written}(max_bytes=…)", options.get("max_bytes"), parse_size)
        allow, to = _constant(options.get("allow")), _constant(options.get("to"))
        if isinstance(allow, int):
            self.report(node, f"{written}(allow={allow}) takes statuses: write allow={{{allow}}}")
        if isinstance(to, str):
            self.report(node, f"{written}(to={to!r}) takes an artefact: write to=artefact({to!r})")

    def _check_poll(self, node: ast.Call, options: dict[str, ast.expr]) -> None:
        """Refuse what a poll cannot look with; warn of one that looks without rest, or once."""
        for name in ("every", "timeout"):
            self._check(node, f"poll({name}=…)", options.get(name), parse_duration)
        said = _constant(options.get("every"))
        if isinstance(said, str) and is_duration(said) and parse_duration(said) < _RESTLESS:
            self.warn(
                node,
                f"poll(every={said!r}) looks without rest, with a write to disk each time; write "
                'every="1s" or more',
            )
        if not node.args:
            self.report(node, "poll(…) is given no task: write `await poll(task, …)`")
            return
        first, *given = node.args
        written, check = ast.unparse(first), self.named(first)
        if isinstance(first, ast.Call) and is_step(self.named(first.func)):
            task = ast.unparse(first.func)
            self.report(
                node, f"poll({written}, …) is given the call itself, and makes the calls: write "
                f"poll({', '.join((task, *map(ast.unparse, first.args)))}, …)",
            )  # fmt: skip
        if check is None:
            return
        problem = problem_of_check(check)
        if problem is None and not _has_star(node):
            words = _unbound(ast.Call(first, given, []), check.function, given)
            problem = f"{check.words} {words}; it is {_written(check)}" if words else None
        if problem is not None:
            self.report(node, f"poll({written}, …): {problem}")
        elif not _may_be_pending(check):
            self.warn(
                node,
                f"poll({written}, …): {check.words} never returns Pending(), so the first look "
                "ends the poll, also with None; return Pending() while there is nothing",
            )

    def _check(
        self, node: ast.Call, where: str, given: ast.expr | None, parse: Callable[[Any], object]
    ) -> None:
        """Refuse a value that is written out and that `parse` refuses."""
        value = _constant(given)
        if value is None:
            return
        try:
            parse(value)
        except SetupError as error:
            self.report(node, f"{where}: {error.message}")


# ---------------------------------------------------------------- signatures


def _function(called: Any) -> Callable[..., Any]:
    """Return the function that a call of an object of turnout's runs."""
    plain = isinstance(called, FunctionType | MethodType)
    function: Callable[..., Any] = called if plain else called.__call__
    return function


def _is_http(called: Any) -> bool:
    owner = called.__self__ if isinstance(called, MethodType) else called
    return type(owner).__name__ == "Http"


def _refused(node: ast.Call, name: str, function: Callable[..., Any]) -> str | None:
    """Return why a function of turnout's does not take what a call gives; None if it does."""
    known = options_of(function)
    parameters = inspect.signature(function).parameters.values()
    is_open = not known and any(each.kind is each.VAR_KEYWORD for each in parameters)
    for each in node.keywords:
        named = (*known, *(of.name for of in parameters if of.kind not in _NAMELESS))
        if each.arg is not None and not is_open and each.arg not in named:
            return unexpected(name, function, each.arg)
    words = _unbound(node, function, node.args)
    if words is None:
        return None
    lacking = words.partition("without ")[2]
    return missing(name, function, lacking.split(" and ")) if lacking else too_many(name, function)


def _unbound(node: ast.Call, function: Callable[..., Any], given: Iterable[ast.expr]) -> str | None:
    """Return what keeps a function from being called like this, in words; None if nothing does."""
    if _has_star(node):
        return None
    named = {each.arg: each.value for each in node.keywords if each.arg is not None}
    signature = _signature(function)
    try:
        signature.bind(*given, **named)
    except TypeError:
        parameters = signature.parameters
        unknown = [each for each in named if each not in parameters]
        if unknown:
            return f"has no {', '.join(f'{each}=' for each in unknown)}"
        try:
            partly = signature.bind_partial(*given, **named).arguments
        except TypeError:
            return "is given too much"
        lacking = [
            name
            for name, each in parameters.items()
            if name not in partly and each.default is each.empty
            and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]  # fmt: skip
        return f"is called without {' and '.join(lacking)}"
    return None


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return what a call gives to: of a decorated function not what its decorator passes on."""
    return inspect.signature(function, follow_wrapped=False)


def _has_star(node: ast.Call) -> bool:
    stars = any(isinstance(each, ast.Starred) for each in node.args)
    return stars or any(each.arg is None for each in node.keywords)


def _written(task: Task[Any]) -> str:
    """Return how a task is called: its name and its parameters."""
    names = (
        f"{each.replace(annotation=each.empty, default=each.empty)}"
        f"{'' if each.default is each.empty else '=…'}"
        for each in _signature(task.function).parameters.values()
    )
    return f"{task.function.__name__}({', '.join(names)})"


# ---------------------------------------------------------------- values


def _constant(node: ast.expr | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def _may_be_pending(check: Task[Any]) -> bool:
    """Whether a task, or what it calls as far as that can be followed, may return `Pending`."""
    said = str(getattr(check.function, "__annotations__", {}).get("return", ""))
    return "Pending" in said or _names_pending(check.function, set())


def _names_pending(value: Any, seen: set[int]) -> bool:
    """Whether a value is `Pending`, or the code of a function names it, directly or not."""
    if value is Pending:
        return True
    if is_step(value):
        value = value.function
    if issubclass(type(value), MethodType):
        value = value.__func__
    if not issubclass(type(value), FunctionType) or id(value) in seen:
        return False
    seen.add(id(value))
    known = value.__globals__
    names = set(_names_of(value.__code__))
    modules = [known[name] for name in names if issubclass(type(known.get(name)), ModuleType)]
    used = [known[name] for name in names if name in known]
    used += [vars(module)[name] for module in modules for name in names if name in vars(module)]
    used += [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    return "Pending" in names or any(_names_pending(each, seen) for each in used)


def _names_of(code: CodeType) -> Iterator[str]:
    """Yield the names that code uses, and the functions inside it."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names_of(each)


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _is_of_turnout(value: Any) -> bool:
    """Whether a value is called as something that turnout provides: a function, or `http`."""
    if isinstance(value, FunctionType):
        return value.__module__.startswith("turnout.")
    owner = value.__self__ if isinstance(value, MethodType) else value
    kind = type(owner)
    return kind.__module__.startswith("turnout.") and not is_step(owner) and callable(value)
