"""A report as one HTML file that needs nothing else: no network, no library, no folder.

Everything that comes from a run is escaped by the template; the page's own policy forbids it to
load anything.
"""

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from pyro_meta.analysis.document import SHORT, Document, Figure, shown
from pyro_meta.analysis.reading import MOST_ROWS

MOST_COLUMNS = 3
"""Of a table that fits a phone as it is; the rows of others become blocks there."""


def environment(*folders: Path) -> Environment:
    """Templates of the package, and of other folders: everything in them is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader("pyro_meta.analysis"), FileSystemLoader(folders)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(document: Document) -> str:
    """The page of a report, of one run or of several."""
    return (
        environment()
        .get_template("report.html")
        .render(
            document=document,
            shown=shown,
            short=SHORT,
            is_figure=lambda cell: isinstance(cell, Figure),
            most_columns=MOST_COLUMNS,
            most_layers=MOST_ROWS,
        )
    )
