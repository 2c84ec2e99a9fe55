"""The figures of one run in the exhibit: of its summary, its report, and bounds on the evidence."""

import contextlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyro_meta.report
from pyro_meta import checksums
from pyro_meta.analysis.json_values import plain
from pyro_meta.folders import write_whole
from pyro_meta.inference.elbo import RouteELBO
from pyro_meta.own_classes import said
from pyro_meta.posterior.bounds import DRAWS, GRADIENTS, bounds, gradient_noise
from pyro_meta.training.run import Run

Figures = dict[str, float | None]
"""By the names of `COLUMNS`, and beside them `gradient_variance`."""
TEXTS = 4
"""Validation sequences that bounds and gradients are taken of: the first."""


@dataclass(frozen=True)
class Column:
    """A figure of the table."""

    head: str
    digits: int
    is_better: str
    """`lower`, `higher`, or nothing where neither is."""
    means: str


COLUMNS = {
    "loss_hard": Column("loss, hard", 4, "lower", "validation loss along hard routes"),
    "loss_soft": Column("loss, soft", 4, "lower", "the same along posterior means"),
    "answers": Column("answers", 3, "higher", "share of planted look-ups answered, hard"),
    "cost": Column("cost", 3, "lower", "MACs of attention along hard routes; full is 1"),
    "kl": Column("KL", 3, "", "KL(q || p) of the routes, summed over layers"),
    "information": Column(
        "information", 3, "higher",
        "the part of the KL that tells tokens apart: mutual information of token and choice, "
        "summed over layers; of weights, of the choices alone that they make",
    ),
    "objective": Column(
        "objective", 4, "lower", "E[-log p(y | alpha)] + w KL(q || p), with the price of compute"
    ),
    "elbo": Column("ELBO", 3, "higher", "the same at w = 1, its sign turned"),
    "iwae": Column(f"IWAE-{DRAWS}", 3, "higher", "of whole texts (Burda et al. 2016)"),
    "efficiency": Column(
        "ESS", 3, "higher",
        "effective share of the guide's draws under the exact posterior of single tokens, median",
    ),
    "gap": Column(
        "gap", 4, "lower", "objective above that of the best guide of the study under this prior"
    ),
    "calibration": Column("calibration", 3, "lower", "expected calibration error of predictions"),
    "noise": Column(
        "gradient noise", 3, "lower",
        "variance of the guide's gradient over draws, as a share of its mean square",
    ),
    "seconds": Column("s a step", 2, "lower", "training, with other runs at the same time"),
}  # fmt: skip
"""What the table shows, in order. Losses, KL, information, bounds and gap in nats per token."""


def figures_of(folder: Path, kept: Path, draws: int = DRAWS, gradients: int = GRADIENTS) -> Figures:
    """The figures of a finished run; its report is written where it has none.

    Parameters
    ----------
    folder
        The run.
    kept
        The file in which they are kept, and read again as long as the run is the same.
    draws, gradients
        Draws of the bounds, and of the gradient.

    Raises
    ------
    UsageError
        The run is damaged, or cannot be reported.
    """
    same = {"run": checksums.sha256(folder / checksums.NAME), "draws": [draws, gradients]}
    if kept.is_file() and (before := json.loads(kept.read_text())).get("of") == same:
        return before["figures"]
    summary = json.loads((folder / "summary.json").read_text())
    report = _reported(folder)
    found = _of_summary(summary, Run.open(folder).config().steps)
    found |= _of_report(report) | _of_bounds(folder, draws, gradients)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, json.dumps(plain({"of": same, "figures": found}), indent=2) + "\n")
    return found


def _of_summary(summary: Mapping[str, Any], steps: int) -> Figures:
    return {
        "loss_hard": summary["val_nll_hard"],
        "loss_soft": summary["val_nll_soft"],
        "answers": summary.get("truth", {}).get("answer_accuracy_hard"),
        "cost": summary["cost_macs_hard"],
        "kl": summary["kl_per_token"],
        "information": summary["routing_information"] * len(summary["load_by_layer"]),
        "seconds": summary["seconds"] / steps,
    }


def _reported(folder: Path) -> dict[str, Any]:
    """The report.json of a run, made unless it is there."""
    path = folder / "report" / "report.json"
    if not path.is_file():
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            pyro_meta.report.main([str(folder)])
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _of_report(report: Mapping[str, Any]) -> Figures:
    single = report.get("one_token") or {}
    return {
        "efficiency": single.get("efficiency_median"),
        "calibration": report["use"]["calibration"]["deployed route"]["error"],
    }


def _of_bounds(folder: Path, draws: int, gradients: int) -> Figures:
    model, guide, _, config = Run.open(folder).load()
    corpus = config.data.corpus()
    windows = corpus.windows(config.context, config.validation_tokens)
    tokens, targets = (part[:TEXTS] for part in windows)
    w = config.kl.weight
    torch.manual_seed(config.seed)
    found = bounds(model, guide, tokens, targets, draws)
    elbo = RouteELBO(second_order=config.optim.second_order)
    noise = gradient_noise(model, guide, tokens, targets, w, gradients, elbo)
    return {
        "objective": float(found.objective(w).mean()),
        "elbo": None if found.elbo is None else float(found.elbo.mean()),
        "iwae": None if found.iwae is None else float(found.iwae.mean()),
        "noise": None if noise is None else noise.noise,
        "gradient_variance": None if noise is None else noise.variance,
    }


def looked_at(task: tuple[Path, Path, int]) -> tuple[Figures, str]:
    """`figures_of` in a process of its own, on so many threads; what went wrong, in one line."""
    folder, kept, threads = task
    torch.set_num_threads(threads)
    try:
        return figures_of(folder, kept), ""
    except Exception as error:  # of one run; the others are looked at all the same
        return {}, f"{folder.name}: {said(error)}"


def threads_for(workers: int) -> int:
    """Threads of each of so many processes."""
    if given := os.environ.get("OMP_NUM_THREADS"):
        return int(given)
    return max(1, (os.cpu_count() or 1) // workers)
