"""The description as a client reads it, and the check of a value against one of its schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs

from convo.web.description import openapi

DOCUMENT = json.loads(json.dumps(openapi.document()))


def check_fits(schema: dict[str, Any], value: Any) -> None:
    """Raise where the value does not fit the schema, whose references lead into the document."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": DOCUMENT["components"]} | schema
    jsonschema_rs.Draft202012Validator(whole, validate_formats=True).validate(value)
