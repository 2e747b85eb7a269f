"""What `turnout check` says of each mistake in a flow file: its line, in these words."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout.service.project.check import check

from .in_files import IN_FILES
from .mistake import HERE, InFile


@pytest.mark.parametrize("mistake", IN_FILES, ids=lambda each: each.title)
def test_check_names_the_line_and_the_fix(mistake: InFile, tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text(mistake.source)
    findings = check([file])
    told, others = findings.problems, findings.warnings
    if mistake.warns:
        told, others = others, told
    says = mistake.says.replace("FILE", str(file))
    assert [each.message for each in told] == [says]
    assert [each.file for each in told] == [str(file)]
    if HERE in mistake.text:
        assert [each.line for each in told] == [mistake.line]
    assert mistake.fix in says
    assert not others or not mistake.warns
