"""The raw parts of a request, before they are checked: texts of query and headers, and the value of the body."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl

from hydracore.auth import HEADER_BLANKS
from hydracore.documents import TOO_DEEP
from hydracore.media_types import JSON, media_type
from hydracore.problems import NO_OBJECT, Problem, Reader

RawHeaders = Iterable[tuple[bytes, bytes]]

#: The value of a body that cannot be read.
INVALID_BODY: Final = object()

#: FastAPI takes a body with another content type for bytes, and says that these are no object.
NOT_JSON: Final = f"{NO_OBJECT}; the Content-Type of the request must be {JSON}"


def json_body(reader: Reader, raw_body: bytes, headers: RawHeaders) -> Any:
    """The value of a JSON body. If it cannot be read, adds a problem to `reader` and returns `INVALID_BODY`."""
    if not raw_body:
        reader.problems.append(Problem(("body",), "Field required", "missing"))
        return INVALID_BODY
    if not is_json(headers):
        reader.problems.append(Problem(("body",), NOT_JSON, "model_attributes_type"))
        return INVALID_BODY
    try:
        return json.loads(raw_body)
    except json.JSONDecodeError as error:
        reader.problems.append(Problem(("body", error.pos), "JSON decode error", "json_invalid"))
    except RecursionError:
        # Some thousand levels. Whether the rest is JSON is unknown.
        reader.problems.append(Problem(("body",), TOO_DEEP, "value_error"))
    except ValueError:
        # Not UTF-8, or a number with thousands of digits.
        reader.problems.append(Problem(("body", 0), "JSON decode error", "json_invalid"))
    return INVALID_BODY


def query_parameters(query_string: bytes) -> dict[str, str]:
    """The parameters of a query string. Of repeated names the last value counts, as in FastAPI."""
    if not query_string:
        return {}
    return dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))


def header_texts(headers: RawHeaders) -> dict[str, str]:
    return {name.decode("latin-1"): _header_text(value) for name, value in headers}


def is_json(headers: RawHeaders) -> bool:
    """Whether the content type of the body is JSON. Without a content type, JSON is assumed."""
    for name, value in headers:
        if name == b"content-type":
            content_type = media_type(value.decode("latin-1"))
            return not content_type or content_type == JSON or content_type.endswith("+json")
    return True


def is_repeated(headers: RawHeaders, wanted: bytes) -> bool:
    return sum(name == wanted for name, _ in headers) > 1


def _header_text(value: bytes) -> str:
    """The text of a header, decoded as UTF-8, so that a key is the same in header and body; otherwise as Latin-1."""
    value = value.strip(HEADER_BLANKS)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
