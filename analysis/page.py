"""The report as one HTML file that needs nothing else: no network, no library, no folder.

Everything that comes from a run is escaped by the template; the page's own policy forbids it to
load anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.plots import Picture
from pyro_meta.analysis.plots.routes import strength
from pyro_meta.analysis.plots.style import PALETTE
from pyro_meta.analysis.visible import SIGNS, visible

PASSAGE_TOKENS = 420
LINE_END = SIGNS["\n"]
SECTIONS = {
    "routes": "Where tokens go",
    "uncertainty": "How sure the router is",
    "depth": "Depth: which layers tokens skip",
    "training": "How it came about",
    "collapse": "Does every layer route?",
    "belief": "Is it the posterior?",
    "use": "What is the uncertainty good for?",
    "appendix": "Appendix: importance weights of blocks",
}


@dataclass(frozen=True)
class Drawn:
    """A picture on the page."""

    picture: Picture
    source: str
    """Data URI."""
    says: str


@dataclass(frozen=True)
class Token:
    """A token of the passage, in one layer."""

    text: str
    choice: int
    strength: float
    details: str
    """Posterior means in per cent and the concentration, for the hover."""
    runs: bool
    """Whether it runs the layer, and does not skip it."""


def passage(findings: Findings) -> list[tuple[str, list[Token]]]:
    """The first tokens of the validation text, for every layer (and group), with its name."""
    run = findings.reading
    shown = slice(min(PASSAGE_TOKENS, len(run.text)))
    texts = [visible(piece).replace(LINE_END, f"{LINE_END}\n") for piece in run.text[shown]]
    strong, choice = strength(run, shown), run.choice[:, shown]
    choice = np.where(choice < 0, run.means[:, shown].argmax(-1), choice)
    layers = []
    for layer in run.rows:
        means = (100 * run.means[layer, shown]).round().astype(int)
        tokens = [
            Token(
                text, int(choice[layer, t]), round(100 * float(strong[layer, t])),
                _details(means[t], float(run.concentration[layer, t])),
                bool(run.runs[layer, t]),
            )
            for t, text in enumerate(texts)
        ]  # fmt: skip
        layers.append((run.layer_names[layer], tokens))
    return layers


def _details(percent: Sequence[int], concentration: float) -> str:
    total = "" if np.isnan(concentration) else f"{concentration:.3g}"
    return f"{','.join(map(str, percent))};{total}"


def environment(*folders: Path) -> Environment:
    """Templates of the package, and of other folders: everything in them is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader("pyro_meta.analysis"), FileSystemLoader(folders)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(
    findings: Findings,
    drawn: Sequence[Drawn],
    executed: Sequence[tuple[str, str]] = (),
    comparison: Mapping[str, Any] | None = None,
) -> str:
    """The page of one run.

    Parameters
    ----------
    findings
        Its diagnostics.
    drawn
        Its pictures.
    executed
        Names and values of what hard routes cost.
    comparison
        Of several runs: `names`, `rows` (side by side), `pairs`, `missing` and `drawn`.
    """
    by_section: dict[str, list[Drawn]] = {section: [] for section in SECTIONS}
    for one in drawn:
        by_section[one.picture.section].append(one)
    return (
        environment()
        .get_template("report.html")
        .render(
            findings=findings,
            run=findings.reading,
            judgements=findings.judgements(),
            by_section=by_section,
            sections={
                name: SECTIONS[name]
                for name in by_section
                if name not in ("depth", "appendix") or by_section[name]
            },
            passage=passage(findings),
            palette=[PALETTE[k % len(PALETTE)] for k in range(len(findings.reading.mechanisms))],
            groups=findings.by_group(),
            uncertain=findings.uncertain_tokens(),
            diversity=findings.reading.diversity(),
            averaging=findings.averaging(),
            single=findings.belief.get("one_token"),
            objective=findings.belief.get("objective"),
            executed=executed,
            comparison=comparison,
            visible=lambda text: visible(text, spaces=True),
        )
    )
