"""Train, load and measure causal language models with tied and untied token embeddings.

Importing this package loads neither transformer_lens, tuned_lens nor matplotlib: each room imports what it needs.
"""

__version__ = "0.1.0"
