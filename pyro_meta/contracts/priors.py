"""The contract of a prior: a distribution that knows positions and nothing else of the text."""

import torch

from pyro_meta.contracts import distributions
from pyro_meta.contracts.checks import default_dtype, require_close
from pyro_meta.contracts.subjects import Router
from pyro_meta.evaluation.figures import evaluating


def prior_is_of_the_position_alone(subject: Router) -> None:
    """The same for all positions at once, for the first few, and for one by itself."""
    with default_dtype(subject.size.dtype):
        model, guide = subject.build()
        context = subject.size.shape.context
        positions = torch.arange(context)
        with evaluating(model, guide):
            for layer in subject.layers:
                whole = subject.prior_at(model, layer, positions).expand(positions.shape)
                draw = whole.sample()
                density = whole.log_prob(draw)
                for part in (slice(1), slice(7), slice(8, 9), slice(5, 20)):
                    if part.stop > context:
                        continue
                    dist = subject.prior_at(model, layer, positions[part])
                    dist = dist.expand(positions[part].shape)
                    what = (
                        f"the length is seen: the distribution of positions {part.start or 0} to "
                        f"{part.stop - 1} is another beside {context} positions"
                    )
                    require_close(dist.mean, whole.mean[part], subject.size.tolerance, what)
                    require_close(
                        dist.log_prob(draw[part]), density[part], subject.size.tolerance, what
                    )


CLAUSES = (*distributions.CLAUSES, prior_is_of_the_position_alone)
