"""What is trained on: text and its tokens, and tasks whose truth is known."""

from pyro_meta.data.corpus import Corpus, Data
from pyro_meta.data.hugging_face import HuggingFace
from pyro_meta.data.recall import Recall
from pyro_meta.data.text import Text

__all__ = ["Corpus", "Data", "HuggingFace", "Recall", "Text"]
