"""What `turnout check` says of each mistake in a flow file: its line, in these words."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.service.project.check import check

from .in_actions import IN_ACTIONS
from .in_files import IN_FILES
from .mistake import InFile


@pytest.mark.parametrize("mistake", (*IN_FILES, *IN_ACTIONS), ids=lambda each: each.title)
def test_check_names_the_line_and_the_fix(mistake: InFile, tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text(mistake.source)
    for name, text in mistake.beside.items():
        (tmp_path / name).write_text(text)
    findings = check([file])
    told, others = findings.problems, findings.warnings
    if mistake.warns:
        told, others = others, told
    says = mistake.says.replace("FILE", str(file))
    assert [each.message for each in told] == [says]
    name, line = mistake.place
    assert [(each.file, each.line or 1) for each in told] == [(str(tmp_path / name), line)]
    assert mistake.fix in says
    assert not others or not mistake.warns
