"""Settings are typed; a wrong or misspelt one is named with the place it stands in."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from turnout.handlers.actions.shell_command import STEP_KEY
from turnout.service.domain.errors import SetupError
from turnout.service.domain.units import LONGEST
from turnout.service.settings import load


def test_the_environment_wins_over_the_file_and_a_choice_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "turnout.toml"
    config.write_text('port = 1\ngrace = "5s"\nmax_body_bytes = "2MiB"\nconcurrency = 3\n')
    monkeypatch.setenv("TURNOUT_PORT", "2")
    monkeypatch.setenv("TURNOUT_CONCURRENCY", "4")
    settings = load(config, concurrency=5, host=None)
    assert (settings.port, settings.concurrency, settings.host) == (2, 5, "127.0.0.1")
    assert settings.grace == timedelta(seconds=5)
    assert settings.max_body_bytes == 2 * 2**20


def test_a_misspelt_key_is_refused_with_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "turnout.toml"
    config.write_text("concurency = 3\n")
    with pytest.raises(SetupError, match=r"turnout\.toml: 'concurency'.*'concurrency'"):
        load(config)
    config.write_text("")
    monkeypatch.setenv("TURNOUT_GRAZE", "5s")
    with pytest.raises(SetupError, match=r"TURNOUT_GRAZE.*'grace'"):
        load(config)


def test_a_command_that_a_flow_runs_may_be_one_of_turnout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STEP_KEY, "run/step#1")
    assert load(None).port == 8080


def test_a_setting_is_taken_by_its_old_name_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "turnout.toml"
    config.write_text('max_spilled_bytes = "1MiB"\n')
    with pytest.warns(FutureWarning, match="max_spilled_bytes is now max_blob_bytes"):
        assert load(config).max_blob_bytes == 2**20
    config.write_text("")
    monkeypatch.setenv("TURNOUT_MAX_SPILLED_BYTES", "2MiB")
    with pytest.warns(FutureWarning, match="TURNOUT_MAX_SPILLED_BYTES: max_spilled_bytes is now"):
        assert load(config).max_blob_bytes == 2 * 2**20
    monkeypatch.setenv("TURNOUT_MAX_BLOB_BYTES", "3MiB")
    with pytest.warns(FutureWarning):
        assert load(config).max_blob_bytes == 3 * 2**20


def test_a_bad_value_names_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "turnout.toml"
    config.write_text('grace = "soon"\n')
    with pytest.raises(SetupError, match=r"turnout\.toml: grace: .*duration 'soon'"):
        load(config)
    config.write_text("")
    monkeypatch.setenv("TURNOUT_PORT", "99999")
    with pytest.raises(SetupError, match=r"TURNOUT_PORT should be"):
        load(config)
    monkeypatch.delenv("TURNOUT_PORT")
    config.write_text("port = = 1")
    with pytest.raises(SetupError, match=r"turnout\.toml"):
        load(config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('grace = "soon"', r"grace: cannot read the duration 'soon'"),
        ('blocked_loop = "0s"', "blocked_loop should be greater than or equal to 100ms, not '0s'"),
        ('grace = "450000w"', r"grace: the duration '450000w' is too long"),
        ('blocked_loop = "9999999w"', r"blocked_loop: the duration '9999999w' is too long"),
        ('keep_failed = "for ever"', r"keep_failed: cannot read the duration 'for ever'"),
        ('host = ""', "host: .*1 character"),
        ("max_body_bytes = 0", "max_body_bytes should be greater than or equal to 1, not 0"),
        ('trusted_proxies = "proxy"', r"trusted_proxies: 'proxy' is not a list of addresses"),
        ("trusted_proxies = [1]", r"trusted_proxies: .* is not a list of addresses"),
        ("trusted_proxies = 1", r"trusted_proxies: 1 is not a list of addresses"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_the_fix(
    tmp_path: Path, line: str, message: str
) -> None:
    config = tmp_path / "turnout.toml"
    config.write_text(line)
    with pytest.raises(SetupError, match=rf"turnout\.toml: {message}"):
        load(config)


def test_what_is_kept_may_be_kept_forever(tmp_path: Path) -> None:
    config = tmp_path / "turnout.toml"
    config.write_text('keep_failed = "forever"\nkeep_finished = "999999d"\ndedupe = "800000d"\n')
    settings = load(config)
    assert settings.keep_failed == settings.keep_finished == settings.dedupe == LONGEST


def test_a_list_is_written_plainly_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    config = tmp_path / "turnout.toml"
    config.write_text('trusted_proxies = ["192.168.0.1"]')
    assert load(config).trusted_proxies == ("10.0.0.0/8", "::1/128")
    monkeypatch.setenv("TURNOUT_TRUSTED_PROXIES", "somewhere")
    with pytest.raises(SetupError, match="TURNOUT_TRUSTED_PROXIES: 'somewhere'"):
        load(config)
    monkeypatch.delenv("TURNOUT_TRUSTED_PROXIES")
    assert load(config).trusted_proxies == ("192.168.0.1/32",)


def test_the_token_is_not_shown() -> None:
    assert "hunter22" not in repr(load(api_token="hunter22"))
