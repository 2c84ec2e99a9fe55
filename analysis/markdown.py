"""A report in Markdown, with its pictures beside it."""

import re
from collections.abc import Iterator, Sequence

from pyro_meta.analysis.document import (
    Beside,
    Document,
    Drawn,
    Paragraph,
    Part,
    Passage,
    Table,
    Verdicts,
    shown,
)
from pyro_meta.analysis.verdicts import mark

SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&$!{}])")
"""What Markdown, in the kind of GitHub, would not show as it is."""
DIFFERS = "\u2260"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\1", text)


def render(document: Document) -> str:
    """The whole file."""
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: Document) -> Iterator[str]:
    yield f"# {escaped(document.title)}"
    yield escaped(document.about)
    if document.facts:
        yield _rows(("fact", "value"), document.facts)
    for name, address in document.links:
        yield f"[The report of {escaped(name)}]({address})"
    if document.verdicts:
        yield from _verdicts(document.verdicts)
    for section in document.sections:
        yield f"## {escaped(section.title)}"
        for part in section.parts:
            yield from _part(part)


def _verdicts(verdicts: Verdicts) -> Iterator[str]:
    yield "## Verdicts"
    yield f"**{escaped(verdicts.headline)}**"
    for line in verdicts.lines:
        answer = escaped(f"{mark(line.is_good)} {line.question} {line.answer.capitalize()}.")
        states = ", ".join(f"{name}: {state}" for name, state in line.states_by_layer)
        by_layer = f"\n  {escaped(states)}." if states else ""
        yield f"* **{answer}**\n  {escaped(line.reason)}.{by_layer}"


def _part(part: Part) -> Iterator[str]:
    match part:
        case Paragraph():
            yield escaped(part.text)
        case Table():
            yield from _table(part)
        case Drawn():
            yield f"### {escaped(part.title)}"
            yield from _picture(part)
        case Passage():
            yield from _picture(part.picture)
        case Beside():
            yield f"### {escaped(part.title)}"
            yield escaped(part.how)
            for run, one in part.of_runs:
                yield f"**{escaped(run)}**"
                yield _image(one) if one else "No such picture of this run."


def _picture(one: Drawn) -> Iterator[str]:
    yield escaped(one.how)
    yield _image(one)
    yield escaped(one.says)


def _image(one: Drawn) -> str:
    return f"![{escaped(one.says)}]({one.file})"


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"### {escaped(table.title)}"
    if table.how:
        yield escaped(table.how)
    rows = [
        [DIFFERS * (index in table.differing) + " " + shown(row[0]), *map(shown, row[1:])]
        for index, row in enumerate(table.rows)
    ]
    yield _rows(table.columns, rows)
    if table.note:
        yield escaped(table.note)


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(cell if index == 1 else escaped(cell.strip()) for cell in line) + " |"
        for index, line in enumerate(lines)
    )
