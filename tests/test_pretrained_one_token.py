"""The choices of single tokens of a model of transformers, by key-value head."""

import pytest
from pretrained_models import NearGuide, guide_of, text, tiny, wrapped

from pyro_meta import CategoricalGuide, Decision, Features, Guide
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import along_means, walk
from pyro_meta.posterior.one_token import Effort, effort_for, try_all
from pyro_meta.posterior.token_figures import figures


@pytest.mark.parametrize("kind", [CategoricalGuide, NearGuide])
def test_choices_of_key_value_heads_against_whole_forward_passes(kind: type[Guide]) -> None:
    network = wrapped(tiny("Llama"), groups="kv")
    guide = guide_of(network, kind)
    guide.harden_below(1.0)
    tokens, targets = text(2, 19), text(2, 19, seed=1)
    with evaluating(guide.model, guide):
        found = try_all(guide, (tokens, targets), Effort(2, 3, 1, 100))
        assert found is not None and found.whole is not None
        assert found.log_likelihood.shape == (6, 6, len(network.mechanisms))
        row, site = 5, 3  # the second head of the second layer
        t, layer, group = int(found.position[row]), *divmod(site, 2)
        walked = walk(guide.model, guide, tokens[1:], along_means())
        deployed = [one.route for one in walked.decisions]

        def of(choices: dict[tuple[int, int], int]) -> tuple[float, float]:
            told = 0.0

            def route(at: int, features: Features) -> Decision:
                nonlocal told
                chosen = deployed[at].clone()
                q = guide.routes(at, features).mean[0, t].log()
                for (where, head), k in choices.items():
                    if where == at:
                        chosen[0, t, head] = k
                        told += float(q[head, k])
                return Decision(chosen)

            log_p = network(tokens[1:], route)[0].log_softmax(-1)
            return float(log_p[t:].gather(-1, targets[1, t:, None]).sum()), told

        for k in range(len(network.mechanisms)):
            assert found.log_likelihood[row, site, k] == pytest.approx(
                of({(layer, group): k})[0], abs=1e-3
            )
        whole = found.whole
        t = int(found.position[whole.token[1]])
        for pattern in (0, 5, len(whole.choices) - 1):
            choices = whole.choices[pattern].tolist()
            likelihood, told = of({divmod(at, 2): k for at, k in enumerate(choices)})
            assert whole.log_likelihood[1, pattern] == pytest.approx(likelihood, abs=1e-3)
            assert whole.log_guide[1, pattern] == pytest.approx(told, abs=1e-3)
    assert len(figures(found, 0.1)["by_site"]) == 6


def test_a_large_model_is_asked_less() -> None:
    """SmolLM2-135M: 90 groups of heads, 16 tokens, and no more MACs than are allowed."""

    class Sizes:
        shape = type("Shape", (), {"layers": 30, "groups": 3})
        mechanisms = (0, 1)

        def dense_macs(self) -> float:
            return 134e6

    found = effort_for(Sizes(), 512)  # type: ignore[arg-type]
    assert (found.texts * found.places, found.whole_places) == (16, 0)
    assert 8 <= found.horizon <= 16
