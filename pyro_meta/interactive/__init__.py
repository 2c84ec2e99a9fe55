"""A trained run as an object: routes, posterior, ELBO and continuation of any text."""

from pyro_meta.interactive.evidence import TextELBO
from pyro_meta.interactive.passage import Passage
from pyro_meta.interactive.trained import TrainedRun, load

__all__ = ["Passage", "TextELBO", "TrainedRun", "load"]
