"""Text to tokens."""

from tying_utils.corpora.store import NAMES, Corpus, load

__all__ = ["NAMES", "Corpus", "load"]
