"""A Pyro module that works with and without Pyro's global parameter store."""

import pyro
from pyro.nn import PyroModule


class StandaloneModule(PyroModule):
    """A `PyroModule` that may be called under either setting of `module_local_params`.

    Pyro fixes at construction whether a module can keep its parameters to itself. This one always
    can: our own training does so, and two models in one process never meet; plain `pyro.infer.SVI`
    uses the global store, as everywhere in Pyro.
    """

    def __init__(self) -> None:
        with pyro.settings.context(module_local_params=True):
            super().__init__()
