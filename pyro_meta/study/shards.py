"""A study shared out among processes or machines that share its folder: shard 2 of 4, and so on.

A run that takes the loads of another is in the same shard as that one, so that no shard waits for
another. Shards are alike in tokens, as far as that goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pyro_meta.errors import UsageError
from pyro_meta.study.job import Job


@dataclass(frozen=True)
class Shard:
    """One of `count` shards, counted from 1."""

    index: int
    count: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """The shard that `2/4` means; raises `UsageError` where it means none."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UsageError(
                f"option --shard: {text} given; i/n with i from 1 to n is allowed, such as 2/4"
            )
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this shard, in their order; every job is in one shard of `count`."""
        families: dict[tuple[int, int], list[Job]] = {}
        for job in jobs:
            families.setdefault((id(_root(job)), job.seed), []).append(job)
        loads = [0] * self.count
        mine: set[int] = set()
        for family in sorted(families.values(), key=_tokens, reverse=True):
            lightest = loads.index(min(loads))
            loads[lightest] += _tokens(family)
            if lightest == self.index - 1:
                mine |= set(map(id, family))
        return [job for job in jobs if id(job) in mine]


def _root(job: Job) -> object:
    """The group whose loads this one takes, and so on to the first."""
    group = job.group
    while group.loads_of is not None:
        group = group.loads_of
    return group


def _tokens(jobs: Sequence[Job]) -> int:
    """Tokens that jobs are trained on."""
    return sum(job.steps * job.group.config.batch * job.group.config.context for job in jobs)
