"""The public names, for type checkers: at run time `__init__.py` imports each on first use."""

from typing import Any

from pyro_meta import pretrained as pretrained
from pyro_meta.attention import (
    Chunk,
    ChunkLearned,
    ChunkSentence,
    ChunkSliding,
    Full,
    Linear,
    LinearMomentum,
    Mechanism,
    Window,
)
from pyro_meta.data import Corpus, Data, HuggingFace, Recall, Text
from pyro_meta.distributions import Choice, Concrete, LogisticNormal, PointGate
from pyro_meta.errors import UsageError
from pyro_meta.guides import (
    BetaDepthGuide,
    CategoricalGuide,
    ConcreteGuide,
    DepthGuide,
    DirichletGuide,
    FixedGuide,
    Guide,
    LayersGuide,
    LoadGuide,
    LogisticNormalGuide,
    PaperGuide,
    PeriodicGuide,
    PointDepthGuide,
    PointGuide,
    PriorGuide,
    RandomGuide,
    TokenTableGuide,
)
from pyro_meta.inference import RouteELBO
from pyro_meta.interactive import Passage, TextELBO, TrainedRun, load
from pyro_meta.models import (
    CostCategorical,
    CostDirichlet,
    DepthPrior,
    LanguageModel,
    LearnedDirichlet,
    LoadCategorical,
    LoadDirichlet,
    LoadPrior,
    LogisticNormalPrior,
    PaperDirichlet,
    Prior,
    SymmetricDirichlet,
)
from pyro_meta.network import (
    Block,
    Decision,
    Features,
    MomentumBlock,
    PlainMomentumBlock,
    ResidualBlock,
    Shape,
    Transformer,
    pinned,
)
from pyro_meta.posterior.svi_to_arviz import from_pyro_svi

__version__: str
NAMED_BY_FILES: list[str]

def train(**options: Any) -> TrainedRun: ...  # the door `pyro_meta.train`, called

__all__ = [
    "BetaDepthGuide",
    "Block",
    "CategoricalGuide",
    "Choice",
    "Chunk",
    "ChunkLearned",
    "ChunkSentence",
    "ChunkSliding",
    "Concrete",
    "ConcreteGuide",
    "Corpus",
    "CostCategorical",
    "CostDirichlet",
    "Data",
    "Decision",
    "DepthGuide",
    "DepthPrior",
    "DirichletGuide",
    "Features",
    "FixedGuide",
    "Full",
    "Guide",
    "HuggingFace",
    "LanguageModel",
    "LayersGuide",
    "LearnedDirichlet",
    "Linear",
    "LinearMomentum",
    "LoadCategorical",
    "LoadDirichlet",
    "LoadGuide",
    "LoadPrior",
    "LogisticNormal",
    "LogisticNormalGuide",
    "LogisticNormalPrior",
    "Mechanism",
    "MomentumBlock",
    "PaperDirichlet",
    "PaperGuide",
    "Passage",
    "PeriodicGuide",
    "PlainMomentumBlock",
    "PointDepthGuide",
    "PointGate",
    "PointGuide",
    "Prior",
    "PriorGuide",
    "RandomGuide",
    "Recall",
    "ResidualBlock",
    "RouteELBO",
    "Shape",
    "SymmetricDirichlet",
    "Text",
    "TextELBO",
    "TokenTableGuide",
    "TrainedRun",
    "Transformer",
    "UsageError",
    "Window",
    "from_pyro_svi",
    "load",
    "pinned",
    "train",
]
