"""The site builds strictly, and its pages ask for nothing outside themselves."""

import json
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
ROOT = Path(__file__).parents[1]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
UNLOADED = {"canonical", "next", "prev", "edit"}
"""Relations of a <link> that a browser does not fetch."""


COLOUR = re.compile(r"\x1b\[[\d;]*m")
TAG = re.compile(r"<[^>]*>")
QUIET = {"NO_MKDOCS_2_WARNING": "1"}


class Page(HTMLParser):
    """What a page loads, leads to, and can be led to."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if place := found.get("id"):
            self.places.add(place)
        if tag == "a" and (link := found.get("href")):
            self.links.append(link)
        if tag in LOADED and (path := found.get(LOADED[tag])) and found.get("rel") not in UNLOADED:
            self.loads.append(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the site. Who asks for network while it is built meets a proxy of nobody."""
    out = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, **dict.fromkeys(("http_proxy", "https_proxy"), nowhere), **QUIET},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {}
    for path in out.rglob("*.html"):
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        pages[path] = page
    return pages


def test_no_page_asks_for_anything_outside(site: dict[Path, Page]) -> None:
    loads = {path for page in site.values() for path in page.loads}
    outside = {
        path for path in loads if urlsplit(path).scheme not in ("", "data") or path.startswith("//")
    }  # a data URL is inside
    assert loads and not outside


def test_no_style_asks_for_anything_outside(site: dict[Path, Page]) -> None:
    (top,) = {path.parent for path in site if path.name == "404.html"}
    styles = list(top.rglob("*.css"))
    assert styles
    for style in styles:
        text = re.sub(r"/\*.*?\*/", "", style.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", text), style


def test_every_link_inside_leads_somewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        if path.name == "404.html":
            continue
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in site and parts.fragment != "__skip":
                assert unquote(parts.fragment) in site[target].places, f"{path.name}: {link}"


def test_a_notebook_is_a_page_with_its_outputs(site: dict[Path, Page]) -> None:
    notebooks = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        (path,) = (one for one in site if one.name == f"{notebook.stem}.html" and is_tutorial(one))
        page, files = path.read_text(encoding="utf-8"), path.parent / f"{notebook.stem}_files"
        assert (files / notebook.name).read_bytes() == notebook.read_bytes()
        assert f"{files.name}/{notebook.name}" in site[path].links
        pictures = 0
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                data = output.get("data", {})
                if "text/html" in data:
                    assert "".join(data["text/html"]) in page, "as the object gave it"
                elif "image/png" in data:
                    pictures += 1
                    assert f'alt="{cell["metadata"]["alt"]}"' in page
                else:
                    said = "".join(output.get("text") or data["text/plain"])
                    line = COLOUR.sub("", said).strip().splitlines()[0]
                    assert line in unescape(TAG.sub("", page))
        assert len(list(files.glob("*.png"))) == pictures
        assert "data-output" not in page


def is_tutorial(page: Path) -> bool:
    return page.parent.name == "tutorials"


def test_every_public_name_is_in_the_reference(site: dict[Path, Page]) -> None:
    import pyro_meta

    (api,) = (page for path, page in site.items() if path.name == "api.html")
    shown = {place.rpartition(".")[2] for place in api.places}
    assert set(pyro_meta.__all__) - {"train"} <= shown  # which is the command, called
