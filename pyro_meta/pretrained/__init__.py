"""Models of transformers, kept whole, whose tokens choose how each key-value head attends.

    network = wrap(hf_model, mechanisms=["full", "window"], window=128, sinks=4)
    model = LanguageModel(network, LoadCategorical(network)); guide = CategoricalGuide(model)
    ...                                             SVI, ours or Pyro's own
    routed = convert(hf_model, guide)               generates, is evaluated, as ever
    convert(hf_model, guide, budget=.25)            at fewer key visits than it was trained for
    save_routes(routed, folder)                     and load_routes(hf_model, folder)

Needs the extra `pretrained`: pip install 'pyro-meta[pretrained]'.
"""

import sys

from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import refuse
from pyro_meta.terminal.extras import missing

try:
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    refused = UsageError(f"pretrained: {missing(error) or error}")
    if sys.argv[:1] == ["-m"]:  # Python looks for a module of this package, and runs nothing yet
        sys.exit(refuse(str(refused)))
    raise refused from error

from pyro_meta.evaluation.spending import measured_spending
from pyro_meta.pretrained.conversion import convert, is_converted, restore
from pyro_meta.pretrained.fingerprint import fingerprint
from pyro_meta.pretrained.network import PretrainedNetwork
from pyro_meta.pretrained.network import PretrainedNetwork as wrap
from pyro_meta.pretrained.saving import load_routes, save_routes

__all__ = [
    "PretrainedNetwork",
    "convert",
    "fingerprint",
    "is_converted",
    "load_routes",
    "measured_spending",
    "restore",
    "save_routes",
    "wrap",
]
