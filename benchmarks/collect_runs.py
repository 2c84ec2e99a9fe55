"""Gather the results of finished runs into one JSON file.

    python benchmarks/collect_runs.py benchmarks/results/current/momentum.json RUN [RUN ...]

Each run adds its summary.json and the options in which it differs from the defaults, as the
command line that repeats it. The first run's text also gives a unigram and a bigram model.
"""

import json
import shlex
from pathlib import Path

from scripts import Parser, a_file_to_write, a_run, run_script

from pyro_meta.evaluation.ngrams import ngram_nll
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.config import train_words
from pyro_meta.training.run import Run


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("target", type=a_file_to_write)
    parser.add_argument("runs", type=a_run, nargs="+")
    options = parser.parse_args()
    target, runs = options.target, [Path(one) for one in options.runs]
    collected = {}
    for run in runs:
        words = train_words((run / "config.yaml").read_text())
        command = shlex.join(["python", "-m", "pyro_meta.train", *words])
        collected[run.name] = {
            "command": command,
            **json.loads((run / "summary.json").read_text()),
        }
    config = Run.open(runs[0]).config()
    corpus = config.data.corpus()
    windows = corpus.windows(config.context, config.validation_tokens)
    unigram, bigram = ngram_nll(corpus.train, windows, corpus.vocabulary.size)
    figures = {
        "text": corpus.description,
        "unigram_nll": unigram,
        "bigram_nll": bigram,
        "runs": collected,
    }
    facts = measured_by(f"python benchmarks/collect_runs.py {target} RUN...")
    write_measured(target, facts | figures)


if __name__ == "__main__":
    run_script(main)
