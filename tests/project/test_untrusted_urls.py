"""`turnout check` warns of a request whose address an event brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.service.project.check import check

HEAD = "from turnout import current, event, flow, http, task\n"
WARNED = [
    "await http.get(data['url'])",
    "await http.post(data.get('url'), json=1)",
    "await http('GET', data['url'])",
    "await http.get(url=data['url'])",
    "await http.get(str(data['url']))",
    "await http.get(f'https://{data[\"host\"]}/x')",
    "await http.get('https://' + data['host'])",
    "await http.get(data['base'] + '/x')",
    "await http.get(current().event.data['url'])",
    "where = data['url']; await http.get(where)",
    "await http.get(data.get('url') or 'https://a.example/')",
    "[await http.get(each) for each in data['urls']]",
    "await http.get(data['url'].strip())",
]
FINE = [
    "await http.get('https://a.example/')",
    "await http.get(f'https://a.example/{data[\"id\"]}')",
    "await http.get('https://a.example/?id=' + data['id'])",
    "await http.get(data['url'], untrusted=True)",
    "await http.get(ADDRESS, params={'id': data['id']})",
    "await look(data['url'])",
    "await other.get(data['url'])",
]


def warnings_of(tmp_path: Path, line: str) -> list[str]:
    file = tmp_path / "flows.py"
    file.write_text(
        f"{HEAD}\nADDRESS = 'https://a.example/'\nother: dict = {{}}\n\n\n@task\n"
        "async def look(url: str) -> None: ...\n\n\n@flow(on=event('asked'))\n"
        f"async def ask(data: dict) -> None:\n    {line}\n"
    )
    found = check([file])
    assert not found.problems, found.problems
    return [f"{each.line}: {each.message}" for each in found.warnings]


@pytest.mark.parametrize("line", WARNED)
def test_an_address_of_the_event_is_warned_of(tmp_path: Path, line: str) -> None:
    [warning] = warnings_of(tmp_path, line)
    assert warning.startswith("13: http")
    assert warning.endswith(
        "(…): the address comes from the event, so whoever sends it chooses what this machine "
        "asks; write untrusted=True"
    )


@pytest.mark.parametrize("line", FINE)
def test_an_address_of_the_author_is_not(tmp_path: Path, line: str) -> None:
    assert warnings_of(tmp_path, line) == []
