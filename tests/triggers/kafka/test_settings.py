"""What is refused when a Kafka trigger or its connection is declared."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.settings import Settings, load
from turnout.triggers.kafka import KafkaTrigger
from turnout.triggers.kafka import kafka as make_trigger

from .reading import kafka_trigger


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kafka_bootstrap_servers": "kafka"}, "not HOST:PORT"),
        ({"kafka_security_protocol": "SASL_SSL"}, "needs TURNOUT_KAFKA_SASL_USERNAME"),
        ({"kafka_sasl_username": "u", "kafka_sasl_password": "p"}, "would not be used"),
        ({"kafka_security_protocol": "SSL", "kafka_tls_ca": "nowhere.pem"}, "cannot read"),
        ({"kafka_security_protocol": "SSL", "kafka_tls_key": "pyproject.toml"}, "go together"),
        ({"kafka_tls_ca": "pyproject.toml"}, "would not be used"),
        ({"kafka_security_protocol": "SSL", "kafka_tls_ca": "pyproject.toml"}, "cannot be used"),
    ],
)
def test_connection_settings_are_checked_at_load(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SetupError, match=said):
        load(None, **settings)


def test_a_password_is_never_shown() -> None:
    chosen: dict[str, Any] = {
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_username": "u",
        "kafka_sasl_password": "hush",
    }
    assert "hush" not in repr(Settings(**chosen))


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        (kafka_trigger(group="g"), "name topics"),
        (kafka_trigger("a b", group="g"), "letters"),
        (kafka_trigger("a", group=""), "joins no group"),
        (kafka_trigger("a", group="g", start="yesterday"), "earliest"),
        (kafka_trigger("a", group="g", start="2026-01-31T09:00:00"), "zone"),
        (kafka_trigger(pattern="(", group="g"), "pattern"),
        (kafka_trigger("a", group="g", dead_letter_topic="a"), "of its own"),
        (kafka_trigger(pattern="a.*", group="g", dead_letter_topic="a-dead"), "of its own"),
        (make_trigger("orders", group="g", session="500ms"), "at least a second"),
    ],
)
def test_what_cannot_be_a_trigger_is_refused_at_load(trigger: KafkaTrigger, said: str) -> None:
    with pytest.raises(SetupError, match=said):
        trigger.check()
