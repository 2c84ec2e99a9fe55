"""`python -m pyro_meta.train`: train a routed language model and leave a run.

The module can be called, too. It trains as the command does, and gives the run:

    run = pyro_meta.train(steps=200, prior="CostDirichlet", kl={"weight": 0.1}, out="runs/mine")
    run.routes("a text")

Its options are those of the command. `python -m pyro_meta.train --help` lists them, and
`help(pyro_meta.train.__call__)` says how they are written in Python.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from pyro_meta import checksums
from pyro_meta.errors import UsageError
from pyro_meta.own_classes import own_classes_named
from pyro_meta.terminal.commands import INTERRUPTED, USAGE_ERROR, answer, run_command
from pyro_meta.terminal.consoles import busy, console
from pyro_meta.terminal.launchers import is_first_process, place
from pyro_meta.terminal.progress import over_training
from pyro_meta.terminal.signals import Stopped, stoppable
from pyro_meta.terminal.streams import keep_going
from pyro_meta.terminal.trust import as_opened, needs_trust
from pyro_meta.training.checkpoint_files import latest, read_state
from pyro_meta.training.request import Request, read_request
from pyro_meta.training.settings import DEFAULT_CLASSES, train_parser

if TYPE_CHECKING:  # what needs PyTorch is imported once there is something to train
    import torch

    from pyro_meta.data import Corpus
    from pyro_meta.guides import Guide
    from pyro_meta.inference.controllers import Controllers
    from pyro_meta.interactive import TrainedRun
    from pyro_meta.models import LanguageModel
    from pyro_meta.training.config import Config
    from pyro_meta.training.run import Origin, Run


def main(argv: list[str]) -> int:
    """Train as the options say; 0 when done, 130 when interrupted and saved."""
    answer(train_parser(), argv, DEFAULT_CLASSES)
    is_first = is_first_process()
    out = console(quiet=not is_first)
    try:
        request = read_request(argv)
        if _is_done(request, out):
            return 0
        with keep_going(), stoppable():
            return _train(request, out)
    except Exception:
        if is_first:
            raise
        return USAGE_ERROR  # the first process says why


def _is_done(request: Request, out: Console) -> bool:
    """Whether the run is finished and whole, and nothing more is asked of it; says so."""
    if request.resumed is None or request.steps is not None:
        return False
    folder = Path(request.resumed)
    if not (folder / "summary.json").is_file():
        return False
    if (checkpoint := latest(folder / "checkpoint")) is not None:
        read_state(checkpoint)  # refused where it is damaged: nobody could make results from it
    if damage := checksums.damage(folder):
        out.print(f"{escape(str(folder))} is not whole: {escape(damage)}", soft_wrap=True)
        return False
    name, opened = escape(str(folder)), escape(as_opened(folder))
    longer = f"train it longer with --resume {opened} --steps N, or "
    out.print(
        f"{name} is finished; {longer if checkpoint else 'it has no checkpoint any more; '}read it "
        f"with python -m pyro_meta.report {opened}",
        soft_wrap=True,
    )
    return True


def _train(request: Request, out: Console) -> int:
    """Train, and close the run; what may be refused is, before there is a folder."""
    import pyro
    import torch

    from pyro_meta.attention.profile import of_this_machine, profiled, require_known_profile
    from pyro_meta.contracts.admission import require_sound
    from pyro_meta.data.preparing import telling
    from pyro_meta.data.soundness import sound_corpus
    from pyro_meta.posterior.closing import close, count
    from pyro_meta.training.devices import launch, make_fabric, shares_model
    from pyro_meta.training.loggers import logging_to, make_logger, require_logger
    from pyro_meta.training.loop import Interrupted, begun_with, train
    from pyro_meta.training.run import Run, require_new
    from pyro_meta.training.together import told_by_first

    def say(line: str) -> None:
        out.print(escape(line), soft_wrap=True)

    if request.logger is not None:
        require_logger(request.logger)
    opened, config, config_yaml = _options(request, say)
    begun = None
    if opened is not None and opened.latest_checkpoint() is not None:
        begun = begun_with(config, opened.state())
    fabric = make_fabric(config, begun)
    if opened is None and place().launcher != "pyro-meta":  # whose first process may have made it
        require_new(config.out)
    progress_out = console(stderr=True, quiet=out.quiet)
    with (
        busy(progress_out, "preparing the text") as tell,
        telling(tell),
        own_classes_named(),
    ):
        corpus = sound_corpus(
            config.data, config.context, config.batch, config.validation_tokens, config.seed
        )
    torch.manual_seed(config.seed)
    model, guide = config.build(corpus.vocabulary.size, corpus.vocabulary.separators)
    require_sound(model, guide)
    origin, has_begun = _begun_from(request, opened, corpus, model, guide, say)
    controllers = config.controllers(model, guide)
    if opened is None:
        controllers.require_reachable()
    require_known_profile()
    run: Run | None = None
    try:
        with ExitStack() as held:
            launch(fabric)

            def hold() -> str:
                run = opened or Run.create(config.out, config_yaml, corpus, origin)
                held.enter_context(run.locked())
                return str(run.folder)

            run = Run(Path(told_by_first(hold)), trusts=True)
            say(f"text: {corpus.description}")
            say(_describe_model(config, model, guide, count(model), count(guide)))
            say(f"run: {run.folder}")
            held.enter_context(profiled(of_this_machine(fabric.device)))
            logger = None
            if request.logger is not None and fabric.is_global_zero:
                logger = make_logger(request.logger, run.folder)
            with (
                over_training(config.steps, _saved_step(run), progress_out) as shown,
                logging_to(logger, shown) as watch,
            ):
                outcome = train(
                    config, corpus, run, fabric, model, guide, controllers, watch,
                    opened is not None, has_begun, config_yaml, say,
                )  # fmt: skip
            if fabric.is_global_zero:
                if shares_model(fabric):
                    model, guide, controllers = _whole(
                        config, corpus, run, fabric.device, model, guide
                    )
                eager = torch.compiler.set_stance("force_eager")  # lengths vary from here on
                with eager, pyro.validation_enabled(config.debug):
                    close(config, corpus, run, fabric, model, guide, controllers, outcome, out)
    except (Interrupted, Stopped) as stop:
        if run is None:
            raise
        launcher = "python" if place().launcher in ("python", "pyro-meta") else "torchrun ..."
        saved = stop.step if isinstance(stop, Interrupted) else _saved_step(run)
        say(
            f"interrupted and saved after step {saved}; go on with {launcher} -m pyro_meta.train "
            f"--resume {as_opened(run.folder)}"
        )
        return INTERRUPTED
    return 0


def _options(request: Request, say: Callable[[str], None]) -> "tuple[Run | None, Config, str]":
    """The run to go on with, if any; the options to train by, and the YAML that repeats them."""
    from pyro_meta.training.config import read_options, with_numbers
    from pyro_meta.training.run import Run

    if request.resumed is None:
        words = request.options
        if request.begun_from is not None:
            source = Run.open(request.begun_from, request.trusts)
            source.config_yaml()  # refused unless it may be imported from
            words = [f"--config={source.config_path}", *words]
        return None, *read_options(words)
    run = Run.open(request.resumed, request.trusts)
    config, config_yaml = run.config(), run.config_yaml()
    done, planned = 0, config.steps
    if run.latest_checkpoint() is not None:
        state = run.state()
        done, planned = state["step"], run.planned_steps(state)
    if request.steps is not None:
        if request.steps < done:
            raise UsageError(
                f"option --steps: {request.steps} given; {run.folder} has trained {done} steps, "
                "and more are allowed"
            )
    if request.steps is not None or request.devices is not None:
        config, config_yaml = with_numbers(config, config_yaml, request.steps, request.devices)
    if config.steps > planned:
        say(
            f"steps: {config.steps}, and were {planned}: from step {done} on, schedules are those "
            f"of a run of {config.steps} steps"
        )
    return run, config, config_yaml


def _begun_from(
    request: Request,
    resumed: "Run | None",
    corpus: "Corpus",
    model: "LanguageModel",
    guide: "Guide",
    say: Callable[[str], None],
) -> "tuple[Origin | None, bool]":
    """Give a model that has not begun the weights of another run.

    Returns
    -------
    Origin or None, bool
        Where they are from, and whether those of the guide are among them.
    """
    from pyro_meta.training.run import Run

    if resumed is None:
        if request.begun_from is None:
            return None, False
        source, known = Run.open(request.begun_from, request.trusts), None
    else:
        known = resumed.origin()
        if known is None or resumed.latest_checkpoint() is not None:
            return known, False
        source = Run.open(known.run, request.trusts)
    origin, anew = source.lend(model, guide, corpus.vocabulary)
    if known is not None and origin != known:
        raise UsageError(
            f"{source.folder} has other weights than those that {known} began with; begin a new "
            "run with --from"
        )
    fresh = f"; begun anew: {', '.join(anew)}" if anew else ""
    say(f"from: {source.folder} after step {origin.step}{fresh}")
    has_begun = type(guide).__name__ not in anew
    warm = [word for word in request.options if word.startswith("--warm")]
    if has_begun and warm:
        raise UsageError(
            f"option {warm[0]}: given beside --from, whose {type(guide).__name__} has begun; "
            "without it, or another guide, is allowed"
        )
    return origin, has_begun


def _whole(
    config: "Config", corpus: "Corpus", run: "Run", device: "torch.device", shared: "LanguageModel",
    guide_of_shared: "Guide",
) -> "tuple[LanguageModel, Guide, Controllers]":  # fmt: skip
    """What several processes have trained together, once more, whole, from its checkpoint.

    On the device, if that has room for it.
    """
    from pyro_meta.training.devices import has_room

    model, guide = config.build(corpus.vocabulary.size, corpus.vocabulary.separators)
    controllers = config.controllers(model, guide)
    run.load_checkpoint({"model": model, "guide": guide, "controllers": controllers})
    model.temperature, guide.is_resting = shared.temperature, guide_of_shared.is_resting
    place = device if has_room(device, model) else "cpu"
    return model.to(place), guide.to(place), controllers


def _saved_step(run: "Run") -> int:
    return 0 if run.latest_checkpoint() is None else run.state()["step"]


def _describe_model(
    config: "Config", model: "LanguageModel", guide: "Guide", parameters: int, of_router: int
) -> str:
    share, network = of_router / (parameters + of_router), model.network
    gates = "" if guide.depth is None else f"depth gates by {type(guide.depth).__name__}, "
    return (
        f"model: {parameters:,} parameters, router {of_router:,} ({share:.1%}); "
        f"{network.shape.layers} layers choose from {', '.join(network.mechanism_names)}; "
        f"{type(model.prior).__name__}, {type(guide).__name__}, "
        f"{gates}final KL weight {config.kl.weight}"
    )


class _Callable(ModuleType):
    """The module as a function: `pyro_meta.train(...)`."""

    def __call__(self, **options: Any) -> "TrainedRun":
        """Train as `python -m pyro_meta.train` does, and give the run.

        Parameters
        ----------
        options
            Those of the command line: `steps=200`, `kl__weight=0.1` or `kl={"weight": 0.1}` for
            `--kl.weight 0.1`, `prior="CostDirichlet"` or the class itself, `prior__rate=3.0`,
            `resume="runs/mine"`, `from_="runs/mine"`. None is the default.

        Raises
        ------
        UsageError
            What the command says in one line.
        KeyboardInterrupt
            Training was asked to stop, and has saved.
        """
        from pyro_meta.interactive import load
        from pyro_meta.interactive.words import words_of
        from pyro_meta.training.run import fresh_folder

        if (options.get("devices") or 1) != 1:
            raise UsageError(
                f"devices: {options['devices']} given, and several processes are begun by "
                "`python -m pyro_meta.train`; 1 is allowed from Python"
            )
        folder = options.get("resume") or options.get("out") or fresh_folder()
        if not options.get("resume"):
            options["out"] = folder
        if main(words_of(options)) == INTERRUPTED:
            trust = ", trust=True" * needs_trust(Path(folder))
            raise KeyboardInterrupt(
                f"saved; go on with pyro_meta.train(resume={str(folder)!r}{trust})"
            )
        return load(folder, bool(options.get("trust", not options.get("resume"))))


if __name__ == "__main__":
    run_command(main)
else:
    sys.modules[__name__].__class__ = _Callable
