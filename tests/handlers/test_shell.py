"""The action `shell` with real commands: what is recorded, refused, tried again and ended."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs
import pytest

from tests.support.processes import Mark
from tests.support.program import until
from turnout import (
    ShellError,
    ShellRefused,
    ShellResult,
    artefact,
    flow,
    retry,
    secret,
    shell,
    task,
)
from turnout.handlers.actions import shell_command, shell_guardian
from turnout.service.domain.errors import SetupError
from turnout.service.telemetry.logs import configure
from turnout.testing import Result, run, serve

pytestmark = pytest.mark.timeout(60)

mark = Mark()


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a working folder and a mark; nothing with the mark is left behind."""
    global mark
    mark = Mark()
    monkeypatch.chdir(tmp_path)
    yield
    until(lambda: not mark.processes(), 5, "no process of a command is left")
    until(lambda: not zombies(), 5, "no zombie is left")


def zombies() -> list[Any]:
    multiprocessing.active_children()  # reaps the workers that were killed
    return [each for each in psutil.Process().children() if each.status() == "zombie"]


def answered(command: Any, **options: Any) -> ShellResult:
    """Run a command outside a run."""

    async def call() -> ShellResult:
        return await shell(command, **{"env": mark.env, **options})

    return asyncio.run(call())


def said(error: Result) -> tuple[str, str]:
    assert error.error is not None
    return error.error.type, error.error.message


# ---------------------------------------------------------------- what it answers


@flow
async def twice(word: str) -> list[Any]:
    one = await shell(
        ["sh", "-c", 'echo "$0"; echo oops >&2; echo "$TURNOUT_STEP_KEY" >> keys', word]
    )
    two = await shell("echo $TURNOUT_STEP_KEY >> keys; exit 3", shell=True, allow={3})
    return [one.stdout, one.stderr, two.exit_code]


def is_first(name: str) -> bool:
    """Whether this is asked for the first time."""
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@flow(retry=1)
async def again(word: str) -> str:
    result = await shell(["sh", "-c", "echo run >> runs; echo done"])
    if is_first("failed"):
        raise OSError("once")
    return result.stdout


def test_a_command_is_a_recorded_step_with_a_key_of_its_own() -> None:
    result = run(twice, "a  'b' $(c)\n*")
    assert result.result == ["a  'b' $(c)\n*\n", "oops\n", 3]
    assert list(result.steps) == ["shell#1", "shell#2"]
    keys = Path("keys").read_text().split()
    assert len(set(keys)) == 2 and all(len(key) == 32 for key in keys)


def test_a_recorded_command_does_not_run_again() -> None:
    result = run(again, "x")
    assert (result.result, result.attempts) == ("done\n", 2)
    assert Path("runs").read_text() == "run\n"


@flow
async def cut(folder: str) -> None:
    await shell(
        'echo "$TURNOUT_STEP_KEY" >> keys; test -e free || sleep 60', shell=True, cwd=folder
    )


def test_a_command_that_a_stop_cut_off_runs_again_with_its_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    async def crash() -> None:
        async with serve(cut) as service:
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(service.run(cut, str(tmp_path)))
                await asyncio.to_thread(until, keys.exists, 20, "it runs")
                first.cancel()
            await asyncio.to_thread((tmp_path / "free").touch)
            await service.restart()
            await service.advance("1m")

    asyncio.run(crash())
    first, *more = keys.read_text().split()
    assert more == [first]


def test_a_command_that_a_crash_left_unrecorded_runs_again_with_its_key() -> None:
    result = run(twice, "x", crash_at=1)
    assert (result.result, result.crashes) == (["x\n", "oops\n", 3], 1)
    first, again, second = Path("keys").read_text().split()
    assert first == again != second


HOSTILE = [
    "--", "-rf", "", " ", "*", "$HOME", "`id`", "$(id)", "; id", "a\nb", "\x1b[2J", "ü",
    "\udcff\udcfe", "%s", "'", '"', "\\", "x" * 100_000,
]  # fmt: skip


def test_arguments_arrive_as_they_are() -> None:
    result = answered(["printf", "%s\\0", *HOSTILE])
    assert result.stdout_bytes.split(b"\0")[:-1] == [os.fsencode(each) for each in HOSTILE]


def test_a_command_has_a_small_environment_and_no_file_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    monkeypatch.setenv("AWS_SECRET", "not for commands")
    result = answered(["env"], env={"A": "1", "PATH": "/usr/bin:/bin"})
    found = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert found.keys() - {"HOME", "LANG"} == {"TZ", "A", "PATH", "TURNOUT_STEP_KEY"}
    assert (found["A"], found["PATH"], found["TZ"]) == ("1", "/usr/bin:/bin", "Europe/Berlin")
    with Path("file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        listed = answered(["ls", "/proc/self/fd"]).stdout.split()
    assert listed == ["0", "1", "2", "3"], "3 is the folder it lists"
    signals = answered(["grep", "-E", "SigIgn|SigBlk", "/proc/self/status"]).stdout
    assert {int(line.split()[1], 16) for line in signals.splitlines()} == {0}
    sid, own = answered(["sh", "-c", "ps -o sid= -p $$; echo $$"]).stdout.split()
    assert sid == own, "it leads a session of its own"


MUCH = b"x" * 3_000_000


@pytest.mark.parametrize(
    ("stdin", "read"),
    [(None, b""), ("hällo", "hällo".encode()), (b"\0\xff", b"\0\xff"), (MUCH, MUCH),
     (Path("given"), b"file")],
    ids=["nothing", "text", "bytes", "much", "file"],
)  # fmt: skip
def test_what_it_reads(stdin: Any, read: bytes) -> None:
    Path("given").write_bytes(b"file")
    assert answered(["cat"], stdin=stdin, max_bytes="4MiB").stdout_bytes == read


def test_a_command_that_reads_nothing_is_no_error() -> None:
    assert answered(["true"], stdin=b"x" * 3_000_000).exit_code == 0


def test_output_is_kept_to_its_end() -> None:
    result = answered("printf '\\377no newline'; seq 100000", shell=True, max_bytes=12)
    assert (result.stdout, result.left_out > 500_000) == ("99999\n100000\n"[-12:], True)
    with pytest.raises(ValueError, match="bytes of the output are not kept: raise max_bytes="):
        result.json()
    assert answered(["printf", "\\377x"]).stdout == "\ufffdx"
    assert answered(["printf", '{"a": 1}']).json() == {"a": 1}
    assert answered(["echo", "x"], max_bytes=0).stdout == ""


def test_output_goes_to_an_artefact_and_comes_from_one() -> None:
    @flow(name="dumps")
    async def dumps(size: int) -> list[Any]:
        dump = await shell(["head", "-c", str(size), "/dev/zero"], stdout=artefact("zeros.bin"))
        count = await shell_count("zeros.bin")
        return [dump.artefact, dump.stdout, count]

    @task(name="count")
    async def shell_count(name: str) -> int:
        return int((await shell(["wc", "-c"], stdin=artefact(name))).stdout)

    result = run(dumps, 5_000_000)
    assert result.result == ["zeros.bin", "", 5_000_000], result.error


def test_a_command_that_fails_leaves_no_artefact() -> None:
    @flow(name="breaks")
    async def breaks() -> str:
        try:
            await shell("echo half; exit 1", shell=True, stdout=artefact("half"))
        except ShellError:
            return await look.run()
        return "it was to fail"

    @task(name="look")
    def look() -> str:
        try:
            return str(artefact("half").path)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
            return type(error).__name__

    assert run(breaks).result == "NotFound"


def test_an_artefact_that_is_too_large_ends_its_command() -> None:
    @flow(name="too_large")
    async def too_large() -> None:
        await shell("yes", shell=True, stdout=artefact("yes"), env=mark.env)

    async def served() -> Result:
        async with serve(too_large, max_artefact_bytes=100_000) as service:
            return await service.run(too_large)

    kind, message = said(asyncio.run(served()))
    assert kind == "not_kept" and "max_artefact_bytes" in message
    assert mark.processes() == []


# ---------------------------------------------------------------- secrets and logs


def test_a_secret_reaches_the_command_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "corrêct horse 17")

    @flow(name="uses")
    async def uses(fails: bool) -> list[Any]:
        result = await shell(
            'printf %s "$PGPASSWORD" | wc -c; printf %.5s "$PGPASSWORD"; sleep 0.2; '
            'printf %s "$PGPASSWORD" | tail -c +6; cat; echo "bad $PGPASSWORD" >&2; exit "$FAILS"',
            shell=True,
            env={"PGPASSWORD": secret("DB_PASSWORD"), "FAILS": "1" if fails else "0"},
            stdin=secret("DB_PASSWORD"),
        )
        return [result.stdout, result.stderr]

    result = run(uses, False)
    assert result.result == ["17\n" + "********" * 2, "bad ********\n"], "it is masked"
    kind, message = said(run(uses, True))
    assert kind == "ShellError" and message.endswith("exited with 1: bad ********")
    captured = capfd.readouterr()
    assert "horse" not in captured.out + captured.err
    value = secret("DB_PASSWORD").reveal()
    with pytest.raises(ShellError) as caught:
        answered(["sh", "-c", "exit 1", f"it's {value}"])
    assert str(caught.value) == "sh -c 'exit 1' 'it'\"'\"'s ********' exited with 1"
    with pytest.raises(SetupError, match="everybody on the machine can read the arguments"):
        answered(["psql", secret("DB_PASSWORD")])


def logged(text: str, stream: str) -> list[str]:
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [each["message"] for each in records if each.get("stream") == stream]


def test_lines_are_logged_and_of_a_flood_the_first_and_the_last(
    capfd: pytest.CaptureFixture[str],
) -> None:
    @flow(name="writes")
    async def writes() -> None:
        await shell("echo one; echo two >&2; printf three", shell=True)
        await shell("head -c 5000 /dev/zero | tr '\\0' x", shell=True)
        await shell(
            "seq 300000; head -c 5000000 /dev/zero | tr '\\0' x; echo; seq 20; printf end",
            shell=True,
        )

    run(writes)
    text = capfd.readouterr().err
    assert logged(text, "stderr") == ["two"]
    lines = logged(text, "stdout")
    assert lines[:2] == ["one", "three"]
    assert lines[2:5] == ["x" * 2000, "x" * 2000, "x" * 1000]
    flood = lines[5:]
    assert flood[:50] == [str(number) for number in range(1, 51)]
    assert "shell.output_left_out" in flood
    assert max(map(len, flood)) <= 2000 and len(flood) < 1500
    assert flood[-11:] == [*map(str, range(11, 21)), "end"]


# ---------------------------------------------------------------- how it fails


def test_an_exit_code_says_what_it_wrote() -> None:
    @flow(name="fails", retry=0)
    async def fails() -> None:
        await shell("echo first >&2; echo 'why \x1b[2J' >&2; exit 7", shell=True)

    result = run(fails)
    assert said(result) == (
        "ShellError",
        "/bin/sh -c 'echo first >&2; echo '\"'\"'why ?[2J'\"'\"' >&2; exit 7' exited with 7: first "
        "why ?[2J",
    )
    assert result.steps["shell#1"].tries == 1, "turnout does not know what may run twice"
    with pytest.raises(ShellError) as caught:
        answered(["sh", "-c", "echo bad >&2; exit 4"])
    assert (caught.value.exit_code, caught.value.signal, caught.value.stderr) == (4, None, "bad\n")


def test_a_caught_error_is_the_same_when_the_run_resumes() -> None:
    @flow(name="catches")
    async def catches() -> list[Any]:
        told: list[Any] = []
        for command in ("echo bad >&2; exit 4", "kill -9 $$"):
            try:
                await shell(command, shell=True)
            except ShellError as error:
                told += [error.exit_code, error.signal, error.timed_out, error.stderr]
        try:
            await shell(["no-such-program"])
        except ShellRefused as error:
            told += [error.exit_code, str(error)[:15]]
        await shell(["true"])
        return told

    result = run(catches, crash_at=4)
    assert result.crashes == 1
    assert result.result == [
        4, None, False, "bad\n", None, "SIGKILL", False, "", None, "no-such-program",
    ]  # fmt: skip


def test_a_signal_is_named() -> None:
    with pytest.raises(ShellError, match="was ended by SIGSEGV") as caught:
        answered(["sh", "-c", "kill -SEGV $$"], allow={-11, 139})
    assert (caught.value.exit_code, caught.value.signal) == (None, "SIGSEGV")


def test_tries_are_as_asked_with_one_key() -> None:
    @flow(name="tries")
    async def tries() -> str:
        command = 'echo "$TURNOUT_STEP_KEY" >> keys; test $(wc -l < keys) -ge 3'
        await shell(command, shell=True, retry=retry(2, delay="1s"))
        return (await shell(["cat", "keys"])).stdout

    keys = run(tries).result.split()
    assert len(keys) == 3 and len(set(keys)) == 1


NOT_STARTED = {
    "no program": (["no-such-program"], {}, "No such file or directory"),
    "no interpreter": (["./wrong"], {}, "No such file or directory; the program, or the "),
    "not executable": (["./plain"], {}, "Permission denied; it may not be executed: chmod +x"),
    "a folder": (["./folder"], {}, "Permission denied"),
    "no program format": (["./data"], {}, "Exec format error; it is no program: begin it"),
    "one argument is too long": (["echo", "x" * 200_000], {}, "Argument list too long; pass what"),
    "all are too long": (["echo", *["x" * 10_000] * 250], {}, "Argument list too long; pass what"),
    "no folder": (["true"], {"cwd": "nowhere"}, "cannot be started in cwd='nowhere': No such file"),
    "the folder is a file": (["true"], {"cwd": "plain"}, "in cwd='plain': Not a directory"),
    "no file to read": (["cat"], {"stdin": Path("none")}, "stdin='none' cannot be read: "),
    "a pipe to read": (["cat"], {"stdin": Path("fifo")}, "stdin='fifo' cannot be read: "),
}  # fmt: skip


@pytest.mark.parametrize(("command", "options", "why"), NOT_STARTED.values(), ids=NOT_STARTED)
def test_what_cannot_be_started_is_refused_at_once(
    command: list[str], options: dict[str, Any], why: str
) -> None:
    for name, content in {"wrong": "#!/no/such\n", "plain": "x", "data": "x"}.items():
        Path(name).write_text(content)
    Path("wrong").chmod(0o755)
    Path("data").chmod(0o755)
    Path("folder").mkdir()
    os.mkfifo("fifo")

    @flow(name="refused", retry=3)
    async def refused() -> None:
        await shell(command, retry=3, **options)

    result = run(refused)
    kind, message = said(result)
    assert kind == "ShellRefused" and why in message and len(message) < 600
    assert (result.attempts, result.steps["shell#1"].tries) == (1, 1)
    with pytest.raises(ShellRefused):
        answered(command, **options)


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    ("ls -l *.py x", {}, "is one text: write its words, shell(['ls', '-l', '*.py', …]), or"),
    (["ls"], {"shell": True}, "a command for /bin/sh is one text"),
    (["ls"], {"shell": 1}, "write shell=True, or leave it out"),
    ([], {}, "write a list, such as ['ls', '--all']"),
    (b"ls", {}, "write a list"),
    (["", "x"], {}, "write a list"),
    (None, {}, "write a list"),
    ({"ls"}, {}, "write a list"),
    (["ls", 7], {}, "an argument is text: write str(…)"),
    (["ls", b"x"], {}, "an argument is text: write str(…)"),
    (["ls", "a\0b"], {}, "an argument is text without a NUL"),
    (["ls", "\ud800"], {}, "an argument is text without a NUL"),
    (["ls"], {"env": {"A=B": "x"}}, "'A=B' is no name of a variable"),
    (["ls"], {"env": {"": "x"}}, "'' is no name of a variable"),
    (["ls"], {"env": {"A": 1}}, "env={'A': …} is text without a NUL, not 1"),
    (["ls"], {"env": {"A": "\0"}}, "is text without a NUL"),
    (["ls"], {"env": "A=1"}, "write a dict"),
    (["ls"], {"cwd": "\0"}, "cwd= is text without a NUL"),
    (["ls"], {"cwd": 7}, "cwd= is text"),
    (["ls"], {"stdin": 7}, "write bytes, text, a Path or artefact('x')"),
    (["ls"], {"stdin": "\ud800"}, "is no text that UTF-8 can write"),
    (["ls"], {"stdout": "dump"}, "write stdout=artefact('dump.zst')"),
    (["ls"], {"allow": 1}, "write exit codes, such as allow={1}"),
    (["ls"], {"allow": {"1"}}, "write exit codes, such as allow={1}"),
    (["ls"], {"reads": 1}, "write reads=True"),
    (["ls"], {"timeout": "soon"}, "soon"),
    (["ls"], {"retry": -1}, "retry=-1"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "options", "why"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_meant_is_refused_where_it_is_written(
    command: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(SetupError) as caught:
        answered(command, **options)
    assert why in str(caught.value)


# ---------------------------------------------------------------- how it ends

CLEANS = "trap 'echo cleaned; exit 9' TERM; echo up; while :; do sleep 0.05; done"
STUBBORN = (
    "trap '' TERM INT HUP; (trap '' TERM; setsid sleep 300 &) ; sleep 300 & echo up; sleep 300"
)


def test_a_timeout_asks_first(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ShellError, match="did not end within 1s") as caught:
        answered(CLEANS, shell=True, timeout="1s")
    assert caught.value.timed_out
    assert '"cleaned"' in capfd.readouterr().err


COUNTS = "n=0; trap 'n=$((n+1))' TERM; echo up; while [ $n = 0 ]; do sleep 0.05; done; sleep 0.2"


@pytest.mark.parametrize("how", ["", "setsid "], ids=["its group", "a session of its own"])
def test_a_process_is_asked_to_end_once(how: str) -> None:
    counts = shlex.quote(f"{COUNTS}; echo $n >> asked")
    with pytest.raises(ShellError, match="did not end within 1s"):
        answered(f"{how}sh -c {counts} & eval {counts}; wait", shell=True, timeout="1s")
    assert Path("asked").read_text() == "1\n1\n"


def test_a_timeout_ends_what_does_not_listen() -> None:
    begun = time.monotonic()
    with pytest.raises(ShellError, match="did not end within 1s"):
        answered(STUBBORN, shell=True, timeout="1s", grace="500ms")
    assert time.monotonic() - begun < 10
    assert mark.processes() == []


def is_full(pipe: int) -> bool:
    return not select.select([], [pipe], [], 0)[1]


@pytest.mark.slow
def test_a_log_that_nobody_reads_does_not_delay_a_timeout() -> None:
    log, blocked = os.pipe()
    with (
        os.fdopen(log, "rb") as read,
        os.fdopen(blocked, "w") as stream,
        ThreadPoolExecutor(2) as pool,
    ):
        undo = configure("json", stream=stream)
        try:
            ended = pool.submit(
                answered, f"yes {'x' * 1500} & {STUBBORN}", shell=True, timeout="2s", grace="100ms"
            )
            until(lambda: is_full(blocked), 20, "its output waits for the log")
            until(lambda: not mark.found(), 20, "its time is over")
            assert is_full(blocked) and not ended.done()
        finally:
            drained = pool.submit(read.read)
            error = ended.exception(30)
            undo()
            stream.close()
        assert isinstance(error, ShellError) and error.timed_out
        assert "did not end within 2s" in str(error)
        assert drained.result(20).count(b"\n") > 10


def test_times_of_a_month_and_more_are_no_error() -> None:
    assert answered(["true"], timeout="90d", grace="90d").exit_code == 0
    with pytest.raises(ShellError, match="did not end within 1s"):
        answered("trap 'exit 0' TERM; while :; do sleep 0.05; done", shell=True, timeout="1s",
                 grace="90d")  # fmt: skip


async def test_a_cancel_ends_all_of_it_before_it_is_raised(
    capfd: pytest.CaptureFixture[str],
) -> None:
    call = shell(STUBBORN, shell=True, grace="300ms", env=mark.env)
    running = asyncio.get_running_loop().create_task(call)
    await asyncio.to_thread(until, lambda: len(mark.processes()) >= 3, 20, "it runs")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert mark.processes() == []


def test_the_timeout_of_a_flow_ends_its_command() -> None:
    @flow(name="late", timeout="1s")
    async def late() -> None:
        await shell(STUBBORN, shell=True, grace="300ms", env=mark.env)

    kind, _ = said(run(late))
    assert kind == "TimeoutError" and mark.processes() == []


@pytest.mark.parametrize(
    "leaves",
    ["sleep 300 &", "(setsid sleep 300 &);", "(trap '' TERM; sleep 300) &",
     "(exec >/dev/null 2>&1 </dev/null; setsid sh -c 'sleep 300 & sleep 300' &);"],
    ids=["background", "a session of its own", "deaf", "a daemon"],
)  # fmt: skip
def test_nothing_of_it_runs_on(leaves: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert answered(f"{leaves} echo up", shell=True, grace="200ms").stdout == "up\n"
    assert mark.processes() == []
    assert "shell.processes_ended" in capfd.readouterr().err


def changed_guardian(monkeypatch: pytest.MonkeyPatch, line: str, instead: str) -> None:
    """Have commands guarded by a guardian with another line."""
    source = Path(shell_guardian.__file__).read_text()
    assert source.count(line) == 1
    Path("changed_guardian.py").write_text(source.replace(line, instead))
    monkeypatch.setattr(shell_command, "_GUARDIAN", Path("changed_guardian.py").absolute())


@pytest.mark.slow
def test_a_system_that_cannot_adopt_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_guardian(monkeypatch, 'if sys.platform != "linux":\n        return None', "return None")
    group = "(trap '' TERM; sleep 300) & (sleep 300 &); echo up"
    assert answered(group, shell=True, grace="200ms").stdout == "up\n"
    assert mark.processes() == []
    assert answered(["echo", "x"]).stdout == "x\n"
    with pytest.raises(ShellError, match="did not end within 1s"):
        answered(f"trap '' TERM; {group}; sleep 300", shell=True, timeout="1s", grace="200ms")
    assert mark.processes() == []


def test_a_kernel_without_lists_of_children_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_guardian(
        monkeypatch, "_lists_children = os.path", "_lists_children = False and os.path"
    )
    daemon = "(setsid sh -c 'trap \"\" TERM; sleep 300 & sleep 300' &); echo up"
    assert answered(daemon, shell=True, grace="200ms").stdout == "up\n"
    assert mark.processes() == []


def test_who_kills_the_guardian_is_ended_too() -> None:
    with pytest.raises(ShellError, match="was ended together with its guardian"):
        answered("sleep 300 & kill -9 $PPID; sleep 300", shell=True)
    until(lambda: not mark.processes(), 5, "nothing is left")


def test_a_guardian_that_was_stopped_is_no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_command, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(shell_command, "_DRAIN_SECONDS", 0.2)
    with pytest.raises(ShellError, match="did not end within 1s"):
        answered("kill -STOP $PPID; sleep 300", shell=True, timeout="1s", grace="200ms")
    assert mark.processes() == []


# ---------------------------------------------------------------- where it is called


@task(pool="process")
def in_process(word: str) -> str:
    return shell.blocking(["echo", word]).stdout


@task(pool="process", timeout="2s")
def for_ever(mark: dict[str, str]) -> str:
    return shell.blocking(STUBBORN, shell=True, env=mark).stdout


@task
def in_a_thread(word: str) -> str:
    return shell.blocking(["echo", word]).stdout


@task(timeout="1s")
def too_long(mark: dict[str, str]) -> str:
    return shell.blocking(["sleep", "300"], env=mark).stdout


@flow
def plain(word: str) -> list[str]:
    own = shell.blocking(["echo", word])
    return [own.stdout, in_a_thread(word), in_process(word)]


@flow
async def awaiting(word: str) -> list[str]:
    return [
        (await shell(["echo", word])).stdout,
        await in_a_thread.run(word),
        await in_process.run(word),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("called", [plain, awaiting])
def test_it_works_wherever_functions_run(called: Any) -> None:
    result = run(called, "hi")
    assert result.result == ["hi\n"] * 3, result.error
    assert list(result.steps) == ["shell#1", "in_a_thread#1", "in_process#1"]


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [for_ever, too_long], ids=["process", "thread"])
@pytest.mark.parametrize("is_async", [True, False])
def test_the_time_of_a_task_ends_its_command(deaf: Any, is_async: bool) -> None:
    if is_async:

        @flow(name="waits")
        async def waits(marked: dict[str, str]) -> None:
            await deaf.run(marked)
    else:

        @flow(name="waits")
        def waits(marked: dict[str, str]) -> None:
            deaf(marked)

    result = run(waits, mark.env)
    assert result.state == "failed"
    until(lambda: not mark.processes(), 5, "nothing is left")


def test_it_would_block_the_loop() -> None:
    @flow(name="blocks")
    async def blocks() -> None:
        shell.blocking(["true"])

    @task(name="inner")
    async def inner() -> None:
        shell.blocking(["true"])

    @flow(name="blocks_inside")
    async def blocks_inside() -> None:
        await inner()

    @flow(name="cannot_wait")
    def cannot_wait() -> None:
        shell(["true"])  # type: ignore[unused-coroutine]

    for each in (blocks, blocks_inside, cannot_wait):
        kind, message = said(run(each))
        assert kind == "MisplacedTask", message


def test_a_forgotten_await_is_an_error() -> None:
    @flow(name="forgets")
    async def forgets() -> None:
        shell(["touch", "made"])  # type: ignore[unused-coroutine]

    kind, message = said(run(forgets))
    assert kind == "not_awaited" and "shell" in message and not Path("made").exists()


def test_who_does_not_use_it_does_not_load_it() -> None:
    code = "import sys, turnout.service.cli; from turnout import flow, task; print([*sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "turnout.handlers.actions.shell" not in loaded.stdout


def test_many_at_once_leave_no_descriptor() -> None:
    async def many() -> list[str]:
        found = await asyncio.gather(*(shell(["echo", str(each)]) for each in range(12)))
        return [each.stdout.strip() for each in found]

    asyncio.run(many())
    before = psutil.Process().num_fds()
    assert asyncio.run(many()) == [*map(str, range(12))]
    # At most: what earlier tests left may be closed meanwhile.
    until(lambda: psutil.Process().num_fds() <= before, 5, "the descriptors are closed")


FLOOD = """
import asyncio, resource, sys
from turnout import shell
from turnout.service.telemetry import logs
logs.configure("json", "info")

async def run(size):
    return await shell(f"yes 0123456789 | head -c {size}", shell=True)

asyncio.run(run(2**20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = asyncio.run(run(int(sys.argv[1])))
print(result.left_out, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.timeout(180)
def test_a_flood_grows_neither_memory_nor_the_log(full: bool) -> None:
    size = 2**30 if full else 2**26
    told = subprocess.run(
        [sys.executable, "-c", FLOOD, str(size)], capture_output=True, text=True, check=True,
        timeout=150,
    )  # fmt: skip
    left_out, grown_kib = map(int, told.stdout.split())
    assert left_out == size - 2**20
    assert grown_kib < 8 * 1024
    assert len(told.stderr.splitlines()) < 1000, shlex.join(told.args)
