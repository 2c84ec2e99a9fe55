"""Tables of a study: text in rows, for the terminal and for Markdown."""

from dataclasses import dataclass

from pyro_meta.terminal.tables import filled


@dataclass
class Table:
    """Headings and rows of text, without the columns that no row fills."""

    headings: list[str]
    rows: list[list[str]]

    def __post_init__(self) -> None:
        self.headings, self.rows = filled(self.headings, self.rows)


def markdown(table: Table) -> str:
    """The table in Markdown; all columns but the first are figures."""

    def line(cells: list[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"
        )

    ruler = "|---|" + "---:|" * (len(table.headings) - 1)
    return "\n".join([line(table.headings), ruler, *(line(row) for row in table.rows)])
