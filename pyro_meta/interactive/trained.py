"""What a person does with a trained run: routes, posterior, ELBO, continuation and picture."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas
import pyro
import torch
import xarray
from torch import Tensor

from pyro_meta.analysis.arviz_versions import from_datasets
from pyro_meta.analysis.reading import require_finished
from pyro_meta.attention.profile import of_this_machine, profiled
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.generation.sampling import Sampling, continue_tokens
from pyro_meta.guides import Guide
from pyro_meta.interactive.draws import groups_of_draws
from pyro_meta.interactive.encoding import Encoded, encoded
from pyro_meta.interactive.evidence import TextELBO, elbo_of
from pyro_meta.interactive.labels import coordinates, row_names
from pyro_meta.interactive.passage import Passage
from pyro_meta.interactive.routes import executed, posterior_means
from pyro_meta.models import LanguageModel
from pyro_meta.training.config import Config
from pyro_meta.training.run import Run

OF_ROUTES = ("layer", "group", "token", "mechanism")


def load(run: str | Path, trust: bool = False, device: str | None = None) -> "TrainedRun":
    """A trained run as an object, as it was trained: weights, temperature, threshold and price.

    Parameters
    ----------
    run
        Its folder.
    trust
        Let it import classes that pyro_meta does not ship: their code is run.
    device
        Where to compute, such as "cpu" or "cuda" (default: a CUDA GPU where there is one).

    Raises
    ------
    UsageError
        It is no run, has not finished, is damaged, or names classes that are not trusted.
    """
    opened = Run.open(run, trust)
    require_finished(opened.folder)
    model, guide, vocabulary, config = opened.load()
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(place), guide.to(place)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by device
        raise UsageError(f"device: {place!r} given; {str(error).splitlines()[0]}") from error
    return TrainedRun(opened, model, guide, vocabulary, config)


class TrainedRun:
    """A trained model with its guide; `pyro_meta.load` gives one.

    Shapes: L layers, G groups of heads, N tokens, K mechanisms, S draws.

    Attributes
    ----------
    folder
        Where the run lies.
    model, guide
        In evaluation mode, as the last step of training left them.
    vocabulary
        How text becomes tokens.
    config
        The options of the run.
    """

    def __init__(
        self,
        run: Run,
        model: LanguageModel,
        guide: Guide,
        vocabulary: Vocabulary,
        config: Config,
    ) -> None:
        self._run = run
        self.folder = run.folder
        self.model, self.guide = model, guide
        self.vocabulary, self.config = vocabulary, config

    def __repr__(self) -> str:
        network = self.model.network
        of_groups = f" of {network.shape.groups} groups of heads" * (network.shape.groups > 1)
        return (
            f"TrainedRun({str(self.folder)!r}: {network.shape.layers} layers{of_groups} choose "
            f"from {', '.join(network.mechanism_names)}; {type(self.model.prior).__name__}, "
            f"{type(self.guide).__name__})"
        )

    # -- what a text does ----------------------------------------------------------------------

    def routes(self, text: str, hard: bool = False) -> xarray.DataArray:
        """Routes of every token of `text`, [layer, group, token, mechanism].

        Parameters
        ----------
        text
            Not longer than the context of the run.
        hard
            False: posterior means, along the route that the run deploys. True: what runs once each
            token is hard; one mechanism has 1, and who skips the layer has none.

        Returns
        -------
        DataArray
            Shares that sum to 1 over mechanisms; the coordinate `text` is what each token adds.
        """
        read = self._encoded(text)
        with self._asking():
            found = (executed if hard else posterior_means)(self.guide, self._placed(read.tokens))
        return xarray.DataArray(
            found.numpy(),
            coordinates(self.model.network, read.pieces),
            OF_ROUTES,
            "route",
            {"long_name": "what runs" if hard else "E_q[alpha]", "run": str(self.folder)},
        )

    def posterior(self, text: str, draws: int = 100, seed: int = 0) -> Any:
        """Draws of the routes of `text`, with prior, log likelihoods and what was observed.

        Parameters
        ----------
        text
            At least two tokens: each but the last is routed, and scored by the next one.
        draws
            S, a forward pass each.
        seed
            Of the draws.

        Returns
        -------
        InferenceData, or DataTree with ArviZ 1.x
            The groups of `pyro_meta.interactive.draws`.
        """
        read = self._encoded(text, least=2)
        self._require_draws(draws)
        x, y = self._pair(read)
        with self._asking(seed):
            groups = groups_of_draws(self.guide, x, y, read.pieces[:-1], draws, self.config.batch)
        return from_datasets(groups, {"run": str(self.folder), "seed": str(seed)})

    def elbo(self, text: str, draws: int = 100, seed: int = 0) -> TextELBO:
        """The ELBO of `text` in nats per token, at w = 1 and at the temperature of the run.

        Parameters
        ----------
        text
            At least two tokens: each but the first is scored.
        draws
            Of the routes, a forward pass each.
        seed
            Of the draws.
        """
        read = self._encoded(text, least=2)
        self._require_draws(draws)
        with self._asking(seed):
            return elbo_of(self.guide, *self._pair(read), draws)

    def generate(
        self,
        text: str,
        max_tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        seed: int = 0,
        cache: bool = True,
    ) -> str:
        """`text` and its continuation by `max_tokens` tokens, along the routes that run.

        The same as `python -m pyro_meta.generate`; `text` may be longer than the context.
        """
        sampling = Sampling(temperature, top_k, top_p, greedy)
        if max_tokens < 0:
            raise UsageError(f"max_tokens: {max_tokens} given; at least 0 is allowed")
        prompt = encoded(self.vocabulary, text, sys.maxsize).tokens.tolist()
        with self._asking(), profiled(of_this_machine(self.model.network.device)):
            new = list(
                continue_tokens(self.model, self.guide, prompt, max_tokens, sampling, seed, cache)
            )
        return "".join(self.vocabulary.streamed([*prompt, *new]))

    def plot(self, text: str) -> Passage:
        """`text` coloured by what each token runs, layer by layer; a notebook shows it."""
        read = self._encoded(text)
        with self._asking():
            tokens = self._placed(read.tokens)
            means, runs = posterior_means(self.guide, tokens), executed(self.guide, tokens)
        return Passage(
            read.pieces,
            row_names(self.model.network),
            self.model.network.mechanism_names,
            means.flatten(0, 1).numpy(),
            runs.flatten(0, 1).numpy(),
        )

    # -- what the run is -----------------------------------------------------------------------

    @property
    def history(self) -> pandas.DataFrame:
        """metrics.jsonl as a table: a row for each step; validation is NaN where none was due."""
        return pandas.DataFrame(list(self._run.metrics())).set_index("step")

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json, the results of the run."""
        found: dict[str, Any] = json.loads(self._run.summary_path.read_text(encoding="utf-8"))
        return found

    def soft(self) -> "TrainedRun":
        """The same run, read again, in which no token is hard: draws and means mix mechanisms."""
        other = load(self.folder, self._run.trusts, str(self.model.network.device))
        other.guide.harden_below(0.0)
        return other

    # -- asking --------------------------------------------------------------------------------

    def _encoded(self, text: str, least: int = 1) -> Encoded:
        """Tokens of `text`; one more than the context where the last is only a target."""
        context = self.model.network.shape.context
        return encoded(self.vocabulary, text, context + least - 1, least)

    def _pair(self, read: Encoded) -> tuple[Tensor, Tensor]:
        """Tokens and targets of a text, one shorter than it."""
        tokens = self._placed(read.tokens)
        return tokens[:-1], tokens[1:]

    def _placed(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.model.network.device)

    def _require_draws(self, draws: int) -> None:
        if draws < 1:
            raise UsageError(f"draws: {draws} given; at least 1 is allowed")

    @contextmanager
    def _asking(self, seed: int = 0) -> Iterator[None]:
        """Evaluation mode, without gradients and checks, and randomness of our own."""
        device = self.model.network.device
        devices = [device] if device.type == "cuda" else []
        with (
            evaluating(self.model, self.guide),
            pyro.validation_enabled(False),
            torch.random.fork_rng(devices),
        ):
            torch.manual_seed(seed)
            yield
