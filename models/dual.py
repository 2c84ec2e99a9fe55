"""The controller of a price that makes a cost meet its budget."""

import torch
from torch import Tensor, nn

MEMORY = 3  # steps over which the excess is smoothed
INTEGRATION = 100  # steps in which a lasting excess moves the price by as much again
PATIENCE = 2000  # the gain grows by streak / PATIENCE a step
LONGEST_STREAK = 60
CUT = 0.7
GAINS = (0.1, 30.0)


class DualController(nn.Module):
    """Dual ascent on a constraint, damped: price = gain (excess + sum of excess / 100).

    As in GECO (Rezende & Viola 2018, arXiv 1810.00597) the price of a constraint rises while it is
    broken. How fast routes follow a price is not known beforehand and falls with the learning rate,
    so the gain is found on the way: cut whenever the excess changes its sign, and growing the
    faster the longer it has not. The price is negative where the cost falls short of the budget.
    Its state is in buffers, in double precision.
    """

    excess: Tensor
    price: Tensor
    gain: Tensor
    streak: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, start in {"excess": 0.0, "price": 0.0, "gain": 1.0, "streak": 0.0}.items():
            self.register_buffer(name, torch.tensor(start, dtype=torch.float64))

    def step(self, excess: float, most: float) -> float:
        """The price, within +-`most`, after a step whose cost was `excess` above the budget."""
        before = float(self.excess)
        now = before + (excess - before) / MEMORY
        streak = 0.0 if now * before < 0 else min(float(self.streak) + 1, LONGEST_STREAK)
        growth = 1 + streak / PATIENCE if streak else CUT
        gain = min(max(float(self.gain) * growth, GAINS[0]), GAINS[1])
        integral = min(max(float(self.price) + gain * now / INTEGRATION, -most), most)
        for name, value in zip(
            ("excess", "price", "gain", "streak"), (now, integral, gain, streak), strict=True
        ):
            getattr(self, name).fill_(value)
        return min(max(gain * now + integral, -most), most)
