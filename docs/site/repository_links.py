"""Links that lead out of docs/ work on the site, too.

Pages link to the files of the checkout by relative paths, as a forge shows them. Here each such
file gets a place on the site, under `repository/`: Markdown as a page, code and figures as a page
that shows them, pictures and HTML as they are. Of a link to a folder the words are left. A link to
what is not there stops the build.
"""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
HERE = "repository"
"""Folder of the site for what lies outside docs/."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
BLOCK = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
AS_THEY_ARE = {".png", ".svg", ".html"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
NAMED_BY_NAVIGATION = ["CONTRIBUTING.md"]
QUIET = "---\nsearch:\n  exclude: true\n---\n"
WIDEST = 300_000
"""Characters of a file that is shown whole; of longer ones the beginning."""


def on_files(files: Files, config: Any) -> Files:
    """Gives a place to every file that a page links to, and to what those pages link to."""
    waiting = list(NAMED_BY_NAVIGATION)
    for page in files.documentation_pages():
        text = page.content_string
        waiting += outside(text, f"docs/{page.src_uri}")
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        found = ROOT / path
        if path in seen or found.is_dir():
            continue
        seen.add(path)
        if not found.exists():
            raise PluginError(f"{path}: a page links to it, and it is not there")
        if found.suffix in AS_THEY_ARE:
            files.append(File.generated(config, place(path), abs_src_path=str(found)))
            continue
        files.append(File.generated(config, place(path), content=shown(found, path)))
        if found.suffix == ".md":
            waiting += outside(found.read_text(encoding="utf-8"), path)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to files of the checkout into links to their places."""
    source = in_checkout(page.file.src_uri)
    if source is None:
        return markdown
    folder = str(PurePosixPath(page.file.src_uri).parent)
    return replaced(markdown, lambda link: translated(link, source, folder))


def translated(link: re.Match[str], source: str, folder: str) -> str:
    path = target(link[3], source)
    if not path:
        return link[0]
    if (ROOT / path).is_dir():
        return link[2]
    wanted = path.removeprefix("docs/") if path.startswith("docs/") else place(path)
    return f"{link[1]}[{link[2]}]({relpath(wanted, folder)}{link[4] or ''})"


def outside(text: str, page: str) -> list[str]:
    """Paths in the checkout, outside docs/, that a page links to."""
    links = [
        link for part in BLOCK.split(text) if part[:3] != "```" for link in LINK.finditer(part)
    ]
    paths = [target(link[3], page) for link in links]
    return [path for path in paths if path and not path.startswith("docs/")]


def replaced(text: str, change: Callable[[re.Match[str]], str]) -> str:
    """The text with every link changed outside blocks of code."""
    parts = BLOCK.split(text)
    return "".join(part if part[:3] == "```" else LINK.sub(change, part) for part in parts)


def target(link: str, page: str) -> str:
    """What a link leads to, from the root of the checkout; empty where it leads elsewhere."""
    if "://" in link or link.startswith("mailto:"):
        return ""
    return normpath(str(PurePosixPath(page).parent / link))


def place(path: str) -> str:
    """Where a file of the checkout lies on the site."""
    is_itself = Path(path).suffix in {*AS_THEY_ARE, ".md"}
    return f"{HERE}/{path}" if is_itself else f"{HERE}/{path}.md"


def in_checkout(src_uri: str) -> str | None:
    """The file of the checkout that a page is made of; None of a page that shows code."""
    if not src_uri.startswith(f"{HERE}/"):
        return f"docs/{src_uri}"
    path = src_uri.removeprefix(f"{HERE}/")
    return path if (ROOT / path).exists() else None


def shown(found: Path, path: str) -> str:
    """A page of a file: Markdown as it is, everything else as a block of code."""
    text = found.read_text(encoding="utf-8")
    if found.suffix == ".md":
        return text
    if len(text) > WIDEST:
        text = f"{text[:WIDEST]}\n... ({len(text):,} characters in all)"
    language = LANGUAGES.get(found.suffix, "text")
    return f"{QUIET}# {path}\n\n````{language}\n{text}\n````\n"
