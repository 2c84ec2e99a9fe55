"""Fills the tables of README and docs, and draws their figures, from the results that stand today.

    python benchmarks/tables.py            # fill and draw what differs
    python benchmarks/tables.py --check    # compare; exit code 1 where one differs
    python benchmarks/tables.py --list     # name them, and where they stand

Of results/current only files are read that its index has an entry for. Where one has no entry, or
is another file than its entry says, nothing is filled.

A page marks where a table stands: `<!-- table: NAME -->`, the table, `<!-- end -->`.
"""

import sys
from pathlib import Path

import figures
import table_clock
import table_layers
import table_pretrained
import table_studies
import table_summary
import table_variational
from results_read import CURRENT
from scripts import Parser, run_script
from table_blocks import BlockError, filled, named

from pyro_meta.analysis.plots.style import write_png
from pyro_meta.errors import UsageError
from pyro_meta.folders import write_whole
from pyro_meta.results_index import faults

ROOT = Path(__file__).parents[1]
RECORD = "python benchmarks/record.py --help"
TABLES = {
    **table_summary.TABLES,
    **table_studies.TABLES,
    **table_layers.TABLES,
    **table_pretrained.TABLES,
    **table_clock.TABLES,
    **table_variational.TABLES,
}


def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted(root.glob("docs/**/*.md"))]


def differing(found: list[Path]) -> dict[Path, str]:
    """Pages whose tables are not what the JSON says, and what they should be."""
    anew = {}
    for page in found:
        text = page.read_text(encoding="utf-8")
        try:
            right = filled(text, TABLES)
        except BlockError as error:
            raise BlockError(f"{page}: {error}") from error
        if right != text:
            anew[page] = right
    return anew


def main(words: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="Compare, and write nothing.")
    parser.add_argument("--list", action="store_true", help="Name the tables and their pages.")
    options = parser.parse_args(words)
    if options.list:
        for page in pages():
            for name in sorted(named(page.read_text(encoding="utf-8"))):
                print(f"{name:22s} {page.relative_to(ROOT)}")
        return 0
    try:
        if wrong := [*faults(CURRENT)]:
            raise BlockError(f"{CURRENT}: " + "; ".join(wrong) + f"; see {RECORD}")
        anew = differing(pages())
        drawn = figures.differing(ROOT)
    except (BlockError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        for kind, found in (("a table", anew), ("the figure", drawn)):
            for path in found:
                print(
                    f"{path.relative_to(ROOT)}: {kind} is not what the JSON says", file=sys.stderr
                )
        return 1 if anew or drawn else 0
    for page, text in anew.items():
        write_whole(page, text)
        print(f"filled {page.relative_to(ROOT)}")
    for path, picture in drawn.items():
        write_png(picture, path)
        print(f"drew {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    run_script(main)
