from __future__ import annotations

import pytest

from turnout.service.domain.media_type import MediaType, media_type


@pytest.mark.parametrize(
    ("content_type", "essence", "charset", "encoding"),
    [
        ("application/json", "application/json", "", "json"),
        ("APPLICATION/JSON ; Charset=UTF-8", "application/json", "utf-8", "json"),
        ("application/problem+json", "application/problem+json", "", "json"),
        ('text/csv; header=present; charset="latin-1"', "text/csv", "latin-1", "text"),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded", "", "form"),
        ("application/octet-stream", "application/octet-stream", "", "bytes"),
        ("image/png", "image/png", "", None),
        ("", "", "", None),
        (";charset=x", "", "x", None),
        ("json", "json", "", None),
    ],
)
def test_a_content_type_says_how_a_body_is_decoded(
    content_type: str, essence: str, charset: str, encoding: str | None
) -> None:
    assert media_type(content_type) == MediaType(essence, charset)
    assert media_type(content_type).encoding == encoding
