"""A real model as the toy models are measured: both path gradients of SmolLM2's table, its norms and its neighbours."""

import platform
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from tying_utils.base.console import tqdm
from tying_utils.corpora import texts, vocabulary
from tying_utils.measures import frequency
from tying_utils.measures.gradients import share_of
from tying_utils.models import real
from tying_utils.models.architectures import tables
from tying_utils.study.recorded import Manifest, Measured, Recorded
from tying_utils.training.hardware import choose_hardware

TEXT, RANDOM = "wikitext-2", "random tokens"
WORDS = (" the", " king", " Paris", "ing", "7")  # whose neighbours are listed


class Real(Recorded):
    """The tables of SmolLM2 (`models.real`), read from data/results/real or, with the extra `real`, measured.

    - shares: a row for each text, batch and group of positions, the whole window among them: `PathShare`'s numbers. A batch is
      one optimizer step's worth, `windows` of `context` tokens, of WikiText-2's training part as the corpus "wikitext-2" has
      it, from places spread over it, or of tokens drawn alike from the vocabulary.
    - norms: the rank correlation of the table's row norms and the tokens' counts in all of that text, over those that occur.
    - frequency: the norms in bins of the counts (`measures.frequency.binned`).
    - neighbors: the ten nearest rows of a few tokens, by cosine.

    source: another model, as in `real.load`; its tables are kept apart, by its name. Raises ValueError where a table is missing
    and so is the extra, the model or the text.
    """

    format = 1
    batches, windows, context, groups = 5, 4, 256, 8

    def __init__(self, source: str | None = None, *, fresh: bool = False, progress: bool = True) -> None:
        self.source, self.name = source, source or "SmolLM2-135M-Instruct"
        folder = self.name.strip("./~").replace("/", "--")
        super().__init__("real", folder, fresh=fresh, only_read=False, progress=progress)

    @property
    def names(self) -> list[str]:
        """Return the names of the tables."""
        return ["shares", "norms", "frequency", "neighbors"]

    def _runs_of(self, name: str) -> list[str]:
        return [self.name]

    def _command(self, name: str) -> str:
        return "tying-utils real"

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        model, tokenizer = real.load(self.source, progress=self.progress)
        model = model.to(choose_hardware().device)  # pyright: ignore[reportArgumentType]
        model.tie_weights()
        return model, tokenizer

    @cached_property
    def _tokens(self) -> np.ndarray:
        """Return the training part of the text, in the model's own tokens."""
        return vocabulary.encode(self._model[1], [text for _, text in texts.documents(TEXT)[0]])

    def _measure(self, name: str) -> Measured:
        began, device = time.monotonic(), self._model[0].device
        table = getattr(self, f"_{name}")()
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()

        def update(manifest: Manifest) -> None:
            manifest["model"], manifest["text_tokens"] = self.name, len(self._tokens)

        return Measured(table, f"measured on {self.name}", where, time.monotonic() - began, update)

    def _windows(self) -> Iterator[tuple[str, int, torch.Tensor]]:
        count, length = self.batches * self.windows, self.context + 1
        starts = np.linspace(0, len(self._tokens) - length, count).astype(np.int64)
        drawn = np.random.default_rng(0).integers(len(tables(self._model[0]).table), size=(count, length))
        for text, rows in ((TEXT, self._tokens[starts[:, None] + np.arange(length)]), (RANDOM, drawn)):
            # Every batch has windows from all over the text.
            for batch in range(self.batches):
                yield text, batch, torch.from_numpy(rows[batch :: self.batches])

    def _shares(self) -> pd.DataFrame:
        rows = []
        total = 2 * self.batches
        for text, batch, windows in tqdm(self._windows(), total=total, desc="path gradients", disable=not self.progress):
            found = share_of(self._model[0], windows.split(2), groups=self.groups, progress=False)
            for part in (found, *found.groups):
                values = {name: value for name, value in vars(part).items() if name not in ("positions", "groups")}
                rows.append({"text": text, "batch": batch, "first": part.positions[0], "last": part.positions[1] - 1, **values})
        return pd.DataFrame(rows)

    def _by_frequency(self) -> pd.DataFrame:
        table = tables(self._model[0]).table
        return frequency.norm_by_frequency(table, np.bincount(self._tokens, minlength=len(table)))

    def _norms(self) -> pd.DataFrame:
        found = self._by_frequency()
        seen = found.query("count > 0")
        values = {"tokens": len(found), "seen": len(seen), "spearman": frequency.spearman(found)}
        return pd.DataFrame(
            [values | {"norm_seen": seen["norm"].mean(), "norm_unseen": found.query("count == 0")["norm"].mean()}]
        )

    def _frequency(self) -> pd.DataFrame:
        return frequency.binned(self._by_frequency())

    def _neighbors(self) -> pd.DataFrame:
        model, tokenizer = self._model
        table, rows = tables(model).table.float(), []
        unit = table / table.norm(dim=1, keepdim=True).clamp_min(1e-12)
        for word in WORDS:
            ids = tokenizer.encode(word, add_special_tokens=False).ids
            if len(ids) == 1:  # what another tokenizer splits has no row
                near = (unit @ unit[ids[0]]).index_fill(0, torch.tensor(ids, device=unit.device), -2).topk(10)
                for rank, (cosine, other) in enumerate(zip(near.values.tolist(), near.indices.tolist(), strict=True), 1):
                    rows.append({"token": word, "rank": rank, "neighbour": tokenizer.decode([other]), "cosine": cosine})
        return pd.DataFrame(rows)
