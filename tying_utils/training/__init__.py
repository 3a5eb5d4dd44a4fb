"""Configuration to run. Reading a configuration loads no trainer: each name is imported when it is first asked for."""

from typing import TYPE_CHECKING

from tying_utils.base.lazy import lazily

if TYPE_CHECKING:
    from tying_utils.training.config import TrainConfig
    from tying_utils.training.hardware import Hardware, choose_hardware
    from tying_utils.training.metrics import METRICS
    from tying_utils.training.pool import train_all
    from tying_utils.training.trainer import Trainer, train

__all__ = ["METRICS", "Hardware", "TrainConfig", "Trainer", "choose_hardware", "train", "train_all"]
_PLACES = {"METRICS": "metrics", "TrainConfig": "config", "train_all": "pool"}
_PLACES |= {"Hardware": "hardware", "choose_hardware": "hardware", "Trainer": "trainer", "train": "trainer"}
__getattr__ = lazily(__name__, _PLACES)
