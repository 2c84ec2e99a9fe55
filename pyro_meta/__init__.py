"""pyro-meta: transformers whose every token chooses how it attends, as a Pyro model.

The public names below are imported on first use, so that `pyro_meta.analysis` and the reports never
import torch. They are also what checkpoints and config.yaml call classes by, so that a file may
move without a run noticing. `__init__.pyi` says the same to type checkers.

models/, guides/ and analysis/ stand beside this folder in a checkout; links in it lead there.
"""

import importlib
import warnings
from typing import Any

# tqdm, which Pyro imports, asks every notebook for widgets; nothing of ours draws any
warnings.filterwarnings("ignore", "IProgress not found")

__version__ = "0.1.0"

_NAMES = {
    "attention": (
        "Mechanism", "Full", "Window", "Linear", "LinearMomentum", "Chunk", "ChunkSliding",
        "ChunkSentence", "ChunkLearned",
    ),
    "data": ("Corpus", "Data", "HuggingFace", "Recall", "Text"),
    "distributions": ("Choice", "Concrete", "LogisticNormal", "PointGate"),
    "errors": ("UsageError",),
    "guides": (
        "Guide", "CategoricalGuide", "ConcreteGuide", "DirichletGuide", "FixedGuide",
        "LayersGuide", "LoadGuide", "LogisticNormalGuide", "PaperGuide", "PeriodicGuide",
        "PointGuide", "PriorGuide", "RandomGuide", "TokenTableGuide",
        "DepthGuide", "BetaDepthGuide", "PointDepthGuide",
    ),
    "inference": ("RouteELBO",),
    "models": (
        "LanguageModel", "Prior", "CostCategorical", "CostDirichlet", "LearnedDirichlet",
        "LoadCategorical", "LoadDirichlet", "LoadPrior", "LogisticNormalPrior", "PaperDirichlet",
        "SymmetricDirichlet", "DepthPrior",
    ),
    "posterior.svi_to_arviz": ("from_pyro_svi",),
    "network": (
        "Decision", "Features", "Shape", "Transformer", "pinned", "Block", "ResidualBlock",
        "MomentumBlock", "PlainMomentumBlock",
    ),
}  # fmt: skip
_PACKAGES = ("pretrained",)
"""Packages that are named as a whole: they need an extra, and have public names of their own."""
_VERBS = {
    "interactive": ("Passage", "TextELBO", "TrainedRun", "load"),
}  # fmt: skip
_DOORS = ("train",)
"""Doors that can be called from Python, too."""
_HOME = {name: package for package, names in (_NAMES | _VERBS).items() for name in names}
NAMED_BY_FILES = sorted(name for names in _NAMES.values() for name in names)
"""Public names that config.yaml, checkpoints and options may hold."""
__all__ = sorted([*_HOME, *_DOORS])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"pyro_meta.{_HOME[name]}"), name)
    if name in (*_PACKAGES, *_DOORS):
        return importlib.import_module(f"pyro_meta.{name}")
    raise AttributeError(f"module 'pyro_meta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
