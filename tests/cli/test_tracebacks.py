"""Tracebacks for people: what an author wrote stays, libraries are a line each time."""

from __future__ import annotations

from turnout.service.cli.tracebacks import folded
from turnout.service.cli.words import location_of

REFUSED = """\
Traceback (most recent call last):
  File "/srv/.venv/lib/python3.11/site-packages/httpcore/_async/connection.py", line 101, in handle
    raise exc
  File "/srv/.venv/lib/python3.11/site-packages/httpcore/_exceptions.py", line 14, in map_exceptions
    raise to_exc(exc) from exc
httpcore.ConnectError: All connection attempts failed

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/flows/look.py", line 9, in look
    return await get()
           ^^^^^^^^^^^
  File "/srv/.venv/lib/python3.11/site-packages/httpx/_client.py", line 1768, in get
    return await self.request(
           ^^^^^^^^^^^^^^^^^^^
  File "/usr/lib/python3.11/contextlib.py", line 158, in __exit__
    self.gen.throw(typ, value, traceback)
  File "/srv/flows/look.py", line 20, in check
    raise_for(answer)
  File "<frozen importlib._bootstrap>", line 1, in _load
httpx.ConnectError: All connection attempts failed
"""


def test_frames_of_libraries_are_one_line() -> None:
    assert (
        folded(REFUSED)
        == """\
Traceback (most recent call last):
  … 2 frames of httpcore
httpcore.ConnectError: All connection attempts failed

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/flows/look.py", line 9, in look
    return await get()
           ^^^^^^^^^^^
  … 2 frames of httpx, Python
  File "/srv/flows/look.py", line 20, in check
    raise_for(answer)
  … 1 frame of Python
httpx.ConnectError: All connection attempts failed"""
    )


def test_a_traceback_of_own_frames_stays_as_it_is() -> None:
    own = 'Traceback:\n  File "/srv/a.py", line 1, in f\n    x()\nE: no\n  more'
    assert folded(own) == own
    assert folded("") == ""


def test_the_location_of_an_error_is_the_last_line_of_the_author() -> None:
    assert location_of(REFUSED) == "/srv/flows/look.py:20"
    assert location_of('  File "/srv/service/bill.py", line 3, in bill') == "/srv/service/bill.py:3"
    assert location_of('  File "/opt/turnout/service/steps/step.py", line 3, in call') == ""
    assert location_of(None) == ""
