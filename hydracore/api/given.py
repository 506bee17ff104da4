"""What a request gives, before anybody knows whether it is as declared: the texts of query and headers, and what is in its body."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl

from hydracore.auth import HEADER_BLANKS
from hydracore.documents import TOO_DEEP
from hydracore.problems import Problem, Reader

RawHeaders = Iterable[tuple[bytes, bytes]]

#: Stands for a body of which there is no value.
UNREAD: Final = object()


def body_given(reader: Reader, raw_body: bytes, headers: RawHeaders) -> Any:
    """What the JSON of a body says; `UNREAD` where it cannot be read, of which `reader` is told."""
    if not raw_body:
        reader.problems.append(Problem(("body",), "Field required", "missing"))
        return UNREAD
    # A body that is not said to be JSON is not read as such; the reader then says that it is no object.
    value: Any = raw_body
    if is_json(headers):
        try:
            value = json.loads(raw_body)
        except json.JSONDecodeError as error:
            reader.problems.append(Problem(("body", error.pos), "JSON decode error", "json_invalid"))
            return UNREAD
        except RecursionError:
            # Some thousand levels, of which nobody can tell whether they are JSON to the end.
            reader.problems.append(Problem(("body",), TOO_DEEP, "value_error"))
            return UNREAD
        except ValueError:
            # Not UTF-8, or a number of thousands of digits.
            reader.problems.append(Problem(("body", 0), "JSON decode error", "json_invalid"))
            return UNREAD
    return value


def query_given(query_string: bytes) -> dict[str, str]:
    """The last value of each name, as FastAPI takes it."""
    if not query_string:
        return {}
    return dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))


def headers_given(headers: RawHeaders) -> dict[str, str]:
    return {name.decode("latin-1"): _header_text(value) for name, value in headers}


def is_json(headers: RawHeaders) -> bool:
    """Whether the body is said to be JSON; a client that says nothing is taken to mean it."""
    for name, value in headers:
        if name == b"content-type":
            media_type = value.split(b";", 1)[0].strip().lower()
            return not media_type or media_type == b"application/json" or media_type.endswith(b"+json")
    return True


def is_doubled(headers: RawHeaders, wanted: bytes) -> bool:
    return sum(name == wanted for name, _ in headers) > 1


def _header_text(value: bytes) -> str:
    """UTF-8, as the body has it, so that a key is the same in both; what is no UTF-8 is read as HTTP used to."""
    value = value.strip(HEADER_BLANKS)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
