"""The running state of a text that is read on: formed when it is asked for, and never wrong."""

import pytest
import torch
from conftest import GUIDES, build, text
from test_attention import rms_ratio
from torch import Tensor

from pyro_meta import Decision, Features, Guide, Linear, Shape, Transformer
from pyro_meta.attention import running_state
from pyro_meta.attention.running_state import RunningState


class Counted(Linear):
    """Linear attention that counts how often a state is formed of texts, and of how many tokens."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.formed: list[int] = []
        self.fails = False

    def state_of(
        self, k: Tensor, v: Tensor, past: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        if self.fails:
            raise RuntimeError("interrupted")
        if is_token is None or is_token.any():
            self.formed.append(k.shape[2])
        return super().state_of(k, v, past, is_token)


def news(tokens: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    k, v = torch.randn(2, rows, 1, tokens, 4, dtype=torch.float64)
    return k, v


def read(state: RunningState, k: Tensor, v: Tensor, is_token: Tensor | None = None) -> None:
    state.take(k, v, is_token)
    state.commit()


def test_it_is_that_of_all_tokens_and_formed_once_for_many() -> None:
    torch.manual_seed(0)
    mechanism = Counted()
    state = RunningState(mechanism)
    k, v = news(20)
    for place in range(20):
        read(state, k[:, :, place : place + 1], v[:, :, place : place + 1])
    assert mechanism.formed == []
    torch.testing.assert_close(state.now(), mechanism.state_of(k, v, None, None))
    assert mechanism.formed == [20, 20]
    assert state.now() is state.now()


def test_no_more_than_some_tokens_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_state, "MOST_WAITING", 4)
    mechanism = Counted()
    state = RunningState(mechanism)
    k, v = news(12)
    for place in range(12):
        read(state, k[:, :, place : place + 1], v[:, :, place : place + 1])
    assert mechanism.formed == [5, 5]
    torch.testing.assert_close(state.now(), Linear(4, 1).state_of(k, v, None, None))


def test_padding_counts_for_nothing() -> None:
    """Pieces with and without it, and rows that have read nothing yet."""
    k, v = news(5)
    state = RunningState(Counted())
    is_token = torch.tensor([[True, True], [False, False]])
    read(state, k[:, :, :2], v[:, :, :2], is_token)
    read(state, k[:, :, 2:3], v[:, :, 2:3])
    read(state, k[:, :, 3:], v[:, :, 3:], torch.tensor([[True, False], [True, True]]))
    found = state.now()
    assert found is not None
    for row, places in enumerate(([0, 1, 2, 3], [2, 3, 4])):
        one = [x[row : row + 1, :, places] for x in (k, v)]
        torch.testing.assert_close(found[row : row + 1], Linear(4, 1).state_of(*one, None, None))


def test_what_is_interrupted_leaves_the_text_as_it_was() -> None:
    mechanism = Counted()
    state = RunningState(mechanism)
    k, v = news(3)
    read(state, k[:, :, :2], v[:, :, :2])
    state.take(k[:, :, 2:], v[:, :, 2:], None)  # and never committed
    mechanism.fails = True
    with pytest.raises(RuntimeError, match="interrupted"):
        state.now()
    mechanism.fails = False
    torch.testing.assert_close(
        state.now(), mechanism.state_of(k[:, :, :2], v[:, :, :2], None, None)
    )
    read(state, k[:, :, 2:], v[:, :, 2:])
    torch.testing.assert_close(state.now(), mechanism.state_of(k, v, None, None))


def test_a_row_takes_another_text() -> None:
    """From whoever has one, whether it was formed yet or not."""
    k, v = news(4, rows=3)
    other = RunningState(Counted())
    read(other, k[:1], v[:1])
    of_first = Linear(4, 1).state_of(k[:1], v[:1], None, None)
    for begun in (False, True):
        state = RunningState(Counted())
        if begun:
            read(state, k, v)
        state.replace([1], other, 3)
        found = state.now()
        assert found is not None
        torch.testing.assert_close(found[1:2], of_first)
        if begun:
            torch.testing.assert_close(found[2:], Linear(4, 1).state_of(k[2:], v[2:], None, None))
        else:
            assert not found[[0, 2]].any()
    empty = RunningState(Counted())
    state.replace([1], empty, 3)
    found = state.now()
    assert found is not None and not found[1].any()


def test_a_token_that_chose_another_mechanism_forms_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that asks gets what a pass over the whole text gives."""
    torch.manual_seed(0)
    network = Transformer(Shape(vocabulary=11, width=16, layers=2, heads=2, window=3))
    tokens = torch.randint(11, (1, 30))
    choice = torch.zeros(1, 30, dtype=torch.long)
    choice[0, 8::3], choice[0, 20], choice[0, 29] = 1, 2, 2

    def route(layer: int, features: Features) -> Decision:
        return Decision(choice[:, features.positions])

    formed: list[int] = []
    state_of = Linear.state_of

    def counted(
        self: Linear, k: Tensor, v: Tensor, past: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        if is_token is None:
            formed.append(k.shape[2])
        return state_of(self, k, v, past, is_token)

    monkeypatch.setattr(Linear, "state_of", counted)
    cache = network.new_cache(1, keeps_features=False)
    with torch.no_grad():
        expected = network(tokens, route)
        found = [network(tokens[:, place, None], route, cache) for place in range(30)]
    assert rms_ratio(torch.cat(found, 1), expected) < 1e-5
    assert formed == [20, 20, 9, 9]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("guide", GUIDES)
def test_what_a_new_token_runs_is_decided_as_its_posterior_says(
    guide: type[Guide], groups: int
) -> None:
    """Where a guide says it in fewer steps, too."""
    model, built = build(guide=guide, groups=groups)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    model.execution.price.fill_(0.4)
    tokens, _ = text()
    decided: list[tuple[Tensor, Tensor]] = []

    def route(layer: int, features: Features) -> Decision:
        found = built.decided(layer, features)
        mean = built.routes(layer, features).mean
        decided.append((found.expand(mean.shape[:-1]), model.execution.decide(mean)))
        return Decision(decided[-1][1])

    with torch.no_grad():
        model.network(tokens, route)
    assert len(decided) == 2
    for found, expected in decided:
        assert torch.equal(found, expected)
