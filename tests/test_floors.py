"""The house keeps its floors: every import leads down, into the room itself, or to its own ground.

A room is a folder of the package, or a flat file. Reading the source, so that imports inside
functions and for type checkers count like all others.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors"},
    {"own_classes"},
    {"folders"},
    {"checksums"},
    {"results_index"},
    {"distributions", "data", "terminal"},
    {"attention"},
    {"network"},
    {"models"},
    {"guides"},
    {"inference", "evaluation"},
    {"pretrained"},
    {"training", "generation"},
    {"contracts"},
    {"posterior", "speed", "study"},
    {"interactive"},
    {"train", "ablate", "report", "generate", "evaluate", "bench", "__main__"},
]
"""From the ground up. `analysis` stands beside, reached through files, and imports no torch."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
GROUND = {"errors", "own_classes", "folders", "checksums", "terminal"}
PUBLIC = {"__init__"}
"""The package itself: names alone, and no import of its own until one is asked for."""


def rooms() -> dict[str, list[Path]]:
    """Files of every room, by its name."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "pyro_meta").iterdir()):
        if path.is_dir() and not path.name.startswith("__"):
            found[path.name] = sorted(path.resolve().rglob("*.py"))
        elif path.suffix == ".py" and path.stem not in PUBLIC:
            found[path.stem] = [path]
    return found


ROOMS = rooms()


def imported(path: Path) -> Iterator[str]:
    """Rooms that a file imports from, and foreign packages by their names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "pyro_meta":
            names = [f"pyro_meta.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            is_ours = parts[0] == "pyro_meta" and len(parts) > 1
            yield parts[1] if is_ours and parts[1] in ROOMS else parts[0]


def test_every_room_has_a_floor() -> None:
    assert set(ROOMS) == set(LEVEL) | {"analysis"}


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_imports_lead_down(room: str) -> None:
    upward = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in ROOMS[room]
        for other in imported(path)
        if other in LEVEL and other != room and LEVEL[other] >= LEVEL[room]
    }
    assert not upward


def test_analysis_stands_beside_and_needs_no_torch() -> None:
    taken = {other for path in ROOMS["analysis"] for other in imported(path) if other != "analysis"}
    assert not taken & {"torch", "pyro", "lightning_fabric"}
    assert taken & set(LEVEL) <= GROUND
    readers = {room for room in LEVEL for path in ROOMS[room] if "analysis" in set(imported(path))}
    assert min(LEVEL[room] for room in readers) >= LEVEL["posterior"]
