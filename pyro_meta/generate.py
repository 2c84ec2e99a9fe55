"""`python -m pyro_meta.generate RUN --prompt "..."`: continue a text with a trained model."""

import codecs
import sys
from dataclasses import fields

import torch

from pyro_meta.console import command_parser, parse, run_command
from pyro_meta.errors import UsageError
from pyro_meta.run import Run
from pyro_meta.sampling import Sampling, continue_tokens
from pyro_meta.vocabulary import ByteVocabulary, Vocabulary


def main(argv: list[str]) -> None:
    """Print the prompt and its continuation, and nothing else, on standard output."""
    parser = command_parser("generate", "Continue a text with a trained model.")
    parser.add_argument("run", metavar="RUN", type=str, help="Folder of a run.")
    parser.add_argument("--prompt", type=str | None, help="Text to continue (default: none).")
    parser.add_argument("--max_tokens", type=int, default=200, help="Tokens to add.")
    parser.add_class_arguments(Sampling)
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draws.")
    options = parse(parser, argv)
    if options.max_tokens < 0:
        raise UsageError(f"option --max_tokens: {options.max_tokens} given; at least 0 is allowed")
    if not 0 <= options.seed < 1 << 63:
        raise UsageError(f"option --seed: {options.seed} given; 0 to 2**63 - 1 are allowed")
    sampling = Sampling(**{field.name: options[field.name] for field in fields(Sampling)})
    model, guide, vocabulary, _ = Run.open(options.run).load()
    if torch.cuda.is_available():
        model.cuda(), guide.cuda()
    prompt = _prompt(options.prompt, vocabulary)
    new = continue_tokens(model, guide, prompt, options.max_tokens, sampling, options.seed)
    if isinstance(vocabulary, ByteVocabulary):  # as they come; a character may span several
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        _show(decoder.decode(bytes(prompt)))
        for token in new:
            _show(decoder.decode(bytes([token])))
        _show(decoder.decode(b"", final=True))
    else:
        _show(vocabulary.decode([*prompt, *new]))
    _show("\n")


def _prompt(text: str | None, vocabulary: Vocabulary) -> list[int]:
    """Tokens to continue; without a text, a line end if the vocabulary has one, else any token."""
    try:
        return vocabulary.encode("\n" if text is None else text).tolist()
    except UsageError as error:
        if text is None:
            return [0]
        raise UsageError(f"option --prompt: {error}") from error


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
