"""What is trained on: text and its tokens, and tasks whose truth is known."""

from pyro_meta.data.corpus import Corpus, Data, Text
from pyro_meta.data.recall import Recall

__all__ = ["Corpus", "Data", "Recall", "Text"]
