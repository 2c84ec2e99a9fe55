"""pyro-meta: transformers whose every token chooses how it attends, as a Pyro model.

The public names below are imported on first use, so that `pyro_meta.analysis` and the reports never
import torch.
"""

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

# The folders models/, guides/ and analysis/ stand beside this one in a checkout and inside it once
# installed; this line lets a checkout and an installed copy complete each other.
__path__ = pkgutil.extend_path(__path__, __name__)

_HOME = {
    "Mechanism": "attention",
    "Block": "blocks",
    "Features": "transformer",
    "Shape": "shape",
    "Transformer": "transformer",
    "pinned": "transformer",
    "Decision": "transformer",
    "LanguageModel": "models",
    "Prior": "models",
    "CostDirichlet": "models",
    "PaperDirichlet": "models",
    "SymmetricDirichlet": "models",
    "LearnedDirichlet": "models",
    "LogisticNormalPrior": "models",
    "BudgetDirichlet": "models",
    "DepthPrior": "models",
    "Guide": "guides",
    "DirichletGuide": "guides",
    "LogisticNormalGuide": "guides",
    "ConcreteGuide": "guides",
    "TokenTableGuide": "guides",
    "PaperGuide": "guides",
    "PointGuide": "guides",
    "PriorGuide": "guides",
    "FixedGuide": "guides",
    "RandomGuide": "guides",
    "DepthGuide": "guides",
    "BetaDepthGuide": "guides",
    "PointDepthGuide": "guides",
    "PointGate": "gates",
    "LogisticNormal": "laws",
    "Concrete": "laws",
    "RouteELBO": "svi",
    "UsageError": "errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"pyro_meta.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pyro_meta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
