"""`python -m pyro_meta.generate RUN --prompt "..."`: continue a text with a trained model."""

import sys
import warnings
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from pyro_meta.errors import UsageError
from pyro_meta.generation.options import SamplingOptions
from pyro_meta.terminal.commands import TRUST_HELP, answer, command_parser, parse, run_command

if TYPE_CHECKING:
    from pyro_meta.data.vocabulary import Vocabulary


def main(argv: list[str]) -> None:
    """Print the prompt and its continuation, and nothing else, on standard output."""
    parser = _parser()
    answer(parser, argv)
    options = parse(parser, argv)
    if options.max_tokens < 0:
        raise UsageError(f"option --max_tokens: {options.max_tokens} given; at least 0 is allowed")
    if not 0 <= options.seed < 1 << 63:
        raise UsageError(f"option --seed: {options.seed} given; 0 to 2**63 - 1 are allowed")
    _continue(options, _text(options.prompt, options.prompt_file))


def _parser() -> ArgumentParser:
    parser = command_parser("generate", "Continue a text with a trained model.")
    parser.add_argument("run", metavar="RUN", type=str, help="Folder of a run.")
    parser.add_argument("--prompt", type=str, help="Text to continue (default: no text).")
    parser.add_argument("--prompt_file", type=Path | None, help="UTF-8 file to continue instead.")
    parser.add_argument("--max_tokens", type=int, default=200, help="Tokens to add.")
    parser.add_class_arguments(SamplingOptions)
    parser.add_argument(
        "--cache",
        type=bool,
        default=True,
        help="Keep what was read, instead of reading it again for every token: faster, and the "
        "text is the same.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draws.")
    parser.add_argument("--trust", type=bool, default=False, help=TRUST_HELP)
    return parser


def _continue(options: Namespace, text: str | None) -> None:
    import pyro  # what needs PyTorch comes once the words are understood
    import torch

    from pyro_meta.attention.profile import of_this_machine, profiled
    from pyro_meta.generation.sampling import Sampling, continue_tokens
    from pyro_meta.training.run import Run

    sampling = Sampling(**{field.name: options[field.name] for field in fields(Sampling)})
    with pyro.validation_enabled(False):
        model, guide, vocabulary, _ = Run.open(options.run, options.trust).load()
        if torch.cuda.is_available():
            model.cuda(), guide.cuda()
        name = "prompt" if options.prompt_file is None else "prompt_file"
        prompt = _prompt(text, f"option --{name}", vocabulary)
        new = continue_tokens(
            model, guide, prompt, options.max_tokens, sampling, options.seed, options.cache
        )
        with profiled(of_this_machine(model.network.device)):
            for piece in vocabulary.streamed(chain(prompt, new)):
                _show(piece)
    _show("\n")


def _text(prompt: str | None, file: Path | None) -> str | None:
    """The text to continue, if one was given."""
    if file is None:
        return prompt
    if prompt is not None:
        raise UsageError("option --prompt_file: give it or --prompt, not both")
    from pyro_meta.data.files import read_text

    return read_text(file, "option --prompt_file")


def _prompt(text: str | None, name: str, vocabulary: "Vocabulary") -> list[int]:
    """Tokens to continue; without a text, a line end if the vocabulary has one, else any token."""
    from pyro_meta.data.loss import loss

    try:
        tokens = vocabulary.encode("\n" if text is None else text).tolist()
        lost = "" if text is None else loss(vocabulary, text).said()
    except UsageError as error:
        if text is None:
            return [0]
        raise UsageError(f"{name}: {error}") from error
    if not tokens and text is None:
        return [0]
    if not tokens:
        why = "nothing of it is in the vocabulary" if text else "it is empty"
        raise UsageError(f"{name}: {why}; at least one token is needed")
    if lost:
        warnings.warn(f"{name}: {lost}", stacklevel=2)
    return tokens


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
