"""What is refused when a file trigger is declared."""

from __future__ import annotations

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.domain.trigger import ReadTrigger, parts_of
from turnout.triggers.files import FilesTrigger, delete, files, move


def test_equal_settings_are_one_trigger_and_the_name_is_the_pattern() -> None:
    one, two = files("/in/*.csv", then=move("done/")), files("/in/*.csv", then=move("done/"))
    assert one == two
    assert hash(one) == hash(two)
    assert one.name == "files:/in/*.csv"
    assert files("/in/*.csv", settle="9s").name == one.name
    assert files("/in/*.csv", name="drops").name == "drops"
    assert isinstance(one, ReadTrigger)
    assert parts_of(one).after_run is one
    assert parts_of(files("/in/*.csv")).after_run is None


@pytest.mark.parametrize(
    ("trigger", "hint"),
    [
        (files("/in/*", then=move(".")), "../done/"),
        (files("/in/**/*", on_failure=move("..")), "../done/"),
        (files("/in/*", rescan="1ms"), "50ms"),
        (files("/in/*", max_depth=-1), "max_depth"),
        (files("/in/*", then="done/"), 'move("folder/")'),  # type: ignore[arg-type]  # what users try
    ],
)
def test_check_refuses_what_cannot_work_and_names_the_fix(trigger: FilesTrigger, hint: str) -> None:
    with pytest.raises(SetupError) as refused:
        trigger.check()
    assert hint in refused.value.message


def test_check_takes_what_works_without_looking_at_the_disk() -> None:
    files("/no/such/folder/**/*.csv", then=move("done/"), on_failure=move("../failed")).check()
    files("/in/*.csv", then=move(".."), on_failure=delete()).check()
