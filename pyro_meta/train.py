"""`python -m pyro_meta.train`: train a routed language model and leave a run."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.markup import escape

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import INTERRUPTED, answer, is_first_process, run_command
from pyro_meta.terminal.progress import over_training
from pyro_meta.training.settings import DEFAULT_CLASSES, train_parser

if TYPE_CHECKING:  # what needs PyTorch is imported once there is something to train
    from pyro_meta.guides import Guide
    from pyro_meta.models import LanguageModel
    from pyro_meta.training.config import Config


def main(argv: list[str]) -> int:
    """Train as the options say; 0 when done, 130 when interrupted and saved."""
    answer(train_parser(), argv, DEFAULT_CLASSES)
    import pyro
    import torch

    from pyro_meta.attention.profile import of_this_machine, profiled, require_known_profile
    from pyro_meta.evaluation.causality import require_causal, require_causal_guide
    from pyro_meta.network.transformer import Transformer
    from pyro_meta.posterior.closing import close, count
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
        controllers.require_reachable()
    require_known_profile()  # all that may be refused is, before there is a folder
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
        out.print(_describe_model(config, model, guide, count(model), count(guide)), soft_wrap=True)
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
                close(config, corpus, run, fabric, model, guide, controllers, outcome, out)
        fabric.barrier()
    return 0


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


def _describe_model(
    config: "Config", model: "LanguageModel", guide: "Guide", parameters: int, of_router: int
) -> str:
    share = of_router / (parameters + of_router)
    return (
        f"model: {parameters:,} parameters, router {of_router:,} ({share:.1%}); "
        f"{config.layers} layers choose from {', '.join(model.network.mechanism_names)}; "
        f"{type(model.prior).__name__}, {type(guide).__name__}, "
        f"{_describe_gates(guide)}final KL weight {config.kl.weight}"
    )


def _describe_gates(guide: "Guide") -> str:
    return "" if guide.depth is None else f"depth gates by {type(guide.depth).__name__}, "


if __name__ == "__main__":
    run_command(main)
