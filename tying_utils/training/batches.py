"""The batches of a run: each window of its text once per epoch, in the order of the data seed."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tying_utils.corpora.corpus import Corpus
from tying_utils.training.config import TrainConfig
from tying_utils.training.ranks import Ranks


class Batches:
    """This rank's windows of each batch of `config`, on `device`.

    With `ahead` a thread picks the next batch while this one trains, from memory that is copied without a wait.
    """

    def __init__(
        self, config: TrainConfig, corpus: Corpus, device: torch.device, ranks: Ranks | None = None, *, ahead: bool = False
    ) -> None:
        ranks = ranks or Ranks()
        self.local_size = ranks.local_batch_size(config.batch_size, config.micro_batches)
        self._offset = ranks.rank * self.local_size
        self._config, self._tokens, self._device = config, corpus.train, device
        self._ahead = ThreadPoolExecutor(1) if ahead else None
        self._picked: tuple[int, Future[Tensor]] | None = None
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def __call__(self, index: int) -> Tensor:
        """Return windows (n, context + 1) of token ids, int64, of batch `index` from 0, without waiting for the device."""
        if self._ahead is None:
            return self._pick(index).to(self._device, non_blocking=True)
        if self._picked is None or self._picked[0] != index:
            self._picked = index, self._ahead.submit(self._pick, index)
        batch = self._picked[1].result()
        self._picked = index + 1, self._ahead.submit(self._pick, index + 1)
        # Pageable memory would be copied while the host waits.
        batch = batch.pin_memory() if self._device.type == "cuda" else batch
        return batch.to(self._device, non_blocking=True)

    def _pick(self, index: int) -> Tensor:
        context, windows = self._config.context, (len(self._tokens) - 1) // self._config.context
        picked = []
        first = index * self._config.batch_size + self._offset
        for position in range(first, first + self.local_size):
            epoch, place = divmod(position, windows)
            if epoch != self._epoch:
                self._epoch = epoch
                self._permutation = np.random.default_rng([self._config.data_seed, epoch]).permutation(windows)
            start = int(self._permutation[place]) * context
            picked.append(self._tokens[start : start + context + 1])
        return torch.from_numpy(np.stack(picked).astype(np.int64))
