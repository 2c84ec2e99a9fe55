"""Gather the results of finished runs into one JSON file.

    python benchmarks/collect_runs.py benchmarks/results/text.json RUN [RUN ...]

Each run adds its summary.json and the options in which it differs from the defaults, as the
command line that repeats it. The first run's text also gives a unigram and a bigram model.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from pyro_meta.bench import hardware
from pyro_meta.config import read_options
from pyro_meta.evaluation import ngram_nll
from pyro_meta.run import Run


def flatten(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as `--a.b` names; a class option is its class, then its arguments."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict) and "class_path" in value:
            flat[prefix + name] = value["class_path"].rpartition(".")[2]
            flat |= flatten(value.get("init_args", {}), f"{prefix}{name}.")
        elif isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def command(run: Path) -> str:
    """The command line that repeats `run`, naming only what differs from the defaults."""
    options = yaml.safe_load((run / "config.yaml").read_text())
    classes = [f"--{name}={options[name]['class_path']}" for name in ("data", "prior", "guide")]
    defaults = flatten(yaml.safe_load(read_options(classes)[1]))
    plain = flatten(yaml.safe_load(read_options([])[1]))
    differing = {
        name: value
        for name, value in flatten(options).items()
        if (plain if name in ("data", "prior", "guide") else defaults).get(name) != value
    }
    words = [f"--{name} '{json.dumps(value)}'" if isinstance(value, list) else f"--{name} {value}"
             for name, value in differing.items()]  # fmt: skip
    return " ".join(["python -m pyro_meta.train", *words])


def main() -> None:
    target, *runs = map(Path, sys.argv[1:])
    collected = {
        run.name: {"command": command(run), **json.loads((run / "summary.json").read_text())}
        for run in runs
    }
    config = Run.open(runs[0]).config()
    corpus = config.data.corpus()
    windows = corpus.windows(config.context, config.validation_tokens)
    unigram, bigram = ngram_nll(corpus.train, windows, corpus.vocabulary.size)
    facts = {
        "command": f"python benchmarks/collect_runs.py {target} RUN...",
        "hardware": hardware(),
        "text": corpus.description,
        "unigram_nll": unigram,
        "bigram_nll": bigram,
        "runs": collected,
    }
    target.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
