"""The API's documentation page at `/docs`, rendered from the OpenAPI document.

Plain HTML without scripts or other hosts, so it works on a machine without internet access. The
page shows a curl line for each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { padding: .6rem .8rem; overflow-x: auto; border: 1px solid #8884; border-radius: 6px; }
section { border-top: 1px solid #8884; padding: .8rem 0; }
h2 { font-size: 1rem; margin: 0; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
th { font-weight: 600; }
.method { display: inline-block; min-width: 4rem; font-weight: 700; }
"""


def render(openapi: Mapping[str, Any], *, base_url: str) -> str:
    """Return the page for an OpenAPI document; every text of it is escaped."""
    info = openapi["info"]
    body = "".join(_operations(openapi, base_url))
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{title}</h1>{_paragraphs(info.get('description', ''))}"
        f'<p>The machine-readable form is <a href="openapi.json">openapi.json</a>.</p>{body}</html>'
    )


def _operations(openapi: Mapping[str, Any], base_url: str) -> Iterator[str]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            verb = method.upper()
            yield (
                f'<section><h2><span class="method">{escape(verb)}</span>'
                f"<code>{escape(path)}</code></h2>"
                f"{_paragraphs(operation.get('description') or operation.get('summary', ''))}"
                f"{_parameters(operation.get('parameters', []))}"
                f"<pre>{escape(_curl(verb, base_url + path))}</pre>"
                f"{_answers(operation.get('responses', {}))}</section>"
            )


def _paragraphs(text: str) -> str:
    return "".join(
        f"<p>{escape(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part
    )


def _parameters(parameters: list[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{escape(parameter['in'])}</td>"
        f"<td>{escape(parameter.get('description', ''))}</td></tr>"
        for parameter in parameters
    )
    return f"<table>{rows}</table>" if rows else ""


def _answers(responses: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td>{escape(answer['description'])}</td></tr>"
        for status, answer in responses.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _curl(verb: str, url: str) -> str:
    method = "" if verb == "GET" else f"-X {verb} "
    return f"curl {method}-H \"Authorization: Bearer $TURNOUT_API_TOKEN\" '{url}'"
