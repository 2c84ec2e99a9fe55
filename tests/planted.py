"""A slow reading of what `--data Recall` plants, from the symbols of one sequence alone."""

import re
from dataclasses import dataclass, field

DEFINITION, KEY, VALUE = map(re.compile, (r"⟨k(\d+)=(\d+)⟩", r"⟨k(\d+)⟩", r"⟨(\d+)⟩"))
SIGN, MARK = "⟨!⟩", "⟨?⟩"


@dataclass
class Reading:
    """What stands in a sequence, and where."""

    signs: list[int]
    definitions: list[tuple[int, int, int]] = field(default_factory=list)
    """Position, key and value of each."""
    queries: list[tuple[int, int, int]] = field(default_factory=list)
    """Position of the key, key and value of each."""
    strangers: list[tuple[int, int]] = field(default_factory=list)
    """Position and key of each."""
    filler: list[int] = field(default_factory=list)
    """Positions."""

    @property
    def defined(self) -> dict[int, int]:
        return {key: value for _, key, value in self.definitions}


def number(pattern: re.Pattern[str], symbol: str) -> int:
    match = pattern.fullmatch(symbol)
    assert match, symbol
    return int(match[1])


def read(symbols: list[str], is_marked: bool) -> Reading:
    """Definitions follow the first sign, if any do; all other keys are asked for, or strangers."""
    reading = Reading([at for at, symbol in enumerate(symbols) if symbol == SIGN])
    symbols = [*symbols, "", ""]  # so that looking ahead never ends
    at, is_among_definitions = 0, False
    while at < len(symbols) - 2:
        here, then = symbols[at : at + 2]
        start = at
        at += 1
        if here == SIGN:
            is_among_definitions = start == reading.signs[0]
        elif match := DEFINITION.fullmatch(here):
            reading.definitions.append((start, int(match[1]), int(match[2])))
        elif is_among_definitions and KEY.fullmatch(here):
            reading.definitions.append((start, number(KEY, here), number(VALUE, then)))
            at += 1
        elif here == MARK:
            assert is_marked
            value = number(VALUE, symbols[at + 1])
            reading.queries.append((at, number(KEY, then), value))
            at += 2
        elif KEY.fullmatch(here) and VALUE.fullmatch(then) and not is_marked:
            reading.queries.append((start, number(KEY, here), number(VALUE, then)))
            at += 1
        elif KEY.fullmatch(here):
            reading.strangers.append((start, number(KEY, here)))
        else:
            assert not here.startswith("⟨"), here
            reading.filler.append(start)
            is_among_definitions = False
    return reading


def undecided_in(reading: Reading, is_marked: bool, distance: int) -> set[int]:
    """Positions whose route is neither right nor wrong."""
    found = set(reading.signs)
    if not is_marked:
        found |= {at for at, _ in reading.strangers}
    for at, key, _ in reading.queries:
        answered = [before + 1 for before, other, _ in reading.queries if other == key]
        if any(0 <= at - answer < distance for answer in answered):
            found.add(at)
    for before, at in zip(reading.filler, reading.filler[1:], strict=False):
        if at - before > max(1, distance):
            found.add(at - 1)
    return found
