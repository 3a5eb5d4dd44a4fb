"""Configuration to run. Reading a configuration loads no trainer: each name is imported when it is first asked for."""

from typing import TYPE_CHECKING

from tying_utils.base.lazy import lazily

if TYPE_CHECKING:
    from tying_utils.training.config import TrainConfig
    from tying_utils.training.trainer import METRICS, Hardware, choose_hardware, train, train_all

__all__ = ["METRICS", "Hardware", "TrainConfig", "choose_hardware", "train", "train_all"]
_TRAINER = dict.fromkeys(("METRICS", "Hardware", "choose_hardware", "train", "train_all"), "trainer")
__getattr__ = lazily(__name__, {"TrainConfig": "config", **_TRAINER})
