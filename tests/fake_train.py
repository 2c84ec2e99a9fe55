"""Stands for `pyro_meta.train` in tests of studies: writes what a run leaves, in no time.

    python -m fake_train FOLDER CONFIG_YAML

The loss is a function of the options, and metrics that are damaged are refused. FAKE_FAIL names a
part of the folders that fail. FAKE_HOLD names a pipe: after its first step a run writes its process
id there, and waits for SIGTERM, at which it saves and ends, or for SIGUSR1, at which it goes on.
FAKE_HANG names a part of the folders that hang there: at SIGTERM they write 0 to the pipe and stay,
as does a process that each has launched.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from pyro_meta import checksums

FULL, SEQUENCES = 1.0, 8
COST = {"full": FULL, "window": 0.4, "linear": 0.2}


def wait(pipe: str) -> int:
    """Say in `pipe` who waits; returns the signal that comes."""
    awaited = (signal.SIGTERM, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    with open(pipe, "w") as out:
        out.write(f"{os.getpid()}\n")
    return signal.sigwait(awaited)


def hang(pipe: str) -> None:
    """Say in `pipe` who hangs, and do so; say 0 there when asked to stop."""

    def say(number: int) -> None:
        with open(pipe, "w") as out:
            out.write(f"{number}\n")

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is launched inherits it
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    signal.signal(signal.SIGTERM, lambda *_: say(0))
    say(os.getpid())
    while True:
        signal.pause()


def main(folder: Path, config_yaml: str) -> int:
    options = yaml.safe_load(config_yaml)
    if os.environ.get("FAKE_FAIL", "nothing") in folder.name:
        print("error: option --steps: it does not like that", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml)
    log = folder / "metrics.jsonl"
    try:
        done = len([json.loads(line) for line in log.open()]) if log.exists() else 0
    except ValueError:
        print(f"error: {log} is damaged", file=sys.stderr)
        return 2
    with open(folder / "starts", "a") as starts:
        starts.write(f"{done}\n")
    hold = os.environ.get("FAKE_HOLD")
    for step in range(done + 1, options["steps"] + 1):
        with open(log, "a") as out:
            out.write(json.dumps({"step": step, "loss": 5 / step}) + "\n")
        if hold and step == 1 and os.environ.get("FAKE_HANG", "nothing") in folder.name:
            hang(hold)
        if hold and step == 1 and wait(hold) == signal.SIGTERM:
            print("saved")
            return 130
    names = options["mechanisms"]
    loads = (options["guide"].get("init_args") or {}).get("loads")
    shares = loads or [[1 / len(names)] * len(names)] * options["layers"]
    cost = sum(COST[name] * share for name, share in zip(names, shares[0], strict=True))
    loss = 2.0 - 0.3 * cost + 0.01 * options["seed"] + options["kl"]["weight"]
    loss += options["context"] / 100
    soft = loss - options["kl"]["weight"] / 2
    by_routes = {
        routes: [mean + 0.001 * i for i in range(SEQUENCES)]
        for routes, mean in (("hard", loss), ("soft", soft))
    }
    text = f"text of {options['context']}"
    sequences = {"windows": text, "count": SEQUENCES} | by_routes
    (folder / "sequences.json").write_text(json.dumps(sequences))
    summary = {
        "val_nll_soft": soft, "val_nll_hard": loss, "cost_macs_hard": cost,
        "cost_nominal_hard": cost, "load": dict(zip(names, shares[0], strict=True)),
        "load_by_layer": [dict(zip(names, row, strict=True)) for row in shares],
        "executed": {"macs_per_token_model": 2e5 * (1.5 - cost)},  # the other way round
        "seed": options["seed"], "truth": {"answer_accuracy_hard": 0.5}, "device": "none",
        "commit": "ab"[options["seed"]] * 40 if options["seed"] < 2 else None,
        "finished": f"2026-01-{options['seed'] + 1:02d}",
    }  # fmt: skip
    (folder / "vocabulary.json").write_text("{}")
    (folder / "posterior.nc").write_bytes(b"no real one")
    text = json.dumps(summary)
    checksums.seal(folder, {"summary.json": text.encode()})
    (folder / "summary.json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
