"""What a run leaves at its end: its figures, its posterior, and a sample of its text."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.markup import escape
from torch import nn

from pyro_meta.data.corpus import Corpus, identity
from pyro_meta.evaluation.beside import routes_beside
from pyro_meta.evaluation.causality import prefix_gap
from pyro_meta.evaluation.executed import as_trained, executed_figures
from pyro_meta.evaluation.figures import SequenceLosses, evaluate
from pyro_meta.evaluation.known_truth import score_against_truth
from pyro_meta.evaluation.ngrams import ngram_nll
from pyro_meta.evaluation.spending import measured_spending
from pyro_meta.generation.sampling import Sampling, continue_tokens
from pyro_meta.guides import Guide
from pyro_meta.inference.controllers import BudgetController, Controllers
from pyro_meta.models import LanguageModel
from pyro_meta.posterior.budget import budget_figures, missed
from pyro_meta.posterior.readout import Source, write_posterior
from pyro_meta.terminal.checkout import commit
from pyro_meta.terminal.consoles import busy
from pyro_meta.terminal.machine import versions
from pyro_meta.terminal.tables import closing_table
from pyro_meta.terminal.trust import as_opened
from pyro_meta.training.config import Config
from pyro_meta.training.loop import Outcome
from pyro_meta.training.run import Run

SAMPLE_PROMPT, SAMPLE_TOKENS = 48, 200


def close(
    config: Config,
    corpus: Corpus,
    run: Run,
    fabric: Fabric,
    model: LanguageModel,
    guide: Guide,
    controllers: Controllers,
    outcome: Outcome,
    out: Console,
) -> None:
    """Evaluate the trained model, write its results and show them."""
    windows = corpus.windows(config.context, config.validation_tokens)
    with busy(out, "evaluating"):
        losses = SequenceLosses()
        figures = evaluate(model, guide, windows, config.batch, losses)
        truth = corpus.truth(config.context, config.validation_tokens)
        if truth is not None:
            scores = score_against_truth(model, guide, windows, truth, config.batch)
        is_frozen = not any(one.requires_grad for one in model.network.parameters())
        if is_frozen:
            beside = routes_beside(model, guide, windows, config.batch, config.seed)
            if not guide.is_mixture:
                guide.spending = measured_spending(model, guide, windows, config.batch)
        ngrams = ngram_nll(corpus.train, windows, corpus.vocabulary.size)
        device = model.network.device
        T = config.context
        ends = sorted({1, 2, T // 4, T // 2, T - 1} - {0})
        gap = prefix_gap(model, guide, windows[0][:2].to(device), ends)
    with busy(out, "timing hard routes"), as_trained(config.precision, device):
        executed = executed_figures(model, guide, windows, config.batch)
    summary: dict[str, Any] = figures | {
        "tokens_seen": outcome.tokens_seen,
        "seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens_seen / outcome.seconds,
        "parameters": count(model) + count(guide),
        "router_parameters": count(guide),
        "device": _device_name(fabric),
        "seed": config.seed,
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }
    if learned := controllers.figures():
        summary["prior"] = learned
    budgeted = next((one for one in controllers if isinstance(one, BudgetController)), None)
    if budgeted is not None:
        summary["budget"] = budget_figures(budgeted, figures, is_frozen)
    if truth is not None:
        summary["truth"] = scores
    summary["executed"] = executed
    if is_frozen:
        summary["beside"] = beside
    if guide.spending is not None:
        summary["spending"] = asdict(guide.spending)
    circumstances = {
        "corpus": corpus.sha256,
        "context": config.context,
        "count": len(losses.hard),
        "windows": identity(windows),
    }
    run.write_sequences(circumstances | vars(losses))
    with busy(out, "drawing from the posterior"):
        write_posterior(
            run.posterior_path, model, guide, windows, corpus.vocabulary, config.batch,
            config.seed, config.kl.weight, config.readout, Source.of(run, corpus),
        )  # fmt: skip
    run.write_summary(summary)  # the last of all: it says that the others are there
    closing_table(summary, ngrams, gap, out)
    if budgeted is not None:
        line = missed(summary["budget"], config.steps, config.tighten.end)
        if line is not None:
            out.print(line, markup=False, soft_wrap=True)
    prompt = windows[0][0, :SAMPLE_PROMPT].tolist()
    new = continue_tokens(model, guide, prompt, SAMPLE_TOKENS, Sampling(), config.seed)
    out.print("sample:", style="bold")
    begun, continued = (_printable(corpus.vocabulary.decode(part)) for part in (prompt, new))
    out.print(f"[dim]{escape(begun)}[/dim]{escape(continued)}", soft_wrap=True)
    out.print(
        f"\nread the posterior: python -m pyro_meta.report {escape(as_opened(run.folder))}",
        soft_wrap=True,
    )


def _printable(text: str) -> str:
    """Text whose control characters cannot disturb a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _device_name(fabric: Fabric) -> str:
    if fabric.device.type == "cuda":
        return torch.cuda.get_device_name(fabric.device)
    return f"{fabric.device.type}, {torch.get_num_threads()} threads"
