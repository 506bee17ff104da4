"""Labels and label selectors (https://docs.hetzner.cloud/reference/cloud#labels, #label-selector).

A selector is a list of terms with commas between them, all of which must hold: `k`, `!k`, `k==v`, `k=v`, `k!=v`,
`k in (a,b)`, `k notin (a,b)`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from hydracore.cloudsim.problems import ApiError, invalid_input

LABELS_MAX: Final = 64
SELECTOR_LENGTH_MAX: Final = 2048

_NAME: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?"
_KEY: Final = rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}"
KEY_PATTERN: Final = re.compile(_KEY)
VALUE_PATTERN: Final = re.compile(rf"(?:{_NAME})?")

TERM_PATTERN: Final = re.compile(
    rf"\s*(?:(?P<absent>!)?(?P<key>{_KEY})"
    rf"(?:\s*(?P<operator>==|=|!=)\s*(?P<value>(?:{_NAME})?)"
    rf"|\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*"
)

Labels = Mapping[str, str]
Term = Callable[[Labels], bool]


def check_labels(labels: Labels) -> None:
    """Raises `ApiError` for a label that the API does not allow."""
    if len(labels) > LABELS_MAX:
        raise invalid_input("labels", f"at most {LABELS_MAX} labels are allowed")
    for key, value in labels.items():
        if not KEY_PATTERN.fullmatch(key) or not VALUE_PATTERN.fullmatch(value):
            raise invalid_input(
                "labels", "label keys and values are up to 63 of [a-zA-Z0-9-_.], alphanumeric at both ends"
            )


def parse_selector(selector: str) -> Term:
    """A predicate of labels. Raises `ApiError` for a malformed selector."""
    if len(selector) > SELECTOR_LENGTH_MAX:
        raise _unreadable()
    terms = [_term(text) for text in _split(selector)] if selector.strip() else []
    return lambda labels: all(term(labels) for term in terms)


def _split(selector: str) -> Iterator[str]:
    """Split at commas, except those within parentheses."""
    depth = start = 0
    for place, character in enumerate(selector):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield selector[start:place]
            start = place + 1
    yield selector[start:]


def _term(text: str) -> Term:
    match = TERM_PATTERN.fullmatch(text)
    if match is None:
        raise _unreadable()
    key, value = match["key"], match["value"]
    if match["absent"]:
        if match["operator"] or match["set"]:
            raise _unreadable()
        return lambda labels: key not in labels
    if match["set"]:
        values = _values(match["values"])
        wanted = match["set"] == "in"
        return lambda labels: (labels.get(key) in values) == wanted
    if match["operator"] is None:
        return lambda labels: key in labels
    if match["operator"] == "!=":
        return lambda labels: labels.get(key) != value
    return lambda labels: labels.get(key) == value


def _values(text: str) -> frozenset[str]:
    values = frozenset(part.strip() for part in text.split(","))
    if not all(VALUE_PATTERN.fullmatch(value) for value in values):
        raise _unreadable()
    return values


def _unreadable() -> ApiError:
    return invalid_input("label_selector", "label selector is malformed")
