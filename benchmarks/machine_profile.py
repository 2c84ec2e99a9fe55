"""What each way of running hard routes costs on this machine: the profile that dispatch goes by.

    python benchmarks/machine_profile.py machine_profile.json --threads 1

Beside it what is used where nothing was measured, and the trials that both are judged by: how long
serving some tokens took over running their mechanism on all, and a masked call over full attention,
and what each profile foretells. Only on a machine that does nothing else.
"""

import json
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from scripts import Parser, a_count, a_file_to_write, run_script

from pyro_meta.attention import Full, profile
from pyro_meta.attention import masked_trials as masked
from pyro_meta.terminal.measured import measured_by, write_measured


def trials(profiles: dict[str, profile.Profile]) -> list[dict[str, Any]]:
    """Measured ratios, without gradients and with them, and the foretold ones by profile."""
    rows = []
    for trial in profile.trials():
        work, ratios = profile.tried(trial)
        for with_gradients, ratio in zip((False, True), ratios, strict=True):
            foretold = {
                name: one.serving(work, with_gradients) / work.everyone
                for name, one in profiles.items()
            }
            facts = trial._asdict() | {"mechanism": trial.mechanism.name}
            rows.append(facts | {"gradients": with_gradients, "measured": ratio} | foretold)
    return rows


def tried_masked(profiles: dict[str, profile.Profile]) -> list[dict[str, Any]]:
    """Likewise of masked calls, and of making their masks."""
    rows = []
    for sequences, length in masked.SIZES:
        times = masked.tried_masked(sequences, length)
        work = profile.MaskedWork.of(sequences, masked.HEADS, length, masked.WIDTH)
        full = profile.everyone(
            Full(masked.WIDTH, masked.WINDOW), sequences, masked.HEADS, length, masked.WIDTH
        )
        foretold = {
            name: {
                "mask": one.mask_macs * work.numbers / full,
                "plain": one.masking(work, False) / full,
                "traced": one.masking(work, True) / full,
            }
            for name, one in profiles.items()
        }
        facts = {"sequences": sequences, "length": length, "measured": times._asdict()}
        rows.append(facts | foretold)
    return rows


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("target", type=a_file_to_write)
    parser.add_argument("--threads", type=a_count, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    started = time.perf_counter()
    profiles = {"default": profile.DEFAULT, "this_machine": profile.measure()}
    seconds = time.perf_counter() - started
    found = {
        **measured_by(["python", "benchmarks/machine_profile.py", *sys.argv[1:]]),
        "seconds_of_measuring": seconds,
        "profiles": {name: asdict(one) for name, one in profiles.items()},
        "trials": trials(profiles),
        "masked_trials": tried_masked(profiles),
    }
    print(json.dumps(found, indent=1))
    write_measured(asked.target, found)


if __name__ == "__main__":
    run_script(main)
