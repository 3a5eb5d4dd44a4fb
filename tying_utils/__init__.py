"""Train, load and measure causal language models with tied and untied token embeddings.

What is in `__all__` is the public face. Each name is imported when it is first asked for: reading this loads no torch.
"""

from typing import TYPE_CHECKING

from tying_utils.base.lazy import lazily

if TYPE_CHECKING:
    from tying_utils.experiments.claims import verdicts
    from tying_utils.measures.alignment import align, alignment
    from tying_utils.measures.lens import kl_by_layer, train_lens
    from tying_utils.measures.neighbors import knn_overlap
    from tying_utils.measures.residual import contributions
    from tying_utils.measures.spectral import spectral_distance
    from tying_utils.models.checkpoints import read_tables
    from tying_utils.models.tie import SplitTie
    from tying_utils.study.study import Study
    from tying_utils.training.callback import BalanceCallback
    from tying_utils.training.config import TrainConfig
    from tying_utils.training.trainer import train

__version__ = "0.1.0"
__all__ = [
    "BalanceCallback",
    "SplitTie",
    "Study",
    "TrainConfig",
    "align",
    "alignment",
    "contributions",
    "kl_by_layer",
    "knn_overlap",
    "read_tables",
    "spectral_distance",
    "train",
    "train_lens",
    "verdicts",
]

__getattr__ = lazily(
    __name__,
    {
        "BalanceCallback": "training.callback",
        "SplitTie": "models.tie",
        "Study": "study.study",
        "TrainConfig": "training.config",
        "align": "measures.alignment",
        "alignment": "measures.alignment",
        "contributions": "measures.residual",
        "kl_by_layer": "measures.lens",
        "knn_overlap": "measures.neighbors",
        "read_tables": "models.checkpoints",
        "spectral_distance": "measures.spectral",
        "train": "training.trainer",
        "train_lens": "measures.lens",
        "verdicts": "experiments.claims",
    },
)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
