"""Load flow files by path, under private module names; errors name file and line.

A file's module is `_turnout_flows.<stem>_<hash of its path>`: the same name in every process, so
that a worker process finds pickled functions by name. The folder of a flow file is
*appended* to `sys.path`, so a user's `json.py` never hides the real one.

Foreign code is called here: whatever a flow file raises on import, `SystemExit` included, becomes a
`SetupError` at the user's line. Not here:
watching files for changes (`reload`) and what makes flows one project (`project`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from turnout.service.domain.condition import SOURCE
from turnout.service.domain.errors import SetupError, message_of
from turnout.service.domain.flow import CODE_VERSION, Flow
from turnout.service.domain.task import Task

from . import AnyFlow, Project, shared_problems
from .wrong_names import meaning_of

PACKAGE = "_turnout_flows"
"""The private package flow files live in."""

_imported: set[str] = set()
"""Modules that flow files imported from their own folders; removed before the next load."""


def module_name(path: Path) -> str:
    """Return the private module name of a flow file; the same in every process."""
    absolute = path.absolute()
    stem = re.sub(r"\W|^(?=\d)", "_", absolute.stem)
    return f"{PACKAGE}.{stem}_{hashlib.sha256(str(absolute).encode()).hexdigest()[:10]}"


def load_file(path: Path, source: bytes | None = None) -> ModuleType:
    """Return the module of a flow file, importing it at its first use in this process.

    `source` is the text that another process loaded; it is used instead of the file. Raises
    `SetupError` at the user's line.
    """
    known = sys.modules.get(module_name(path))
    if known is None or (source is not None and getattr(known, SOURCE, None) != source):
        return _execute(path, source)
    return known


def load(paths: Sequence[Path]) -> Project:
    """Load every flow file of `paths` (files, or folders of `*.py`) as one project.

    Raises `SetupError`, the first problem found.
    """
    with loading(paths) as project:
        return project


@contextmanager
def loading(paths: Sequence[Path]) -> Iterator[Project]:
    """Load every flow file of `paths` anew; undone if loading or the body raises.

    All or nothing: after an error every module is as before, so that a failed reload keeps the
    current code.
    """
    with all_or_nothing():
        modules = [_execute(file) for file in flow_files(paths)]
        flows = flows_of(modules)
        for problem in inside_classes(modules):
            raise problem
        if not flows:
            raise SetupError(
                "no flow found; decorate a function with @flow", file=str(paths[0]), line=1
            )
        for problem in unreachable(flows, modules):
            raise problem
        for problem in shared_problems(flows, tasks_of(modules)):
            raise problem
        yield Project.of(flows)


def flow_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of `paths`, folders opened one level; raises `SetupError`.

    In a folder, names that begin with `_` or `.` are left out (they are for what files share), and
    so are a test runner's: `test_….py`, `…_test.py`, `conftest.py`.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.glob("*.py") if _holds_flows(file.name))
            if not inside:
                raise SetupError("this folder has no flow file (*.py)", file=str(path))
            files |= dict.fromkeys(file.absolute() for file in inside)
        elif path.is_file():
            files[path.absolute()] = None
        else:
            raise SetupError(
                "no such file or folder; name a flow file or a folder of them", file=str(path)
            )
    if not files:
        raise SetupError("name at least one flow file or a folder of them")
    return list(files)


def _holds_flows(name: str) -> bool:
    tests = name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"
    return not tests and not name.startswith(("_", "."))


def flows_of(modules: Iterable[ModuleType]) -> list[AnyFlow]:
    """Return the flows the modules hold, in order of definition within each.

    A flow imported from elsewhere counts too (a child run needs it), unless it comes from another
    file of `modules`, where it is counted already.
    """
    listed = list(modules)
    own = {str(module.__file__) for module in listed}
    flows: dict[int, AnyFlow] = {}
    for module in listed:
        for value in vars(module).values():
            if isinstance(value, Flow) and (value.file == module.__file__ or value.file not in own):
                flows[id(value)] = value
    return list(flows.values())


def tasks_of(modules: Iterable[ModuleType]) -> list[Task[Any]]:
    """Return the tasks the modules hold, under whatever name."""
    tasks: dict[int, Task[Any]] = {}
    for module in modules:
        for value in vars(module).values():
            # By type: other objects of a user's module may raise on attribute access.
            if issubclass(type(value), Task):
                tasks[id(value)] = value
    return list(tasks.values())


# ---------------------------------------------------------------- running a file


def _execute(path: Path, source: bytes | None = None) -> ModuleType:
    """Run a flow file as a fresh module; on any failure the module it replaces stays."""
    with fresh_module(path, source) as (module, text):
        # Without the future statements of this module, which would change annotations.
        code = compile(text, str(module.__file__), "exec", dont_inherit=True)
        exec(code, module.__dict__)
    return module


@contextmanager
def fresh_module(path: Path, source: bytes | None = None) -> Iterator[tuple[ModuleType, bytes]]:
    """Register the module of a file while its source runs; errors become `SetupError`."""
    path = path.absolute()
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SetupError("not a Python file; flow files end in .py", file=str(path))
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE, "Flow files, each under a private name.")
        package.__path__ = []
        sys.modules[PACKAGE] = package
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    old = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look it up while it runs
    try:
        # Compiled from the text: the import system compares a .pyc by whole seconds, so a file
        # saved twice within a second would load in its old version.
        source = path.read_bytes() if source is None else source
        module.__dict__[CODE_VERSION] = hashlib.sha256(source).hexdigest()[:12]
        module.__dict__[SOURCE] = source
        yield module, source
    except BaseException as error:  # foreign code may raise anything
        if old is None:
            del sys.modules[name]
        else:
            sys.modules[name] = old
        if isinstance(error, KeyboardInterrupt):
            raise
        raise explain(error, path) from error
    finally:
        _imported.update(_own_modules(set(sys.modules) - before, path.parent))


def _own_modules(names: set[str], folder: Path) -> Iterator[str]:
    for name in names:
        file = getattr(sys.modules[name], "__file__", None)
        if (
            file is not None
            and not name.startswith((PACKAGE, "turnout."))
            and Path(file).is_relative_to(folder)
            and "site-packages" not in Path(file).parts
        ):
            yield name


@contextmanager
def all_or_nothing(*, keep: bool = True) -> Iterator[None]:
    """Remove what flow files imported before, and restore it on failure."""
    global _imported
    ours = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    imported, _imported = _imported, set()
    for name in imported:
        _delete_compiled(sys.modules.pop(name, None))
    done = False
    try:
        yield
        done = keep
    finally:
        if not done:
            for name in [name for name in sys.modules if _is_ours(name) or name in _imported]:
                del sys.modules[name]
            sys.modules.update(ours)
            _imported = imported


def _delete_compiled(module: ModuleType | None) -> None:
    """Have the import system compile a module again, for the reason given in `fresh_module`."""
    compiled = getattr(getattr(module, "__spec__", None), "cached", None)
    if compiled is not None:
        with suppress(OSError):  # on a read-only disk it was not written either
            Path(compiled).unlink()


def _is_ours(name: str) -> bool:
    return name.startswith(f"{PACKAGE}.") or name in _imported


def explain(error: BaseException, path: Path) -> SetupError:
    """Turn an error into a `SetupError` at the author's own line."""
    if isinstance(error, SyntaxError):
        file, text = error.filename or str(path), (error.text or "").strip()
        shown = f": {text}" if text else ""
        return SetupError(f"syntax error: {error.msg}{shown}", file=file, line=error.lineno)
    file, line = str(path), 1
    names: Mapping[str, Any] = {}
    for frame, at in traceback.walk_tb(error.__traceback__):
        if _is_users(frame.f_code.co_filename, path):
            file, line, names = frame.f_code.co_filename, at, frame.f_globals
    if isinstance(error, SetupError):
        return SetupError(error.message, file=error.file or file, line=error.line or line)
    if isinstance(error, SystemExit):
        return SetupError(
            "the file calls exit() when imported; remove the call, or put it under "
            '`if __name__ == "__main__":`',
            file=file,
            line=line,
        )
    if isinstance(error, KeyError) and _of_environment(error):
        name = error.args[0]
        return SetupError(
            f"the environment variable {name} is not set; set it, or write "
            f'os.environ.get("{name}", "…"); a trigger and an action take secret("{name}")',
            file=file,
            line=line,
        )
    meaning = meaning_of(error, names)
    if meaning is not None:
        return SetupError(meaning, file=file, line=line)
    if isinstance(error, ModuleNotFoundError):
        return SetupError(
            f"{error.msg}; install it beside turnout or correct the name", file=file, line=line
        )
    text = " ".join(message_of(error).split())
    return SetupError(f"{type(error).__name__}: {text}" if text else type(error).__name__,
                      file=file, line=line)  # fmt: skip


def _of_environment(error: KeyError) -> bool:
    """Whether a variable that is not set was read from `os.environ`."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = frames[-1] if frames else None
    return last is not None and (last.co_name, last.co_filename) == (
        "__getitem__", type(os.environ).__getitem__.__code__.co_filename,
    )  # fmt: skip


def _is_users(filename: str, path: Path) -> bool:
    if filename == str(path):
        return True
    file = Path(filename)
    return file.is_relative_to(path.parent) and "site-packages" not in file.parts


# ---------------------------------------------------------------- what only a whole file shows


def unreachable(flows: Sequence[AnyFlow], modules: Sequence[ModuleType]) -> list[SetupError]:
    """Return the functions with `pool="process"` that a worker process could not import."""
    found: dict[int, SetupError] = {}
    values = [value for module in modules for value in vars(module).values()]
    for each in (*flows, *values):
        # By type: other objects of a user's module may raise on attribute access.
        if not issubclass(type(each), Flow | Task) or each.pool != "process":
            continue
        function = each.function
        if id(function) not in found and not _is_importable(function):
            code = getattr(function, "__code__", None)
            found[id(function)] = SetupError(
                f'pool="process" needs a function a worker can import by name, and '
                f"{function.__qualname__!r} is not one; define it with def at the top of the file",
                file=getattr(code, "co_filename", None),
                line=getattr(code, "co_firstlineno", None),
            )
    return list(found.values())


def inside_classes(modules: Iterable[ModuleType]) -> list[SetupError]:
    """Return the flows inside the classes of these modules, where nobody finds them."""
    return [
        SetupError(
            f"flow {flow.name!r} is inside class {kind.__name__!r}, where it is not found; move "
            "it to the top of the file",
            file=flow.file,
            line=flow.line,
        )
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
        for flow in map(_plain, vars(kind).values())
        if isinstance(flow, Flow)
    ]


def _plain(member: object) -> object:
    return member.__func__ if isinstance(member, staticmethod) else member


def _is_importable(function: Any) -> bool:
    target: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        target = getattr(target, part, None)
    return target is function or getattr(target, "function", None) is function
