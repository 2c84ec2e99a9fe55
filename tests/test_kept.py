"""What is kept until tensors move."""

import torch

from pyro_meta.distributions.kept import UntilMoved


def test_it_is_reckoned_once_until_something_moves() -> None:
    kept, x, count = UntilMoved(), torch.ones(2), 0

    def reckon() -> torch.Tensor:
        nonlocal count
        count += 1
        return x * 2

    with torch.no_grad():
        for _ in range(3):
            assert kept(0, [x], reckon).tolist() == [2, 2]
        assert count == 1
        kept(1, [x], reckon)
        assert count == 2, "another key"
        x.add_(1)
        assert kept(0, [x], reckon).tolist() == [4, 4] and count == 3
        y = torch.ones(2)
        kept(0, [y], reckon)
        assert count == 4, "another tensor"


def test_nothing_is_kept_where_gradients_are_wanted_or_nobody_counts_versions() -> None:
    kept, x, calls = UntilMoved(), torch.ones(1, requires_grad=True), []
    for _ in range(2):
        kept(0, [x], lambda: calls.append(0) or x * 2)  # type: ignore[func-returns-value]
    assert len(calls) == 2
    with torch.inference_mode():
        inner = torch.ones(1)
        for _ in range(2):
            kept(0, [inner], lambda: calls.append(0) or inner * 2)  # type: ignore[func-returns-value]
    assert len(calls) == 4
