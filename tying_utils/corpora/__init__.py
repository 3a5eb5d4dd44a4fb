"""Text to tokens."""

from tying_utils.corpora.corpus import Corpus
from tying_utils.corpora.store import NAMES, load

__all__ = ["NAMES", "Corpus", "load"]
