"""How much of what full attention is worth to a token can be known before it looks.

    python benchmarks/ceiling.py RUN --documents build/texts/held_out --json FILE

Along full attention, half the squared slope of log p(y') is what it costs one token of one group of
heads to leave it (see `pyro_meta.inference.warm_start`), in nats, summed over all of them the harm
of windows everywhere to second order, without what choices do together. A small network for each
layer and group is fitted to texts of training, and judged on held-out documents: of that sum, how
much is kept if full attention goes where the network says it is worth most, at a share of the key
visits. By what the network is shown:

* `nothing`: the mean of its layer and group, as a static split has it;
* `input`: the layer's normalised input;
* `input, near`: that, and what window attention gives;
* `input, true far mass`: how much of its attention each head puts beyond the window, which nobody
  knows without looking;
* `3 labels`, `6 labels`, ...: harms by so many drawn labels, judged by as many others. Few labels
  tell a noisy harm: they are no ceiling, and what more of them keep tends to one.
"""

import sys
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from next_full import documents
from scripts import Parser, a_count, a_file_to_write, a_run, a_share, a_text, run_script
from torch import Tensor, nn

from pyro_meta.evaluation.beside import PAST
from pyro_meta.evaluation.spending import visits_at
from pyro_meta.inference.warm_start import told
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.training.run import Run

if TYPE_CHECKING:  # what needs transformers is imported where it is used
    from pyro_meta.pretrained.interface import Call
    from pyro_meta.pretrained.network import PretrainedNetwork

SHOWN = ("nothing", "input", "input, near", "input, true far mass")
HIDDEN, PASSES, ROWS, RATE, DECAY, LEAST = 48, 3, 512, 3e-3, 0.3, 0.02


class Seen:
    """Harms [R, N, L, T, G] of late tokens by R drawn labels, and what may be shown of them."""

    def __init__(self, network: "PretrainedNetwork", texts: Tensor, labels: int) -> None:
        from pyro_meta.pretrained import interface

        shape, window = network.shape, network.window_index
        N, T = texts.shape
        late = T - PAST
        sizes = (N, shape.layers, late)
        self.harms = torch.zeros(labels, *sizes, shape.groups)
        self.input = torch.zeros(*sizes, shape.width, dtype=torch.bfloat16)
        self.near = torch.zeros(*sizes, shape.heads * shape.head_width, dtype=torch.bfloat16)
        self.far = torch.zeros(*sizes, shape.heads)
        for row in range(N):
            calls: list[Call] = []
            token = interface.recorded.set(calls)
            found = [told(network, texts[row : row + 1], True) for _ in range(labels)]
            interface.recorded.reset(token)
            for label, one in enumerate(found):
                self.harms[label, row] = one.harms[:, 0, PAST:, :, window]
            first = calls[: len(network.routing.sites)]  # of the first pass
            sites = [site for site in network.routing.sites if site.layer is not None]
            for layer, features in enumerate(found[0].features):
                assert features.near is not None
                self.input[row, layer] = features.normed[0, PAST:]
                self.near[row, layer] = features.near()[0, PAST:]
                self.far[row, layer] = far_mass(first[sites[layer].index], network)[PAST:]

    def shown(self, what: str, layer: int, group: int, groups: int) -> Tensor:
        """What is shown of each token, [N T, F]."""
        read = [self.input[:, layer].float()]
        if what.endswith("near"):
            read.append(self.near[:, layer].float())
        if what.endswith("mass"):
            far = self.far[:, layer].unflatten(-1, (groups, -1))[..., group, :]
            read.append(torch.log(far.clamp(min=1e-6)))
        return torch.cat(read, -1).flatten(0, 1)


def far_mass(call: "Call", network: "PretrainedNetwork") -> Tensor:
    """How much of its attention each query head of a token puts beyond the window, [T, H]."""
    shared = call.query.shape[1] // call.key.shape[1]
    with torch.no_grad():
        key = call.key.repeat_interleave(shared, 1)
        scores = (call.query @ key.transpose(-1, -2)).float() * call.scaling
        place = torch.arange(scores.shape[-1])
        hidden = place[:, None] < place
        is_far = place[:, None] - place >= network.shape.window
        is_far = is_far & (place >= network.shape.sinks)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights * is_far).sum(-1)[0].T


def fitted(read: Tensor, harms: Tensor, test: Tensor) -> Tensor:
    """The mean harm that a network expects of `test` [M, F], fitted to harms [N] of `read`."""
    mean, scale, typical = read.mean(0), read.std(0).clamp(min=1e-3), harms.mean()
    net = nn.Sequential(nn.Linear(read.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
    for parameter in net[-1].parameters():
        nn.init.zeros_(parameter)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    steps = PASSES * (len(read) // ROWS)
    done = 0
    for _ in range(PASSES):
        for rows in torch.randperm(len(read)).split(ROWS)[: len(read) // ROWS]:
            optimiser.param_groups[0]["lr"] = RATE * (1 - done / steps)
            log = net((read[rows] - mean) / scale)[:, 0]
            loss = ((harms[rows] / typical + LEAST) * torch.exp(-log) + log).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            done += 1
    with torch.no_grad():
        return typical * net((test - mean) / scale)[:, 0].exp()


def kept(network: "PretrainedNetwork", scores: Tensor, harms: Tensor, visits: float) -> float:
    """The share of harms [N, L, T, G] that is avoided where full goes by scores like them."""
    N, L, late, G = harms.shape
    seen = visits_at(network, late + PAST)[PAST:]
    full, window = (network.mechanism_names.index(name) for name in ("full", "window"))
    base = seen[:, window].sum() / seen[:, full].sum()
    added = (seen[:, full] - seen[:, window])[:, None].expand(N, L, late, G).flatten()
    added = added / (N * L * G) / seen[:, full].sum()
    order = (scores.flatten().double() / added).argsort(descending=True)
    is_full = added[order].cumsum(0) <= visits - base
    return float(harms.flatten()[order][is_full].sum() / harms.sum())


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "run", type=a_run, help="A run of a pretrained model; its guide is not looked at."
    )
    parser.add_argument("--documents", type=a_text, required=True)
    parser.add_argument("--length", type=a_count, default=1024)
    parser.add_argument("--texts", type=a_count, default=60)
    parser.add_argument("--count", type=a_count, default=16, help="Documents, spread over all.")
    parser.add_argument("--labels", type=a_count, default=12)
    parser.add_argument("--budgets", type=a_share, nargs="+", default=[0.33, 0.43])
    parser.add_argument("--json", type=a_file_to_write, required=True)
    options = parser.parse_args()
    from pyro_meta.pretrained import PretrainedNetwork

    torch.manual_seed(0)
    found = measured_by(["python", "benchmarks/ceiling.py", *sys.argv[1:]])
    found["kept"] = {}
    with pyro.validation_enabled(False):
        model, _, words, config = Run.open(options.run).load()
        network = model.network
        assert isinstance(network, PretrainedNetwork)
        corpus = config.data.corpus()
        read = [corpus.batch(1, step, 1, options.length)[0] for step in range(options.texts)]
        windows, names = documents(options.documents, words.encode, options.length)
        chosen = np.linspace(0, len(names) - 1, options.count).round().astype(int).tolist()
        train = Seen(network, torch.cat(read), 1)
        test = Seen(network, windows[0][chosen], options.labels)
    harms, L, G = test.harms.mean(0), network.shape.layers, network.shape.groups
    found["harm_per_token"] = float(harms.sum((1, 3)).mean())
    for what in SHOWN:
        scores = torch.zeros_like(harms)
        for layer in range(L):
            for group in range(G):
                known = train.harms[0, :, layer, :, group].flatten()
                if what == "nothing":
                    scores[:, layer, :, group] = known.mean()
                    continue
                ours, theirs = (one.shown(what, layer, group, G) for one in (train, test))
                said = fitted(ours, known, theirs)
                scores[:, layer, :, group] = said.view(options.count, -1)
        found["kept"][what] = {
            f"{visits:g}": kept(network, scores, harms, visits) for visits in options.budgets
        }
        print(what, found["kept"][what], flush=True)
        write_measured(options.json, found)
    half = options.labels // 2
    other = test.harms[half:].mean(0)
    for labels in sorted({max(1, half // 4), max(1, half // 2), half}):
        one = test.harms[:labels].mean(0)
        found["kept"][f"{labels} labels"] = {
            f"{visits:g}": kept(network, one, other, visits) for visits in options.budgets
        }
        print(f"{labels} labels", found["kept"][f"{labels} labels"])
    write_measured(options.json, found)


if __name__ == "__main__":
    run_script(main)
