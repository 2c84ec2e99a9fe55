"""`python -m pyro_meta.train`: train a routed language model and leave a run."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.markup import escape

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import INTERRUPTED, answer, is_first_process, run_command
from pyro_meta.terminal.progress import over_training
from pyro_meta.terminal.tables import closing_table
from pyro_meta.training.settings import DEFAULT_CLASSES, train_parser

if TYPE_CHECKING:  # what needs PyTorch is imported once there is something to train
    from lightning_fabric import Fabric
    from torch import nn

    from pyro_meta.data.corpus import Corpus
    from pyro_meta.guides import Guide
    from pyro_meta.inference.controllers import Controllers
    from pyro_meta.models import LanguageModel
    from pyro_meta.training.config import Config
    from pyro_meta.training.loop import Outcome
    from pyro_meta.training.run import Run

SAMPLE_PROMPT, SAMPLE_TOKENS = 48, 200


def main(argv: list[str]) -> int:
    """Train as the options say; 0 when done, 130 when interrupted and saved."""
    answer(train_parser(), argv, DEFAULT_CLASSES)
    import pyro
    import torch

    from pyro_meta.attention.profile import of_this_machine, profiled
    from pyro_meta.evaluation.causality import require_causal, require_causal_guide
    from pyro_meta.network.transformer import Transformer
    from pyro_meta.training.config import read_options
    from pyro_meta.training.loop import Interrupted, make_fabric, train
    from pyro_meta.training.run import Run

    resumed = _resumed_run(argv)
    if resumed is None:
        config, config_yaml = read_options(argv)
    else:
        config = Run.open(resumed).config()
    fabric = make_fabric(config)
    out = Console(quiet=not is_first_process())
    progress_out = Console(stderr=True, quiet=not is_first_process())
    with progress_out.status("preparing the text"):
        corpus = config.data.corpus()
    corpus.require(config.context)
    torch.manual_seed(config.seed)
    model, guide = config.build(corpus.vocabulary.size, corpus.vocabulary.separators)
    require_causal(cast(Transformer, model.network))
    require_causal_guide(model, guide)
    controllers = config.controllers(model, guide)
    if resumed is None:
        controllers.require_reachable()  # before there is a folder
    with ExitStack() as held:
        folder = ""
        if is_first_process():
            if resumed is None:
                run = Run.create(config.out, config_yaml, corpus)
            else:
                run = Run.open(resumed)
            held.enter_context(run.locked())
            folder = str(run.folder)
        fabric.launch()
        run = Run(Path(fabric.broadcast(folder)))
        out.print(f"text: {escape(corpus.description)}", soft_wrap=True)
        out.print(_describe_model(config, model, guide), soft_wrap=True)
        out.print(f"run: {escape(str(run.folder))}", soft_wrap=True)
        held.enter_context(profiled(of_this_machine(fabric.device)))
        done = 0 if resumed is None else sum(1 for _ in run.metrics())
        try:
            with over_training(config.steps, done, progress_out) as watch:
                is_resumed = resumed is not None
                outcome = train(
                    config, corpus, run, fabric, model, guide, controllers, watch, is_resumed
                )
        except Interrupted as stop:
            resume = f"-m pyro_meta.train --resume {run.folder}"
            launcher = "python" if config.devices == fabric.world_size else "torchrun ..."
            out.print(
                f"interrupted and saved after step {stop.step}; go on with "
                f"{escape(f'{launcher} {resume}')}",
                soft_wrap=True,
            )
            return INTERRUPTED
        if fabric.is_global_zero:
            eager = torch.compiler.set_stance("force_eager")  # lengths vary from here on
            with eager, pyro.validation_enabled(config.debug):
                _close(config, corpus, run, fabric, model, guide, controllers, outcome, out)
        fabric.barrier()
    return 0


def _close(
    config: "Config",
    corpus: "Corpus",
    run: "Run",
    fabric: "Fabric",
    model: "LanguageModel",
    guide: "Guide",
    controllers: "Controllers",
    outcome: "Outcome",
    out: Console,
) -> None:
    """Evaluate the trained model, write its results and show them."""
    from pyro_meta.data.corpus import identity
    from pyro_meta.evaluation.causality import prefix_gap
    from pyro_meta.evaluation.executed import as_trained, executed_figures
    from pyro_meta.evaluation.figures import SequenceLosses, evaluate
    from pyro_meta.evaluation.known_truth import score_against_truth
    from pyro_meta.evaluation.ngrams import ngram_nll
    from pyro_meta.generation.sampling import Sampling, continue_tokens
    from pyro_meta.posterior.readout import write_posterior
    from pyro_meta.terminal.machine import versions

    windows = corpus.windows(config.context, config.validation_tokens)
    with out.status("evaluating"):
        losses = SequenceLosses()
        figures = evaluate(model, guide, windows, config.batch, losses)
        truth = corpus.truth(config.context, config.validation_tokens)
        if truth is not None:
            scores = score_against_truth(model, guide, windows, truth, config.batch)
        ngrams = ngram_nll(corpus.train, windows, corpus.vocabulary.size)
        device = model.network.device
        T = config.context
        ends = sorted({1, 2, T // 4, T // 2, T - 1} - {0})
        gap = prefix_gap(model, guide, windows[0][:2].to(device), ends)
    with out.status("timing hard routes"), as_trained(config.precision, device):
        executed = executed_figures(model, guide, windows, config.batch)
    summary: dict[str, Any] = figures | {
        "tokens_seen": outcome.tokens_seen,
        "seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens_seen / outcome.seconds,
        "parameters": _count(model) + _count(guide),
        "router_parameters": _count(guide),
        "device": _device_name(fabric),
        "seed": config.seed,
        "versions": versions(),
    }
    if learned := controllers.figures():
        summary["prior"] = learned
    if truth is not None:
        summary["truth"] = scores
    summary["executed"] = executed
    circumstances = {
        "corpus": corpus.sha256,
        "context": config.context,
        "count": len(losses.hard),
        "windows": identity(windows),
    }
    run.write_sequences(circumstances | vars(losses))
    run.write_summary(summary)
    with out.status("drawing from the posterior"):
        write_posterior(
            run.posterior_path, model, guide, windows, corpus.vocabulary, config.batch,
            config.seed, config.kl.weight,
        )  # fmt: skip
    closing_table(summary, ngrams, gap, out)
    prompt = windows[0][0, :SAMPLE_PROMPT].tolist()
    new = continue_tokens(model, guide, prompt, SAMPLE_TOKENS, Sampling(), config.seed)
    out.print("sample:", style="bold")
    begun, continued = (_printable(corpus.vocabulary.decode(part)) for part in (prompt, new))
    out.print(f"[dim]{escape(begun)}[/dim]{escape(continued)}", soft_wrap=True)
    out.print(
        f"\nread the posterior: python -m pyro_meta.report {escape(str(run.folder))}",
        soft_wrap=True,
    )


def _printable(text: str) -> str:
    """Text whose control characters cannot disturb a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _resumed_run(argv: list[str]) -> str | None:
    """The run that `--resume` names; it takes every other option from the run itself."""
    if not any(word == "--resume" or word.startswith("--resume=") for word in argv):
        return None
    words = argv[0].split("=", 1) if len(argv) == 1 else argv
    if len(words) != 2 or words[0] != "--resume" or not words[1]:
        raise UsageError(
            "option --resume: it takes a run and no other option; the rest is in its config.yaml"
        )
    return words[1]


def _describe_model(config: "Config", model: "LanguageModel", guide: "Guide") -> str:
    share = _count(guide) / (_count(model) + _count(guide))
    return (
        f"model: {_count(model):,} parameters, router {_count(guide):,} ({share:.1%}); "
        f"{config.layers} layers choose from {', '.join(model.network.mechanism_names)}; "
        f"{type(model.prior).__name__}, {type(guide).__name__}, "
        f"{_describe_gates(guide)}final KL weight {config.kl.weight}"
    )


def _describe_gates(guide: "Guide") -> str:
    return "" if guide.depth is None else f"depth gates by {type(guide.depth).__name__}, "


def _count(module: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _device_name(fabric: "Fabric") -> str:
    import torch

    if fabric.device.type == "cuda":
        return torch.cuda.get_device_name(fabric.device)
    return f"{fabric.device.type}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    run_command(main)
