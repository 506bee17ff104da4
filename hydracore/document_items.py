"""Which item of a list that is kept each item of a list that is given is a new version of.

The one given was made from what was shown of the one kept, in which secrets that differ may look alike. So that none gets into
the place of another, an item has a counterpart only where it can be told which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

_NO_ID: Final = object()

#: So many pairs of changed items of a document are compared. Of more, nobody is told which is which.
COMPARED_MAX: Final = 50_000

#: So many items of lists are looked at that had been before. Of the items of further lists, nobody is told either.
LOOKED_AT_AGAIN_MAX: Final = 5_000


class Shapes:
    """Numbers JSON values, so that those have the same number which are equal: `1` and `1.0` are, `1` and `true` are not.

    Values must stay as they are and be kept while they are asked about.
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
        """Whether a text in `value` looks like a mask."""
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
    """A number's is a text: any number of numbers can be made that hash alike, and no such texts, as their hashes have a seed."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, float):
        if not value.is_integer():
            return "number", value.hex()
        value = int(value)
    return ("number", f"{value:x}") if isinstance(value, int) else value


class _Looks(NamedTuple):
    """Three lists, and what their items are, as numbers."""

    items_given: list[Any]
    items_shown: list[Any]
    given: list[int]
    kept: list[int]
    shown: list[int]


class Counterparts:
    """Tells counterparts in the lists of one document, which is `shapes`'. It does so much and no more, whatever the lists are."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._looked_at: set[int] = set()
        self._again = LOOKED_AT_AGAIN_MAX
        self._compared = COMPARED_MAX

    def of(self, given: list[Any], kept: list[Any], shown: list[Any]) -> dict[int, int]:
        """For items of `given`, by their places, the places of what they are versions of in `kept`. `shown`: what was shown of `kept`.

        Items are told apart by their `id`, which may be given as it was shown. Among those with the same one, and among those with
        none, they are told apart by their contents and their order.
        """
        if not self._may_look_at(kept):
            return {}
        number = self._shapes.of
        looks = _Looks(given, shown, [*map(number, given)], [*map(number, kept)], [*map(number, shown)])
        by_shown, by_itself = _by_id(shown, self._shapes), _by_id(kept, self._shapes)
        pairs: dict[int, int] = {}
        as_shown: dict[Hashable, list[int]] = {}
        for key, places in _by_id(given, self._shapes).items():
            if key in by_shown:
                as_shown[key] = places
            elif key in by_itself:
                # A secret that is given itself.
                pairs |= self._paired(places, by_itself[key], looks)
        taken = set(pairs.values())
        for key, places in as_shown.items():
            pairs |= self._paired(places, [place for place in by_shown[key] if place not in taken], looks)
        return pairs

    def _may_look_at(self, kept: list[Any]) -> bool:
        """The item that a list is kept in may be the counterpart of any number of others, each with a list to compare."""
        if id(kept) in self._looked_at:
            if len(kept) > self._again:
                return False
            self._again -= len(kept)
        self._looked_at.add(id(kept))
        return True

    def _paired(self, ours: list[int], theirs: list[int], looks: _Looks) -> dict[int, int]:
        """Pairs of the places `ours` among the given and `theirs` among the kept, of items that their ids do not tell apart."""
        if _are_alike(theirs, looks):
            return dict.fromkeys(ours, theirs[0])
        in_order = dict(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else {}
        # First what has not moved: where two look alike now, it may be because one of them was changed.
        pairs = {our: their for our, their in in_order.items() if looks.given[our] == looks.shown[their]}
        staying = set(pairs.values())
        kept_by_look = _by_look((their for their in theirs if their not in staying), looks.shown)
        changed: list[int] = []
        for look, places in _by_look((our for our in ours if our not in pairs), looks.given).items():
            same = kept_by_look.get(look, [])
            if len(same) == len(places):
                pairs |= zip(places, same, strict=True)
            elif _are_alike(same, looks):
                pairs |= dict.fromkeys(places, same[0])
            elif not same:
                changed += [our for our in places if self._shapes.has_mask(looks.items_given[our])]
        left = set(theirs).difference(pairs.values())
        if len(changed) == len(left) == 1:
            return pairs | {changed[0]: left.pop()}
        return pairs | self._by_likeness(changed, [*left], looks)

    def _by_likeness(self, changed: list[int], left: list[int], looks: _Looks) -> dict[int, int]:
        """Pairs of items of which each has more in common with the other than with anything else here."""
        if not changed or not left or len(changed) * len(left) > self._compared:
            return {}
        self._compared -= len(changed) * len(left)
        traits = [_traits(looks.items_shown[their], self._shapes) for their in left]
        # Of the given ones, a row each; of the shown ones, a column each.
        rows = [
            [len(mine & each) for each in traits]
            for mine in (_traits(looks.items_given[our], self._shapes) for our in changed)
        ]
        of_columns = [_greatest(column) for column in zip(*rows, strict=True)]
        pairs: dict[int, int] = {}
        for our, row in zip(changed, rows, strict=True):
            most = _greatest(row)
            if most and of_columns[at := row.index(most)] == most:
                pairs[our] = left[at]
        return pairs


def _by_id(items: list[Any], shapes: Shapes) -> dict[Hashable, list[int]]:
    """The places of items by what their ids are, in order; those without one come together."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        item_id = cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None
        places[_NO_ID if item_id is None else shapes.of(item_id)].append(place)
    return places


def _traits(item: Any, shapes: Shapes) -> frozenset[Hashable]:
    if not isinstance(item, dict):
        return frozenset()
    named = cast("dict[str, Any]", item).items()
    return frozenset((name, shapes.of(value)) for name, value in named if not shapes.has_mask(value))


def _greatest(counts: Sequence[int]) -> int:
    """The greatest of them, if it is the only one; otherwise 0."""
    most = max(counts)
    return most if counts.count(most) == 1 else 0


def _are_alike(theirs: list[int], looks: _Looks) -> bool:
    """Whether it does not matter which of them is meant."""
    return len({looks.kept[their] for their in theirs}) == 1


def _by_look(places: Iterable[int], looks: list[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for place in places:
        found[looks[place]].append(place)
    return found
