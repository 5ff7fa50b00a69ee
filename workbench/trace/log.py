"""`EventLog`: events kept as plain tuples, and made again when they are read.

A recording keeps millions of them. As objects they would be walked by the garbage collector again
and again, which cost more than all else of recording; tuples of plain values it leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar, overload

from workbench.events import Event

E = TypeVar("E", bound=Event)
Row = tuple[Any, ...]


class EventLog(Sequence[Event]):
    """A sequence of events that grows at its end."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._kinds: list[type[Event]] = []
        self._rows: list[Row] = []
        for event in events:
            self.append(event)

    def append(self, event: Event) -> None:
        """Take one event in; it may be changed or forgotten afterwards."""
        kind = type(event)
        read = _READERS.get(kind) or _reader(kind)
        self._kinds.append(kind)
        self._rows.append(read(event))

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind, or of kinds derived from it, in order."""
        count = len(self)  # it may grow meanwhile, on another thread
        kinds, rows = self._kinds[:count], self._rows[:count]
        wanted = {known for known in set(kinds) if issubclass(known, kind)}
        pairs = zip(kinds, rows, strict=True)
        return [known(*row) for known, row in pairs if known in wanted]

    def kinds(self) -> Sequence[type[Event]]:
        """Return each event's class."""
        return self._kinds

    def first(self, count: int) -> EventLog:
        """Return a log of the first `count` events, which grows no more with this one."""
        part = EventLog()
        part._kinds, part._rows = self._kinds[:count], self._rows[:count]
        return part

    def row(self, place: int) -> tuple[type[Event], Row]:
        """Return an event's class and the values of its fields, in their order."""
        return self._kinds[place], self._rows[place]

    def replace_first(self, count: int, event: Event) -> None:
        """Put one event in the place of the first `count`."""
        self._kinds[:count] = [type(event)]
        self._rows[:count] = EventLog([event])._rows

    def __len__(self) -> int:
        """Number of events."""
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Event: ...

    @overload
    def __getitem__(self, place: slice) -> list[Event]: ...

    def __getitem__(self, place: int | slice) -> Event | list[Event]:
        """Return one event, or those of a slice as a list."""
        if isinstance(place, slice):
            pairs = zip(self._kinds[place], self._rows[place], strict=True)
            return [kind(*row) for kind, row in pairs]
        return self._kinds[place](*self._rows[place])

    def __iter__(self) -> Iterator[Event]:
        """Make each event, in order."""
        for place in range(len(self._rows)):
            yield self._kinds[place](*self._rows[place])

    def __eq__(self, other: object) -> bool:
        """Whether it holds the same events as another log or a list."""
        if isinstance(other, EventLog):
            return self._kinds == other._kinds and self._rows == other._rows
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]


_READERS: dict[type[Event], Callable[[Event], Row]] = {}


def _reader(kind: type[Event]) -> Callable[[Event], Row]:
    """Return what makes a row of an event of this kind."""
    names = field_names(kind)
    many: Callable[[Any], Row] = attrgetter(*names)
    _READERS[kind] = many if len(names) > 1 else lambda event: (event.step,)
    return _READERS[kind]


def field_names(kind: type[Event]) -> list[str]:
    """Return the names of an event's fields, in their order."""
    return [field.name for field in fields(kind)]
