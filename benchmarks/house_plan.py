"""The plan of the house in figures, of two checkouts: rooms, floors, arrows, lines, start-up.

    python benchmarks/house_plan.py OUT.json BEFORE AFTER

A room is a folder of the package or a flat file, `models`, `guides` and `analysis` among them. A
room stands a floor above all that it imports; rooms that import each other are a circle, and share
a floor. Counted from the source: imports inside functions and for type checkers are arrows, too.
Start-up is CPU seconds, user and system, of whole commands, the least of three; each checkout has
its environment in .venv.
"""

import ast
import json
import re
import resource
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts import Parser, a_file_to_write, a_folder, run_script

from pyro_meta.folders import write_whole
from pyro_meta.terminal.machine import hardware, versions

BESIDE = ("models", "guides", "analysis")
COMMANDS = {
    "typo in an option": ["pyro_meta.train", "--stepz", "3"],
    "train --help": ["pyro_meta.train", "--help"],
    "report, typo": ["pyro_meta.report", "--beleif"],
    "bench --help": ["pyro_meta.bench", "--help"],
    "a study listed": [
        "pyro_meta.ablate", "benchmarks/studies/planted.yaml", "--dry_run=true", "--out=/nowhere/x",
    ],
}  # fmt: skip
OF_GATES = re.compile(r"gate|depth|skipped|passed_by|\bruns\b")


def sources(checkout: Path) -> dict[str, list[Path]]:
    """The source files of every room."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted((checkout / "pyro_meta").iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("__"):
            rooms[path.name] = sorted(path.rglob("*.py"))
        elif path.suffix == ".py" and path.stem != "__init__":
            rooms[path.stem] = [path]
    return rooms | {name: sorted((checkout / name).rglob("*.py")) for name in BESIDE}


def arrows(rooms: dict[str, list[Path]]) -> set[tuple[str, str]]:
    """Which room imports which."""
    return {
        (room, other)
        for room, files in rooms.items()
        for file in files
        for other in _imported(file)
        if other in rooms and other != room
    }


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "pyro_meta":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("pyro_meta."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            yield from (name[1] for name in names if name[0] == "pyro_meta" and len(name) > 1)


def reached(start: str, drawn: set[tuple[str, str]]) -> set[str]:
    """All rooms below one."""
    found: set[str] = set()
    left = [start]
    while left:
        here = left.pop()
        new = {other for room, other in drawn if room == here} - found
        found |= new
        left += new
    return found


def plan(checkout: Path) -> dict[str, Any]:
    """Rooms, floors, arrows and circles."""
    rooms = sources(checkout)
    drawn = arrows(rooms)
    below = {room: reached(room, drawn) for room in rooms}
    circles = {frozenset({a} | {b for b in below[a] if a in below[b]}) for a in rooms}
    circles = {circle for circle in circles if len(circle) > 1}
    floor = dict.fromkeys(rooms, 1)
    for _ in rooms:
        for room, other in drawn:
            if room not in below[other]:
                floor[room] = max(floor[room], floor[other] + 1)
    return {
        "rooms": len(rooms),
        "floors": max(floor.values()),
        "arrows": len(drawn),
        "circles": [sorted(circle) for circle in circles],
        **_counted([file for files in rooms.values() for file in files]),
    }


def _counted(files: list[Path]) -> dict[str, Any]:
    """Lines, nested route closures, forks on None for gates, and modules named alike."""
    closures = forks = lines = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        tree = ast.parse(text)
        outer = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inner = {id(x): x for one in outer for x in ast.walk(one) if x is not one}
        closures += sum(
            isinstance(x, ast.FunctionDef) and [a.arg for a in x.args.args] == ["layer", "features"]
            for x in inner.values()
        )
        forks += sum(
            isinstance(x, ast.Compare)
            and isinstance(x.ops[0], ast.Is | ast.IsNot)
            and ast.unparse(x.comparators[0]) == "None"
            and bool(OF_GATES.search(ast.unparse(x.left)))
            for x in ast.walk(tree)
        )
    names = Counter(file.stem for file in files if not file.stem.startswith("__"))
    return {
        "lines": lines,
        "files": len(files),
        "nested_route_closures": closures,
        "forks_on_none_for_gates": forks,
        "modules_named_alike": {name: count for name, count in names.items() if count > 1},
    }


def start_up(checkout: Path) -> dict[str, float]:
    """CPU seconds of each of `COMMANDS`."""
    python = checkout.resolve() / ".venv" / "bin" / "python"
    found = {}
    for name, words in COMMANDS.items():
        seconds = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([python, "-m", *words], cwd=checkout, capture_output=True, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            seconds.append(round(spent, 3))
        found[name] = min(seconds)
    return found


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("out", type=a_file_to_write)
    parser.add_argument("before", type=a_folder)
    parser.add_argument("after", type=a_folder)
    asked = parser.parse_args()
    whole: dict[str, Any] = {
        "command": f"{shlex.join(['python', 'benchmarks/house_plan.py'])} OUT.json BEFORE AFTER",
        "hardware": hardware(),
        "versions": versions(),
    }
    for name, checkout in (("before", asked.before), ("after", asked.after)):
        words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        figures = plan(checkout) | {"cpu_seconds": start_up(checkout)}
        whole[name] = {"commit": done.stdout.strip()} | figures
        print(name, json.dumps(whole[name]), file=sys.stderr)
    write_whole(asked.out, json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
