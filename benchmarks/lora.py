"""What changes when the weights may move a little: LoRA on q and o, beside the guide.

    python benchmarks/lora.py RUN ... --documents build/texts/held_out --json FILE

Each run of a pretrained model goes on for some steps, in which adapters by PEFT (Hu et al. 2021,
arXiv 2106.09685) learn with its guide. Both are taught by what the model says without adapters when
every token attends fully. Then routes are compared at equal key visits, with the adapters. Beside
it the guide goes on for as many steps by itself. `behind_full` is against the model as it was; the
row `full` has the adapters.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from next_full import Windows, documents
from scripts import Parser, a_count, a_file_to_write, a_run, a_share, a_text, run_script

from pyro_meta.evaluation.beside import PAST, routes_beside
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.evaluation.more_full import choices_along, losses_along
from pyro_meta.inference.elbo import RouteELBO
from pyro_meta.network.protocol import Network
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.run import Run

RANK, ALPHA = 8, 16
OF_ADAPTERS, OF_GUIDE = 2e-4, 1e-3  # learning rates


def with_adapters(network: Network) -> Any:
    """The model of a pretrained network with adapters beside q and o, by PEFT."""
    import peft

    from pyro_meta.pretrained import PretrainedNetwork

    assert isinstance(network, PretrainedNetwork)
    wanted = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "o_proj"])
    return peft.get_peft_model(network.hf_model, wanted)


def gone_on(
    folder: str, windows: Windows, steps: int, budgets: list[float], adapts: bool
) -> dict[str, Any]:
    """Rows of a run whose guide has gone on, with adapters or without."""
    model, guide, _, config = Run.open(folder).load()
    network = model.network
    corpus = config.data.corpus()
    past = min(PAST, windows[0].shape[1] // 2)
    with evaluating(model, guide):
        full = choices_along(network, chosen_by_all(network, "full"), windows)
        before = losses_along(network, full, windows)[0][:, past:].mean(1)
    groups: list[dict[str, Any]] = [{"params": list(guide.parameters()), "lr": OF_GUIDE}]
    unadapted: Callable[[], AbstractContextManager[Any]] = nullcontext
    if adapts:
        adapted = with_adapters(network)
        adapters = [one for one in adapted.parameters() if one.requires_grad]
        groups.append({"params": adapters, "lr": OF_ADAPTERS})
        unadapted = adapted.disable_adapter
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    peaks = [group["lr"] for group in optimiser.param_groups]
    model.temperature, elbo = config.kl.weight, RouteELBO()
    guide.harden_below(1.0)
    for step in range(steps):
        tokens, _ = corpus.batch(config.seed, 10**6 + step, 1, config.context)
        torch.manual_seed(step)
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * (1 - step / steps)
        with torch.autocast("cpu", torch.bfloat16):
            with unadapted():
                targets = model.own_prediction(tokens)
            terms = elbo.terms(model, guide, tokens, targets)
        terms.loss.backward()
        for group in groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 10 == 9:
            print(f"{folder} step {step + 1} nll {float(terms.nll):.4f}", flush=True)
    rows = routes_beside(model, guide, windows, 1, budgets=budgets)
    for row in rows.values():
        behind = torch.tensor(row["by_sequence"]) - before
        row["behind_full"] = float(behind.mean())
    return {"full_before": before.tolist(), "rows": rows}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", type=a_run, nargs="+")
    parser.add_argument("--documents", type=a_text, required=True)
    parser.add_argument("--length", type=a_count, default=1024)
    parser.add_argument("--steps", type=a_count, default=100)
    parser.add_argument("--count", type=a_count, default=20, help="Documents, at most.")
    parser.add_argument("--budgets", type=a_share, nargs="+", default=[0.33, 0.43])
    parser.add_argument("--json", type=a_file_to_write, required=True)
    options = parser.parse_args()
    import peft  # noqa: F401 -- refused here, before hours of work

    found = measured_by(["python", "benchmarks/lora.py", *sys.argv[1:]])
    found["runs"] = {}
    for folder in options.runs:
        with pyro.validation_enabled(False):
            words = Run.open(folder).vocabulary()
            windows, names = documents(options.documents, words.encode, options.length)
            windows = (windows[0][: options.count], windows[1][: options.count])
            found["documents"] = names[: options.count]
            for way, adapts in (("guide alone", False), ("guide and adapters", True)):
                found["runs"].setdefault(Path(folder).name, {})[way] = gone_on(
                    folder, windows, options.steps, options.budgets, adapts
                )
                write_measured(options.json, found)


if __name__ == "__main__":
    run_script(main)
