"""The controller of a price that makes a cost meet its budget."""

from torch import Tensor, float64, nn, tensor

MEMORY = 3  # steps over which the excess is smoothed
INTEGRATION = 100  # steps in which a lasting excess moves the price by as much again
LASTING = 0.03  # more than this is on its way already, and would wind the sum up
PATIENCE, LONGEST_STREAK = 2000, 60
SWING, CUT = 0.03, 0.7  # a smaller excess is noise of the batch, and its sign says nothing
LEAST_GAIN, MOST_GAIN = 0.1, 30.0


class DualController(nn.Module):
    """Dual ascent on a constraint, damped: price = gain * excess + sum of gain * excess / 100.

    As in GECO (Rezende & Viola 2018, arXiv 1810.00597) the price rises while the constraint is
    broken; it is negative where the cost falls short of the budget. How fast routes follow a price
    is not known beforehand and falls with the learning rate, so the gain is found on the way: cut
    by 30% when the excess has swung to the other side, and growing by up to 3% a step, the faster
    the longer it keeps its side. All state is in buffers.
    """

    excess: Tensor
    integral: Tensor
    gain: Tensor
    streak: Tensor
    peak: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("excess", tensor(0.0, dtype=float64))  # smoothed
        self.register_buffer("integral", tensor(0.0, dtype=float64))
        self.register_buffer("gain", tensor(1.0, dtype=float64))
        self.register_buffer("streak", tensor(0))  # steps on this side of the budget
        self.register_buffer("peak", tensor(0.0, dtype=float64))  # greatest |excess| on this side

    def step(self, excess: float, most: float) -> float:
        """The price, within +-`most`, after a step whose cost was `excess` above the budget."""
        before = float(self.excess)
        now = before + (excess - before) / MEMORY
        if now * before < 0:
            growth = CUT if float(self.peak) > SWING else 1.0
            streak, peak = 0, abs(now)
        else:
            streak, peak = (
                min(int(self.streak) + 1, LONGEST_STREAK),
                max(float(self.peak), abs(now)),
            )
            growth = 1 + streak / PATIENCE
        gain = _within(float(self.gain) * growth, LEAST_GAIN, MOST_GAIN)
        step = gain * _within(now, -LASTING, LASTING) / INTEGRATION
        integral = _within(float(self.integral) + step, -most, most)
        self.excess.fill_(now)
        self.integral.fill_(integral)
        self.gain.fill_(gain)
        self.streak.fill_(streak)
        self.peak.fill_(peak)
        return _within(gain * now + integral, -most, most)


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
