"""What a request of the action `http` comes to: an answer, or an error that says why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turnout.service.domain.errors import TurnoutError
from turnout.service.domain.guess import OF_RESPONSE, no_attribute
from turnout.service.domain.payload import read_json
from turnout.service.domain.run import Fail

_CHARSET = re.compile(r"charset=[\"']?([\w.:-]+)")


class HttpError(TurnoutError):
    """Raised when a request has no answer, or one of 5xx or 429, and its tries are used up.

    One of another status is `HttpRefused`, which is one of these too.

    * `message`: what was asked, and what came of it
    * `status_code`: the status of the answer, None if there was none
    * `retry_after`: what the answer asks to wait, as its header says

    Raises nothing by itself; not caught, the run is retried as its flow says.

    ```python
    from turnout import HttpError, Retry, flow, http


    @flow
    async def price(item: str) -> int:
        try:
            return int((await http.get(f"https://shop.example/{item}")).json()["price"])
        except HttpError as error:
            raise Retry(f"the shop answered {error.status_code}", after="10m") from error
    ```
    """

    def __init__(
        self, message: str, *, status_code: int | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after = retry_after


class HttpRefused(HttpError, Fail):
    """Raised at once for an answer that another try would not change, such as 404. It is a `Fail`.

    Also for an address that must not be asked, and for an answer that is too large.

    * `message`: what was asked, and what came of it
    * `status_code`: the status of the answer, None if there was none
    * `retry_after`: None: it is not tried again

    Raises nothing by itself; not caught, it fails the run for good.

    ```python
    from turnout import HttpRefused, flow, http


    @flow
    async def is_known(customer: str) -> bool:
        try:
            await http.get(f"https://crm.example/customers/{customer}")
        except HttpRefused as error:
            if error.status_code != 404:
                raise
            return False
        return True
    ```
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """An answer to `http`: recorded exactly, and the same when the run resumes.

    * `status_code`: the status, such as 200
    * `headers`: the headers by name in lower case; several of one name are joined by commas
    * `content`: the body, empty if it went to an artefact
    * `url`: the address that answered, after redirects, with secrets masked: of one that a secret
      holds the host alone
    * `artefact`: the name of the artefact that has the body, None if none has

    Raises nothing: it is a value. `json()` raises `ValueError` where the body is no JSON.

    ```python
    from turnout import HttpResponse, flow, http


    @flow
    async def version() -> str:
        answer: HttpResponse = await http.get("https://api.example/version")
        return answer.json()["version"] if answer.status_code == 200 else answer.text
    ```
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    url: str
    artefact: str | None = None

    @property
    def text(self) -> str:
        """The body as text, in the charset of its type or UTF-8; other bytes are replaced."""
        found = _CHARSET.search(self.headers.get("content-type", "").lower())
        try:
            return self.content.decode(found[1] if found else "utf-8", "replace")
        except LookupError:
            return self.content.decode("utf-8", "replace")

    if not TYPE_CHECKING:  # a type checker that saw it would take any misspelt name

        def __getattr__(self, name: str) -> Any:
            known = ("status_code", "headers", "content", "text", "json", "url", "artefact")
            raise AttributeError(no_attribute("answer", "HttpResponse", name, OF_RESPONSE, known))

    def json(self) -> Any:
        """Return the body, which is JSON; raises `ValueError` if it is not."""
        return read_json(self.content)
