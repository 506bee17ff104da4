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

#: The most pairs of changed items that are compared per document. Items beyond that get no counterpart by likeness.
COMPARED_MAX: Final = 50_000

#: The most stored items that are looked at a second time per document. The items of further lists get no counterparts.
LOOKED_AT_AGAIN_MAX: Final = 5_000


class Shapes:
    """Numbers JSON values: equal values get the same number (`1` and `1.0` are equal, `1` and `true` are not).

    Containers are remembered by their `id()`. So values must neither be changed nor freed while this object is in use.
    """

    def __init__(self, is_mask: Callable[[str], bool]) -> None:
        self._is_mask = is_mask
        self._numbers: dict[Hashable, int] = {}
        self._of_containers: dict[int, int] = {}
        self._with_masks: set[int] = set()

    def of(self, value: Any) -> int:
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
        return self.of(value) in self._with_masks

    def _of_container(self, value: Any) -> int:
        if isinstance(value, dict):
            named = {name: self.of(item) for name, item in cast("dict[str, Any]", value).items()}
            key, within = frozenset(named.items()), named.values()
        else:
            within = tuple(map(self.of, cast("list[Any]", value)))
            key = "list", within
        number = self._numbers.get(key)
        return self._new(key, has_mask=not self._with_masks.isdisjoint(within)) if number is None else number

    def _new(self, key: Hashable, *, has_mask: bool) -> int:
        number = self._numbers[key] = len(self._numbers)
        if has_mask:
            self._with_masks.add(number)
        return number


def _key_of_scalar(value: Any) -> Hashable:
    """A key for a dict. Numbers become texts: anybody can choose numbers with equal hashes, but hashes of texts are seeded."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, float):
        if not value.is_integer():
            return "number", value.hex()
        value = int(value)
    return ("number", f"{value:x}") if isinstance(value, int) else value


class _Lists(NamedTuple):
    """The given list and what was shown of the stored one; and the shapes of the items of the given, stored and shown lists."""

    given: list[Any]
    shown: list[Any]
    given_shapes: list[int]
    kept_shapes: list[int]
    shown_shapes: list[int]


class Counterparts:
    """Finds counterparts in the lists of one document. The work is bounded, whatever the lists hold.

    `shapes`: numbers the values of this document.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._looked_at: set[int] = set()
        self._again = LOOKED_AT_AGAIN_MAX
        self._compared = COMPARED_MAX

    def of(self, given: list[Any], kept: list[Any], shown: list[Any]) -> dict[int, int]:
        """The counterparts, as a dict from indexes of `given` to indexes of `kept`.

        `shown` is `kept` as it was shown, with masks. Items are matched by their `id`, which may itself be a secret and be given as
        a mask. Items with equal ids, and items without an id, are matched by their contents and their order.
        """
        if not self._may_look_at(kept):
            return {}
        number = self._shapes.of
        lists = _Lists(given, shown, [*map(number, given)], [*map(number, kept)], [*map(number, shown)])
        by_shown, by_itself = _by_id(shown, self._shapes), _by_id(kept, self._shapes)
        pairs: dict[int, int] = {}
        as_shown: dict[Hashable, list[int]] = {}
        for key, places in _by_id(given, self._shapes).items():
            if key in by_shown:
                as_shown[key] = places
            elif key in by_itself:
                # The id is a secret, and was given in clear.
                pairs |= self._paired(places, by_itself[key], lists)
        taken = set(pairs.values())
        for key, places in as_shown.items():
            pairs |= self._paired(places, [place for place in by_shown[key] if place not in taken], lists)
        return pairs

    def _may_look_at(self, kept: list[Any]) -> bool:
        """Whether the bound on repeated looks allows to look at `kept`: many given items may have the same stored counterpart."""
        if id(kept) in self._looked_at:
            if len(kept) > self._again:
                return False
            self._again -= len(kept)
        self._looked_at.add(id(kept))
        return True

    def _paired(self, given_indexes: list[int], stored_indexes: list[int], lists: _Lists) -> dict[int, int]:
        """Match the given items at `given_indexes` with the stored items at `stored_indexes`, which all have the same id.

        Below, `i` is the index of a given item, and `j` that of a stored one.
        """
        if _are_alike(stored_indexes, lists):
            return dict.fromkeys(given_indexes, stored_indexes[0])
        in_order = (
            dict(zip(given_indexes, stored_indexes, strict=True)) if len(given_indexes) == len(stored_indexes) else {}
        )
        # Items that have not moved come first: two items may look alike now because one of them was changed.
        pairs = {i: j for i, j in in_order.items() if lists.given_shapes[i] == lists.shown_shapes[j]}
        staying = set(pairs.values())
        kept_by_shape = _by_shape((j for j in stored_indexes if j not in staying), lists.shown_shapes)
        changed: list[int] = []
        for shape, places in _by_shape((i for i in given_indexes if i not in pairs), lists.given_shapes).items():
            same = kept_by_shape.get(shape, [])
            if len(same) == len(places):
                pairs |= zip(places, same, strict=True)
            elif _are_alike(same, lists):
                pairs |= dict.fromkeys(places, same[0])
            elif not same:
                changed += [i for i in places if self._shapes.has_mask(lists.given[i])]
        left = set(stored_indexes).difference(pairs.values())
        if len(changed) == len(left) == 1:
            return pairs | {changed[0]: left.pop()}
        return pairs | self._by_likeness(changed, [*left], lists)

    def _by_likeness(self, changed: list[int], left: list[int], lists: _Lists) -> dict[int, int]:
        """Match items that have more in common with each other than either has with any other item here."""
        if not changed or not left or len(changed) * len(left) > self._compared:
            return {}
        self._compared -= len(changed) * len(left)
        traits = [_traits(lists.shown[j], self._shapes) for j in left]
        # How many traits they share: a row for each given item, a column for each shown one.
        rows = [
            [len(mine & each) for each in traits] for mine in (_traits(lists.given[i], self._shapes) for i in changed)
        ]
        column_maxima = [_greatest(column) for column in zip(*rows, strict=True)]
        pairs: dict[int, int] = {}
        for i, row in zip(changed, rows, strict=True):
            most = _greatest(row)
            if most and column_maxima[at := row.index(most)] == most:
                pairs[i] = left[at]
        return pairs


def _by_id(items: list[Any], shapes: Shapes) -> dict[Hashable, list[int]]:
    """The indexes of the items by the shape of their id, in order. Items without an id are under `_NO_ID`."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        item_id = cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None
        places[_NO_ID if item_id is None else shapes.of(item_id)].append(place)
    return places


def _traits(item: Any, shapes: Shapes) -> frozenset[Hashable]:
    """The fields of an object that hold no mask, with the shapes of their values."""
    if not isinstance(item, dict):
        return frozenset()
    named = cast("dict[str, Any]", item).items()
    return frozenset((name, shapes.of(value)) for name, value in named if not shapes.has_mask(value))


def _greatest(counts: Sequence[int]) -> int:
    """The greatest count, or 0 where several counts are the greatest."""
    most = max(counts)
    return most if counts.count(most) == 1 else 0


def _are_alike(stored_indexes: list[int], lists: _Lists) -> bool:
    """Whether the stored items at `stored_indexes` are all equal, secrets included, so that any of them will do."""
    return len({lists.kept_shapes[j] for j in stored_indexes}) == 1


def _by_shape(places: Iterable[int], shapes: list[int]) -> dict[int, list[int]]:
    """The indexes `places` by the `shapes` at them, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for place in places:
        found[shapes[place]].append(place)
    return found
