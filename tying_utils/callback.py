"""The callback for Hugging Face's Trainer, by its public name."""

from tying_utils.training.callback import BalanceCallback

__all__ = ["BalanceCallback"]
