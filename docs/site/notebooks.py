"""Notebooks as pages of the site, with the outputs that stand in them.

nbconvert makes Markdown of a notebook, which the site then treats as its own: links, headings,
search, light and dark. Pictures become files beside the page. HTML that an object gave, such as a
table, is put in after Markdown is done, so that it stays as it is.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import FileSystemLoader
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

HERE = Path(__file__).parent
STASHED = "<div data-output={}></div>"
KEPT: dict[str, str] = {}
"""HTML of outputs, by what stands in their places."""


class Notebook(File):
    """A notebook, which is a page."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: Any) -> Files:
    """Puts a page in the place of each notebook, its pictures and the notebook itself beside it."""
    KEPT.clear()
    exporter = MarkdownExporter(
        template_file="notebook.md.j2", extra_loaders=[FileSystemLoader(HERE)]
    )
    for found in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(found)
        folder = f"{found.src_uri.removesuffix('.ipynb')}_files"
        notebook = nbformat.reads(found.content_string, as_version=4)
        stash(notebook, found.src_uri)
        resources = {"unique_key": found.name, "output_files_dir": Path(folder).name}
        markdown, resources = exporter.from_notebook_node(notebook, resources)
        download = f"{Path(folder).name}/{Path(found.src_uri).name}"
        files.append(
            Notebook.generated(config, found.src_uri, content=introduced(markdown, download))
        )
        files.append(
            File.generated(
                config, f"{folder}/{Path(found.src_uri).name}", content=found.content_bytes
            )
        )
        for name, picture in resources["outputs"].items():
            files.append(File.generated(config, f"{folder}/{Path(name).name}", content=picture))
    return files


def stash(notebook: Any, page: str) -> None:
    """Puts the HTML of outputs away, and a mark in its place."""
    for at, cell in enumerate(notebook.cells):
        for of_cell, output in enumerate(cell.get("outputs", ())):
            if html := output.get("data", {}).get("text/html"):
                mark = STASHED.format(f"{page}-{at}-{of_cell}")
                KEPT[mark] = html
                output.data = {"text/html": mark}


def introduced(markdown: str, download: str) -> str:
    """The page with a line below its title that gives the notebook."""
    line = f"*[This page as a notebook]({download}), with outputs, to run in a checkout.*"
    return re.sub(r"\A(\s*# .*\n)", rf"\1\n{line}\n", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Puts the HTML of outputs into their places."""
    for mark, kept in KEPT.items():
        if mark in html:
            html = html.replace(mark, f'<div class="given">{kept}</div>')
    return html
