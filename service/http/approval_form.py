"""The form of an approval, made from the class of its fields, and the answer that it sends.

Each field of the class is an input named `field.NAME`, which fits its JSON schema; what is no plain
value is asked for as JSON. It checks nothing: the class does, when the answer is stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from turnout.service.domain.errors import InvalidData
from turnout.service.domain.payload import decode_json
from turnout.service.domain.shape import adapter

PREFIX = "field."
WHOLE = "fields"
"""The input of fields that are no object: all of them as JSON."""

_LINES = 5
_TYPES = {"date": "date", "email": "email", "time": "time", "uri": "url"}


@dataclass(frozen=True, slots=True)
class Field:
    """An input: `schema` is the JSON schema of its value."""

    name: str
    schema: Mapping[str, Any]
    required: bool

    @property
    def kind(self) -> str:
        """The JSON type of the value; `json` for an array or an object."""
        if "enum" in self.schema or "const" in self.schema:
            return "choice"
        found = str(self.schema.get("type", "json"))
        return found if found in ("string", "integer", "number", "boolean") else "json"

    @property
    def choices(self) -> list[Any]:
        """The values to choose from."""
        return list(self.schema.get("enum", [self.schema.get("const")]))


def form_fields(declared: Any) -> list[Field] | None:
    """Return the fields of a class, None where it is no class with named fields."""
    schema = adapter(declared).json_schema()
    shape = _resolved(schema, schema)
    if shape.get("type") != "object" or not shape.get("properties"):
        return None
    required = set(shape.get("required", ()))
    return [
        Field(name, _resolved(each, schema), name in required)
        for name, each in shape["properties"].items()
    ]


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema without a reference, and without `or null`."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_resolved(root.get("$defs", {}).get(name, {}), root), **rest}
    options = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if len(options) == 1:
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return {**_resolved(options[0], root), **rest}
    return schema


# ---------------------------------------------------------------- the inputs


def inputs(
    fields: list[Field] | None, given: Mapping[str, Any], problem: InvalidData | None
) -> str:
    """Return the inputs as HTML, with what was `given` before and what was wrong with it."""
    if fields is None:
        schema = {"title": "Fields, as JSON"}
        return _input(Field(WHOLE, schema, required=True), WHOLE, given, problem)
    return "".join(_input(field, PREFIX + field.name, given, problem) for field in fields)


def _input(field: Field, name: str, given: Mapping[str, Any], problem: InvalidData | None) -> str:
    title = escape(str(field.schema.get("title") or field.name))
    wrong = problem is not None and (problem.field or "").split(".")[0] == field.name
    hints = []
    if field.schema.get("description"):
        hints.append(f'<p class="hint" id="{escape(name)}-hint">'
                     f"{escape(str(field.schema['description']))}</p>")  # fmt: skip
    if wrong:
        hints.append(f'<p class="wrong" id="{escape(name)}-wrong">{escape(str(problem))}</p>')
    described = [f"{name}-hint"] * bool(field.schema.get("description")) + [f"{name}-wrong"] * wrong
    attributes = f'id="{escape(name)}" name="{escape(name)}"'
    if described:
        attributes += f' aria-describedby="{escape(" ".join(described))}"'
    if wrong:
        attributes += ' aria-invalid="true"'
    if field.required and field.kind != "boolean":
        attributes += " required"
    value = given.get(name, None if given else field.schema.get("default"))
    optional = "" if field.required or field.kind == "boolean" else " (optional)"
    label = f'<label for="{escape(name)}">{title}{optional}</label>'
    control = _control(field, attributes, value)
    if field.kind == "boolean":
        return f'<div class="field check">{control}{label}{"".join(hints)}</div>'
    return f'<div class="field">{label}{"".join(hints)}{control}</div>'


def _control(field: Field, attributes: str, value: Any) -> str:
    schema = field.schema
    if field.kind == "boolean":
        checked = " checked" if value in (True, "true") else ""
        return f'<input type="checkbox" value="true" {attributes}{checked}>'
    if field.kind == "choice":
        options = "".join(_option(each, value) for each in field.choices)
        empty = "" if field.required else '<option value=""></option>'
        return f"<select {attributes}>{empty}{options}</select>"
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    if field.kind == "json":
        return f'<textarea {attributes} rows="{_LINES}">{escape(text)}</textarea>'
    if field.kind in ("integer", "number"):
        mode = "numeric" if field.kind == "integer" else "decimal"
        return f'<input type="text" inputmode="{mode}" value="{escape(text)}" {attributes}>'
    kind = _TYPES.get(str(schema.get("format")), "text")
    longest = f' maxlength="{int(schema["maxLength"])}"' if "maxLength" in schema else ""
    return f'<input type="{kind}" value="{escape(text)}"{longest} {attributes}>'


def _option(choice: Any, chosen: Any) -> str:
    text = json.dumps(choice)
    selected = " selected" if chosen in (choice, text) else ""
    return f'<option value="{escape(text)}"{selected}>{escape(str(choice))}</option>'


# ---------------------------------------------------------------- the answer


def answered_fields(fields: list[Field] | None, form: Mapping[str, Any]) -> Any:
    """Return the fields that a form sends; raises `InvalidData` for JSON that is none.

    A number or a choice that cannot be read stays text, which the class then refuses by name.
    """
    if form.get(WHOLE):  # all of them as JSON
        return decode_json(str(form[WHOLE]).encode())
    if fields is None:
        return None
    found: dict[str, Any] = {}
    for field in fields:
        text = form.get(PREFIX + field.name)
        if field.kind == "boolean":
            found[field.name] = text == "true"
        elif text in (None, "") and not (field.required and field.kind == "string"):
            continue  # its default counts
        elif field.kind == "string":
            found[field.name] = str(text or "")
        else:
            found[field.name] = _read(field, str(text))
    return found


def _read(field: Field, text: str) -> Any:
    try:
        return decode_json(text.encode())
    except InvalidData:
        if field.kind == "json":
            raise InvalidData(f"{field.name}: this is not JSON", field=field.name) from None
        return text
