"""Draw docs/mechanisms.svg: what each token of a short text reads, by mechanism.

    python docs/draw_mechanisms.py

Rows are tokens that ask, columns tokens that are read. Reach and chunks are those that the
mechanisms themselves use.
"""

from pathlib import Path

import torch

from pyro_meta.attention import Chunk, ChunkSentence, ChunkSliding
from pyro_meta.attention.chunks.attention import reach_of_all

T, WINDOW, SIZE = 24, 6, 4
CELL, GAP, TOP = 8, 28, 24
ALONE, SUMMED, STATE, EMPTY = "#3465a4", "#f0a04b", "#9bbf85", "#f1f1f1"
ENDS = (5, 9, 17)  # tokens that end a sentence

Cell = tuple[int, int, int, str]
"""Row, first column, columns, colour."""


def alone(row: int, first: int) -> list[Cell]:
    """Tokens that a row reads one by one."""
    return [(row, column, 1, ALONE) for column in range(first, row + 1)]


def of_chunks(mechanism: Chunk) -> list[Cell]:
    """What every row reads of chunks and of tokens."""
    is_end = torch.zeros(1, 1, T, 1, dtype=torch.bool)
    is_end[0, 0, list(ENDS)] = True
    starts = mechanism.starts(torch.zeros(1, 1, T, 8), is_end)
    finished, lowest = reach_of_all(starts, torch.arange(T), mechanism.recent)
    cells = []
    for row in range(T):
        for first, end in zip(starts[0, : finished[0, row]], starts[0, 1:], strict=False):
            cells.append((row, int(first), int(end - first), SUMMED))
        cells += alone(row, int(lowest[0, row]))
    return cells


def panels() -> dict[str, list[Cell]]:
    sizes = {"head_width": 8, "window": WINDOW, "chunk": SIZE}
    return {
        "full": [cell for row in range(T) for cell in alone(row, 0)],
        f"window, W = {WINDOW}": [
            cell for row in range(T) for cell in alone(row, max(0, row + 1 - WINDOW))
        ],
        "linear": [(row, 0, row + 1, STATE) for row in range(T)],
        f"chunk, C = {SIZE}": of_chunks(Chunk(**sizes)),
        f"chunk_sliding, C = {SIZE}": of_chunks(ChunkSliding(**sizes)),
        f"chunk_sentence, C = {SIZE}": of_chunks(ChunkSentence(**sizes)),
    }


def drawn(name: str, cells: list[Cell], x: int, y: int) -> list[str]:
    """One panel, its upper left corner at (x, y)."""
    side = T * CELL
    lines = [
        f'<g transform="translate({x} {y})">',
        f'<text x="0" y="-7">{name}</text>',
        f'<rect width="{side}" height="{side}" fill="{EMPTY}"/>',
    ]
    for row, column, columns, colour in cells:
        place = f'x="{column * CELL + 0.5}" y="{row * CELL + 0.5}"'
        size = f'width="{columns * CELL - 1}" height="{CELL - 1}"'
        lines.append(f'<rect {place} {size} rx="1" fill="{colour}"/>')
    return [*lines, "</g>"]


def svg() -> str:
    side = T * CELL
    width, height = 3 * side + 4 * GAP, 2 * (side + TOP) + 2 * GAP + TOP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, (name, cells) in enumerate(panels().items()):
        across, down = index % 3, index // 3
        lines += drawn(name, cells, GAP + across * (side + GAP), TOP + down * (side + TOP + GAP))
    key = ((ALONE, "read by itself"), (SUMMED, "read as one summary"), (STATE, "read as a state"))
    for index, (colour, label) in enumerate(key):
        x, y = GAP + index * (side + GAP), height - TOP
        lines.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        lines.append(f'<text x="{x + 16}" y="{y + 9}">{label}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("mechanisms.svg").write_text(svg(), encoding="utf-8")
