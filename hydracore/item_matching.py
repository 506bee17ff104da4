"""Match the items of a list that a client sends with the items of the stored list.

Lists are stored with secrets, and shown to clients with masks in place of the secrets. A client sends a list back after it has
changed, moved, added or removed items of it. Each mask in an item that was sent stands for a secret of the stored item that the
client's item is a new version of: its counterpart. Different secrets may have the same mask, so an item gets a counterpart only
where the match is unambiguous. Otherwise one item's secret might end up in another item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

_NO_ID: Final = object()

#: The most pairs of changed items that are compared per document. Items beyond that are not matched by similarity.
COMPARISONS_MAX: Final = 50_000

#: The most stored items that are visited a second time per document. The items of further lists get no counterparts.
REVISITED_ITEMS_MAX: Final = 5_000


class ValueNumbering:
    """Gives each JSON value a number: equal values get the same number (`1` and `1.0` are equal, `1` and `true` are not).

    Containers are remembered by their `id()`. So values must neither be changed nor freed while this object is in use.
    """

    def __init__(self, is_mask: Callable[[str], bool]) -> None:
        self._is_mask = is_mask
        self._numbers: dict[Hashable, int] = {}
        self._of_containers: dict[int, int] = {}
        self._with_masks: set[int] = set()

    def number_of(self, value: Any) -> int:
        """The number of `value`."""
        if isinstance(value, str):
            number = self._numbers.get(value)
            return self._new(value, has_mask=self._is_mask(value)) if number is None else number
        if isinstance(value, dict | list | tuple):
            number = self._of_containers.get(id(cast("object", value)))
            if number is None:
                number = self._of_containers[id(cast("object", value))] = self._of_container(value)
            return number
        key = _key_of_scalar(value)
        number = self._numbers.get(key)
        return self._new(key, has_mask=False) if number is None else number

    def has_mask(self, value: Any) -> bool:
        """Whether any text in `value` looks like a mask."""
        return self.number_of(value) in self._with_masks

    def _of_container(self, value: Any) -> int:
        if isinstance(value, dict):
            named = {name: self.number_of(item) for name, item in cast("dict[str, Any]", value).items()}
            key, within = frozenset(named.items()), named.values()
        else:
            within = tuple(map(self.number_of, cast("list[Any]", value)))
            key = "list", within
        number = self._numbers.get(key)
        return self._new(key, has_mask=not self._with_masks.isdisjoint(within)) if number is None else number

    def _new(self, key: Hashable, *, has_mask: bool) -> int:
        number = self._numbers[key] = len(self._numbers)
        if has_mask:
            self._with_masks.add(number)
        return number


def _key_of_scalar(value: Any) -> Hashable:
    """A key for a dict. Numbers become texts: clients could send numbers with equal hashes, but hashes of texts are seeded."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, float):
        if not value.is_integer():
            return "number", value.hex()
        value = int(value)
    return ("number", f"{value:x}") if isinstance(value, int) else value


class _Lists(NamedTuple):
    """The given list, the stored list as it was shown, and the numbers of the items of the given, stored and shown lists."""

    given: list[Any]
    shown: list[Any]
    given_numbers: list[int]
    stored_numbers: list[int]
    shown_numbers: list[int]


class Counterparts:
    """Finds counterparts in the lists of one document. The work is bounded, whatever the lists hold.

    `numbering`: the numbers of the values of this document.
    """

    def __init__(self, numbering: ValueNumbering) -> None:
        self._numbering = numbering
        self._visited: set[int] = set()
        self._revisits_left = REVISITED_ITEMS_MAX
        self._comparisons_left = COMPARISONS_MAX

    def match(self, given: list[Any], stored: list[Any], shown: list[Any]) -> dict[int, int]:
        """The counterparts, as a dict from indexes of `given` to indexes of `stored`.

        `shown` is `stored` as it was shown, with masks. Items are matched by their `id`, which may itself be a secret and be given as
        a mask. Items with equal ids, and items without an id, are matched by their contents and their order.
        """
        if not self._may_visit(stored):
            return {}
        number = self._numbering.number_of
        lists = _Lists(given, shown, [*map(number, given)], [*map(number, stored)], [*map(number, shown)])
        by_shown_id, by_stored_id = _by_id(shown, self._numbering), _by_id(stored, self._numbering)
        pairs: dict[int, int] = {}
        given_by_shown_id: dict[Hashable, list[int]] = {}
        for key, indexes in _by_id(given, self._numbering).items():
            if key in by_shown_id:
                given_by_shown_id[key] = indexes
            elif key in by_stored_id:
                # The id is a secret, and was given in clear.
                pairs |= self._match_same_id(indexes, by_stored_id[key], lists)
        taken = set(pairs.values())
        for key, indexes in given_by_shown_id.items():
            pairs |= self._match_same_id(indexes, [index for index in by_shown_id[key] if index not in taken], lists)
        return pairs

    def _may_visit(self, stored: list[Any]) -> bool:
        """Whether `stored` may be visited. Repeated visits are limited: many given items may have the same stored counterpart."""
        if id(stored) in self._visited:
            if len(stored) > self._revisits_left:
                return False
            self._revisits_left -= len(stored)
        self._visited.add(id(stored))
        return True

    def _match_same_id(self, given_indexes: list[int], stored_indexes: list[int], lists: _Lists) -> dict[int, int]:
        """Match the given items at `given_indexes` with the stored items at `stored_indexes`, which all have the same id.

        Below, `i` is the index of a given item, and `j` that of a stored one.
        """
        if _are_equal(stored_indexes, lists):
            return dict.fromkeys(given_indexes, stored_indexes[0])
        in_order = (
            dict(zip(given_indexes, stored_indexes, strict=True)) if len(given_indexes) == len(stored_indexes) else {}
        )
        # First the items that have not moved: after a change of one item, two items may be equal.
        pairs = {i: j for i, j in in_order.items() if lists.given_numbers[i] == lists.shown_numbers[j]}
        unmoved = set(pairs.values())
        stored_by_number = _by_number((j for j in stored_indexes if j not in unmoved), lists.shown_numbers)
        changed: list[int] = []
        for number, indexes in _by_number((i for i in given_indexes if i not in pairs), lists.given_numbers).items():
            same = stored_by_number.get(number, [])
            if len(same) == len(indexes):
                pairs |= zip(indexes, same, strict=True)
            elif _are_equal(same, lists):
                pairs |= dict.fromkeys(indexes, same[0])
            elif not same:
                changed += [i for i in indexes if self._numbering.has_mask(lists.given[i])]
        unmatched = set(stored_indexes).difference(pairs.values())
        if len(changed) == len(unmatched) == 1:
            return pairs | {changed[0]: unmatched.pop()}
        return pairs | self._match_by_similarity(changed, [*unmatched], lists)

    def _match_by_similarity(self, changed: list[int], unmatched: list[int], lists: _Lists) -> dict[int, int]:
        """Match items that have more in common with each other than either has with any other item here."""
        if not changed or not unmatched or len(changed) * len(unmatched) > self._comparisons_left:
            return {}
        self._comparisons_left -= len(changed) * len(unmatched)
        stored_fields = [_unmasked_fields(lists.shown[j], self._numbering) for j in unmatched]
        # How many fields they share: a row for each given item, a column for each stored one.
        rows = [
            [len(given_fields & each) for each in stored_fields]
            for given_fields in (_unmasked_fields(lists.given[i], self._numbering) for i in changed)
        ]
        column_maxima = [_unique_maximum(column) for column in zip(*rows, strict=True)]
        pairs: dict[int, int] = {}
        for i, row in zip(changed, rows, strict=True):
            maximum = _unique_maximum(row)
            if maximum and column_maxima[at := row.index(maximum)] == maximum:
                pairs[i] = unmatched[at]
        return pairs


def _by_id(items: list[Any], numbering: ValueNumbering) -> dict[Hashable, list[int]]:
    """The indexes of the items by the number of their id, in order. Items without an id are under `_NO_ID`."""
    indexes: dict[Hashable, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        item_id = cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None
        indexes[_NO_ID if item_id is None else numbering.number_of(item_id)].append(index)
    return indexes


def _unmasked_fields(item: Any, numbering: ValueNumbering) -> frozenset[Hashable]:
    """The fields of an object that hold no mask, with the numbers of their values."""
    if not isinstance(item, dict):
        return frozenset()
    named = cast("dict[str, Any]", item).items()
    return frozenset((name, numbering.number_of(value)) for name, value in named if not numbering.has_mask(value))


def _unique_maximum(counts: Sequence[int]) -> int:
    """The greatest count, or 0 where several counts are the greatest."""
    maximum = max(counts)
    return maximum if counts.count(maximum) == 1 else 0


def _are_equal(stored_indexes: list[int], lists: _Lists) -> bool:
    """Whether the stored items at `stored_indexes` are all equal, secrets included, so that any of them will do."""
    return len({lists.stored_numbers[j] for j in stored_indexes}) == 1


def _by_number(indexes: Iterable[int], numbers: list[int]) -> dict[int, list[int]]:
    """`indexes`, grouped by the `numbers` at them, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for index in indexes:
        found[numbers[index]].append(index)
    return found
