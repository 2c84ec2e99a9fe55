"""Run the notebooks of the docs, each in a folder of its own: `make notebooks`.

    python docs/run_notebooks.py --write [NAME ...]

runs them and puts what came out into the files. Without --write the files stay as they are, and
what comes out has to be of the kinds that stand in them: text where there is text, a picture where
there is one. Numbers may differ from machine to machine.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
SECONDS = 600
"""What a cell may take on a busy machine before it counts as hanging."""
WARNS = "warns"
"""Tag of a cell whose warning the text speaks of."""
WARNING = re.compile(r"\w*Warning: ")


def run(path: Path, folder: Path) -> Any:
    """The notebook with what it gives in an empty folder.

    Raises
    ------
    CellExecutionError
        A cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    here = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it speaks by itself, and to nobody
        timeout=SECONDS,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | here)
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """Without what is of this machine or hour; each output in one form that shows it."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "text/html" in data:
                data.pop("image/png", None)
            if picture := data.get("image/png"):
                data["image/png"] = small(picture)
            if output.output_type == "stream":
                output.text = output.text.replace(f"{ROOT}/", "")
    return notebook


def small(picture: str) -> str:
    """A PNG in base64 as one of at most 256 colours, which is a third of its size."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "P":
        return picture
    file = io.BytesIO()
    image.convert("RGB").quantize(256).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def joined(outputs: list[Any]) -> list[Any]:
    """With what was printed piece by piece in one piece, in the order of a terminal."""
    found: list[Any] = []
    for one in outputs:
        last = found[-1] if found else None
        if last and one.output_type == last.output_type == "stream" and one.name == last.name:
            last.text += one.text
        else:
            found.append(one)
    return found


def kinds(notebook: Any) -> list[list[str]]:
    """What each cell gives, in kind."""
    return [
        sorted({f"{one.output_type} {one.get('name') or sorted(one.data)}" for one in cell.outputs})
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def complaints(notebook: Any) -> list[str]:
    """Warnings that a reader would see and the text does not speak of; those that it misses."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        said = [one.text for one in cell.outputs if "text" in one and WARNING.search(one.text)]
        if bool(said) != (WARNS in cell.metadata.get("tags", ())):
            found.append("\n".join(said) or f"no warning from: {cell.source}")
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as first_run (default: all)")
    parser.add_argument("--write", action="store_true", help="put what comes out into the files")
    options = parser.parse_args(argv)
    known = {path.stem: path for path in NOTEBOOKS}
    if unknown := set(options.names) - known.keys():
        parser.error(f"{', '.join(sorted(unknown))} given; {', '.join(known)} are allowed")
    failed = False
    for name in options.names or known:
        since = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = run(known[name], Path(folder))
        wrong = complaints(found)
        if options.write:
            nbformat.write(found, known[name])
        elif kinds(found) != kinds(nbformat.read(known[name], as_version=4)):
            wrong.append("what comes out is of other kinds than what stands in the file")
        failed |= bool(wrong)
        print(f"{name}: {time.monotonic() - since:.0f} s", *wrong, sep="\n  ")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
