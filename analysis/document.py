"""What a report says, apart from how it is written: HTML, Markdown and JSON hold the same.

A figure is kept as a number and the form that it is shown in, so that pages show one rounding of it
and report.json has it whole.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_meta.analysis.verdicts import Judgement, mark


@dataclass(frozen=True)
class Figure:
    """A number and how it is shown, as `format` takes it."""

    value: float | None
    form: str

    @property
    def text(self) -> str:
        """The number as pages show it; nothing for what is none."""
        if self.value is None or not math.isfinite(self.value):
            return ""
        return format(self.value, self.form)


@dataclass(frozen=True)
class Answer:
    """The answer of a verdict, in a table."""

    judgement: Judgement

    @property
    def text(self) -> str:
        return f"{mark(self.judgement.is_good)} {self.judgement.answer}"


Cell = str | Figure | Answer
SHORT = 20
"""Letters of a cell that needs no line of its own on a phone."""


def shown(cell: Cell) -> str:
    """A cell as pages show it."""
    return cell if isinstance(cell, str) else cell.text


def _value(cell: Cell) -> Any:
    return cell.value if isinstance(cell, Figure) else shown(cell)


@dataclass(frozen=True)
class Table:
    """Rows of a name and its cells."""

    name: str
    """On its page, as an anchor and in report.json."""
    title: str
    columns: Sequence[str]
    """The first is that of the names."""
    rows: Sequence[Sequence[Cell]]
    how: str = ""
    """How to read it."""
    note: str = ""
    differing: frozenset[int] = frozenset()
    """Rows whose cells are not all alike, where that is what the table is for."""

    is_folded: bool = False
    """Whether it is long, and shown when asked for."""

    kind = "table"

    @property
    def is_of_words(self) -> bool:
        """Whether it holds more than figures and short answers."""
        return any(len(shown(cell)) > SHORT for row in self.rows for cell in row[1:])

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "title": self.title,
            "columns": list(self.columns),
            "rows": [[_value(cell) for cell in row] for row in self.rows],
        }
        return found | ({"differing_rows": sorted(self.differing)} if self.differing else {})


@dataclass(frozen=True)
class Paragraph:
    text: str
    is_note: bool = False

    kind = "paragraph"


@dataclass(frozen=True)
class Drawn:
    """A picture of a run."""

    name: str
    """Of its file, without ending."""
    section: str
    title: str
    how: str
    """How to read it: the caption."""
    says: str
    """What is to be seen: the alternative text."""
    png: bytes = b""
    source: str = ""
    """Data URI."""
    narrow: str = ""
    """Data URI of the same for a phone."""
    is_narrow: bool = False
    """Whether the picture is no wider than it is high."""
    file: str = ""
    """Path of the PNG from the page, quoted as in an address."""

    kind = "picture"

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "title": self.title, "how": self.how, "says": self.says}


@dataclass(frozen=True)
class Beside:
    """The same picture of several runs."""

    name: str
    title: str
    how: str
    of_runs: Sequence[tuple[str, Drawn | None]]
    """None where a run has no such picture."""

    kind = "beside"


@dataclass(frozen=True)
class Token:
    """A token of the passage, in one layer."""

    text: str
    choice: int
    strength: float
    details: str
    """Posterior means in per cent and the concentration, for the hover."""
    runs: bool
    """Whether it runs the layer, and does not skip it."""
    begins: int = 0
    """Number of the sequence that begins with it, from 1 on; 0 within one."""


@dataclass(frozen=True)
class Passage:
    """The first tokens of the validation text on the colours of their mechanisms."""

    mechanisms: Sequence[str]
    layers: Sequence[tuple[str, Sequence[Token]]]
    open_layers: int
    most_layers: int
    """Further ones are folded away."""
    picture: Drawn

    kind = "passage"


Part = Table | Paragraph | Drawn | Beside | Passage


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Verdicts:
    """The verdict box of a run."""

    headline: str
    lines: Sequence[Judgement]


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    about: str
    """What it is of, in a sentence."""
    facts: Sequence[tuple[str, str]]
    """Data, model, steps and the like, by name."""
    verdicts: Verdicts | None
    """Of several runs they are a table."""
    sections: Sequence[Section]
    palette: Sequence[str] = field(default=())
    """Colours of mechanisms."""
    links: Sequence[tuple[str, str]] = ()
    """Names and addresses of the pages of single runs."""

    def parts(self, kind: str) -> Iterator[Any]:
        return (part for section in self.sections for part in section.parts if part.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """What pages show, for a reader that is a program."""
        return {
            "about": dict(self.facts),
            "tables": [table.to_json() for table in self.parts("table")],
            "pictures": [picture.to_json() for picture in self.parts("picture")],
        }
