"""Secrets: references in code; values are read as late as possible, and never stored or printed.

`secret("X")` reads nothing. `reveal()` reads the environment variable `X`, then the file `X` in the
secrets folder, so a rotated value is used from the next call on. Revealed values are kept in memory
to check results, errors and log lines for them. This covers all processes of the service: a worker
process reports the values it reveals.

Not here: the forms a value may take (`forms`), a vault, encryption, rotation.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from turnout.service.domain.errors import NotKept, SetupError

from .forms import forms_of

MASK = "********"
MIN_LENGTH = 5
"""The least characters of a secret: a shorter one would match results by chance."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class _Form:
    """One way a revealed value may be written, as text and as stored bytes."""

    text: str
    stored: bytes
    name: str


_revealed: Mapping[str, str] = {}
"""Every value revealed in this service, with its secret's name."""
live_forms: tuple[_Form, ...] = ()
"""All forms of all values, the longest first: one value may be a prefix of another.

Empty until a secret is revealed, so that checking costs nothing where there is none.
"""
_listeners: list[Callable[[Mapping[str, str]], object]] = []
_changing = (
    threading.Lock()
)  # readers need no lock: the tuple they iterate over is replaced, not changed


@dataclass(frozen=True, slots=True)
class Secret:
    """A reference to a secret value: compared and hashed by name, masked when printed."""

    name: str

    def reveal(self) -> str:
        """Return the current value.

        Raises `SetupError`, saying where it is expected, for a secret without a value, with one
        shorter than 5 characters, or in a file that others may read.
        """
        value = os.environ.get(self.name) or _read_file(self.name, _folder)
        if not value:
            raise SetupError(
                f"secret {self.name!r} has no value; {_where_to_put(self.name, _folder)}"
            )
        if len(value) < MIN_LENGTH:
            raise SetupError(
                f"secret {self.name!r} is shorter than {MIN_LENGTH} characters; nothing could keep "
                f"so short a value out of results and logs; give it a longer one, here and where "
                "it is checked"
            )
        if value not in _revealed:
            remember({value: self.name})
        return value

    def is_declared(self) -> bool:
        """Whether the secret has a value on this machine, without reading it."""
        return has_value(self.name, _folder)

    def __repr__(self) -> str:
        return f"secret({self.name!r})"

    def __str__(self) -> str:
        return MASK


def secret(name: str) -> Secret:
    """Refer to a secret by name: an environment variable, or a file in `secrets_folder`.

    Nothing is read before `.reveal()`, so a rotated value is used from the next call on. Triggers
    and actions take the reference itself. A revealed value is masked in logs, errors and output,
    and a result that holds it is refused.

    * `name`: the variable's or the file's name: letters, digits and `_ . -`

    Raises `SetupError` for a name that cannot be a file's. `turnout check --env` names secrets
    without a value.

    ```python
    from turnout import flow, secret, task, webhook

    api_key = secret("CRM_KEY")


    @task
    async def ask(customer: str) -> int:
        headers = {"Authorization": f"Bearer {api_key.reveal()}"}  # as late as possible
        return len(headers) + len(customer)


    @flow(on=webhook("/crm", verify="github", secret=secret("CRM_HOOK")))
    async def changed(data: dict[str, str]) -> int:
        return await ask(data["customer"])
    ```
    """
    if not _NAME.fullmatch(name):
        raise SetupError(f"secret({name!r}): a name has letters, digits and _ . - only")
    return Secret(name)


def configure(secrets_folder: Path | None) -> None:
    """Set the folder of secret files; one per process."""
    global _folder
    _folder = secrets_folder


def has_value(name: str, folder: Path | None) -> bool:
    """Whether a secret of this name has a value, with `folder` as the secrets folder."""
    return bool(os.environ.get(name)) or (folder is not None and (folder / name).is_file())


def secrets_folder() -> Path | None:
    """Return the folder of secret files, for worker processes."""
    return _folder


def revealed() -> Mapping[str, str]:
    """Return every value revealed so far, with the name of its secret."""
    return _revealed


def remember(values: Mapping[str, str]) -> None:
    """Mask and refuse these values from now on, and call all listeners with the new ones."""
    global _revealed, live_forms
    with _changing:
        new = {value: name for value, name in values.items() if value not in _revealed}
        if not new:
            return
        known = {form.text: form for form in live_forms}
        for value, name in new.items():
            for text in forms_of(value):
                stored = text.encode("utf-8", "surrogateescape")
                known.setdefault(text, _Form(text, stored, name))
        live_forms = tuple(sorted(known.values(), key=lambda form: len(form.text), reverse=True))
        _revealed = {**_revealed, **new}
    for listener in _listeners:
        listener(new)


def listen(listener: Callable[[Mapping[str, str]], object]) -> None:
    """Call `listener` with each value revealed from now on, before its first use."""
    _listeners.append(listener)


def find_live(data: bytes) -> str | None:
    """Return the name of a revealed secret whose value `data` contains, in any of its forms."""
    for form in live_forms:
        if form.stored in data:
            return form.name
    return None


def mask(text: str) -> str:
    """Return `text` with revealed values masked; for errors and log lines, never for results."""
    for form in live_forms:
        if form.text in text:
            text = text.replace(form.text, MASK)
    return text


def mask_bytes(data: bytes) -> tuple[bytes, bytes]:
    """Return masked bytes of a stream, and the rest that may be the beginning of a value."""
    for form in live_forms:
        if form.stored in data:
            data = data.replace(form.stored, MASK.encode())
    rest = max((_begins(form.stored, data) for form in live_forms), default=0)
    return data[: len(data) - rest], data[len(data) - rest :]


def _begins(value: bytes, data: bytes) -> int:
    """Return how many bytes at the end of `data` are the beginning of `value`."""
    longest = min(len(value) - 1, len(data))
    return next((size for size in range(longest, 0, -1) if data.endswith(value[:size])), 0)


def refuse_live(text: str | None, what: str) -> str | None:
    """Return a text that must not be masked, such as a key; raises `NotKept` if it has a value."""
    found = find_live(text.encode("utf-8", "surrogatepass")) if text and live_forms else None
    if found is not None:
        raise NotKept(f"{what} holds the value of secret {found!r}; use something else, or a hash")
    return text


def _where_to_put(name: str, folder: Path | None) -> str:
    if folder is None:
        return f"set the environment variable {name}, or a secrets folder (TURNOUT_SECRETS_FOLDER)"
    return f"set the environment variable {name}, or write it to {folder / name} (mode 0600)"


def _read_file(name: str, folder: Path | None) -> str | None:
    if folder is None:
        return None
    path = folder / name
    try:
        with path.open("rb") as file:
            # The mode of the open file: a path could be swapped between the check and the read.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise SetupError(
                    f"secret file {path} may be read by others (mode {mode:04o}); chmod 600 {path}"
                )
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"cannot read the secret file {path}: {error.strerror}") from None
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise SetupError(f"secret file {path} is not UTF-8 text") from None
