"""The JSON Schema of report.json, made from the dataclasses that write it. Validates nothing.

`python -m edgestill.benchmarks.report_schema` prints it; the file edge-report-3.schema.json beside this one is that.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from edgestill.benchmarks.report import Report
from edgestill.runtime.manifest import LATER

SCHEMA_FILE = Path(__file__).with_name("edge-report-3.schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCALARS: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def report_schema() -> dict[str, Any]:
    """The schema (draft 2020-12): every key but those that came `LATER` is required, no other is allowed.

    Unknown values are null.
    """
    definitions: dict[str, Any] = {}
    _object(Report, definitions)
    top = definitions.pop("Report")
    top["properties"]["schema"] = {"const": Report.schema}
    return {"$schema": DIALECT, "title": Report.schema, **top, "$defs": dict(sorted(definitions.items()))}


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, str]:
    """A reference to the definition of a dataclass, which is added when it is new."""
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}  # a dataclass that holds itself would end here
        hints = typing.get_type_hints(kind)
        definitions[name] = {
            "type": "object",
            "description": " ".join((kind.__doc__ or "").split()),
            "properties": {key: _schema(hint, definitions) for key, hint in hints.items()},
            "required": [field.name for field in dataclasses.fields(kind) if field.metadata != LATER],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name}"}


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object(hint, definitions)
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(each, definitions) for each in arguments]}
    return {"type": "null" if hint is type(None) else SCALARS[hint]}


if __name__ == "__main__":
    print(json.dumps(report_schema(), indent=2))
