"""The plainest guides with given loads, and studies that train nothing for real."""

import sys

from torch import Tensor

from pyro_meta import ablate
from pyro_meta.distributions.simplex import Point
from pyro_meta.guides import Guide, PointGuide
from pyro_meta.models import LanguageModel
from pyro_meta.network.route import Features
from pyro_meta.study import plan, results
from pyro_meta.study.job import Job
from pyro_meta.terminal.commands import run_command

LOAD_GUIDES = {"fixed": "load_guides.Fixed", "random": "load_guides.Random"}


class Fixed(Guide):
    pays_kl = False

    def __init__(self, model: LanguageModel, loads: list[list[float]]) -> None:
        super().__init__(model)
        self.loads = loads

    def posterior(self, layer: int, features: Features) -> Point:
        share: Tensor = features.normed.new_tensor(self.loads[layer])
        return Point(share.expand(*features.tokens.shape, len(share)))


class Random(Fixed):
    pass


class Plain(PointGuide):
    """As ours, by another name."""


def fake_command(job: Job) -> list[str]:
    """Instead of `Job.command`."""
    return ["fake_train", str(job.folder), str(job.config_yaml)]


if __name__ == "__main__":
    plan.LOAD_GUIDES = LOAD_GUIDES
    Job.command = fake_command  # type: ignore[method-assign]
    results.verdicts_of = lambda folder: []  # fake runs have no real posterior
    sys.exit(run_command(ablate.main))
