"""Pages of the docs as text, be they Markdown or notebooks."""

import json
from pathlib import Path


def text_of(page: Path) -> str:
    """A page as Markdown: of a notebook the cells, those of code in blocks, without outputs."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join(map(_shown, json.loads(text)["cells"]))


def _shown(cell: dict) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    first = source.partition("\n")[0]
    is_python = not first.startswith(("%%bash", "%%writefile loads"))
    body = source.partition("\n")[2] if first.startswith("%%") else source
    return f"```{'python' if is_python else ''}\n{body}\n```"
