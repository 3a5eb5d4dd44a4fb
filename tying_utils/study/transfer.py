"""After pretraining: how soon a run learns a second text, what it forgets of the first, and what can be read off its tables.

The measures of fine-tuned runs, beside those of `tabulate`; `transfer_outcomes` says what their tables come to. A fine-tuned
arm starts from the finished run of another arm of its profile (`Profile.starts`) and trains with the ordinary gradient, so that
what differs between arms is the start alone.
"""

import keyword
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from tying_utils.corpora.store import Corpus
from tying_utils.measures import perplexity, probe
from tying_utils.study import columns, tabulate
from tying_utils.study.profiles import Profile
from tying_utils.study.tabulate import Arm, Measure
from tying_utils.training.trainer import choose_hardware

CATEGORIES = ("keyword", "identifier part", "whitespace", "number", "punctuation")
FOLDS = 5  # of a probe


def category(text: str) -> str | None:
    """What kind of Python token `text`, a token of a BPE, is or is a part of: one of `CATEGORIES`, spaces around it aside.

    None for a mixture of kinds, for bytes that make no character, and for the separator of documents.
    """
    word = text.strip()
    if not word:
        return "whitespace" if text else None
    if keyword.iskeyword(word):
        return "keyword"
    if word.isdecimal():
        return "number"
    if word.isidentifier():
        return "identifier part"
    return "punctuation" if set(word) <= set(string.punctuation) else None


def categories(corpus: Corpus) -> np.ndarray:
    """The place in `CATEGORIES` of every token of a text's vocabulary, -1 where it has none, (V,), int64."""
    texts = (corpus.tokenizer.decode([token], skip_special_tokens=False) for token in range(corpus.vocab_size))
    kinds = map(category, texts)
    return np.array([-1 if kind is None else CATEGORIES.index(kind) for kind in kinds])


def token_bytes(corpus: Corpus) -> np.ndarray:
    """Bytes of text that each token of a byte-level BPE stands for, (V,), int64; 0 for the separator, which is no text."""
    names = [corpus.tokenizer.id_to_token(token) for token in range(corpus.vocab_size)]
    return np.array([0 if name == corpus.separator else len(name) for name in names])  # a character of a name is a byte


def _questions(arm: Arm) -> dict[str, np.ndarray]:
    """What a probe is asked of every token, (V,), -1 where there is no answer: of a text its category, else its two roles."""
    if arm.language:
        return {"source role": arm.language.source, "target role": arm.language.target}
    return {"category": categories(arm.corpus)}


def _probe(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    permutations = max(2, profile.permutations // 10)

    def one(arm: Arm) -> list[dict[str, Any]]:
        rows, used = [], arm.used.numpy()
        for question, answers in _questions(arm).items():
            own = answers[used]
            known = (own >= 0) & (np.bincount(own[own >= 0], minlength=own.max() + 1)[own] >= FOLDS)  # a rare kind is left out
            for name, table in arm.tables().items():
                score = probe.probe(
                    table[torch.from_numpy(known)], own[known], folds=FOLDS, permutations=permutations, seed=arm.seed
                )
                rows.append({**arm.labels, "table": name, "question": question, **columns.scores(score)})
                rows[-1] |= {"classes": score.classes, "tokens": score.tokens}
        bar.update()
        return rows

    parts = tabulate._side_by_side(one, arms, choose_hardware("cpu").device)
    return pd.DataFrame([row for rows in parts for row in rows])


def _pairs(arms: Sequence[Arm], profile: Profile) -> list[tuple[str, Arm, Arm]]:
    """Each fine-tuned run after what it was tuned on, with the run that it started from."""
    runs = {(arm.name, arm.seed): arm for arm in arms}
    return [(to, runs[start, arm.seed], arm) for arm in arms if arm.name in profile.tuned
            for start, to in [profile.tuned[arm.name]]]  # fmt: skip


def _losses(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Held-out loss on the new text by step of fine-tuning, from step 0, which is the start as it was."""
    device = choose_hardware().device

    def one(pair: tuple[str, Arm, Arm]) -> pd.DataFrame:
        to, start, arm = pair
        config = arm.run.config
        windows = arm.corpus.windows("validation", config.validation_sequences, config.context + 1)
        before = perplexity.perplexity(start.run.model(device=device), windows, progress=False).loss
        known = arm.run.metrics.dropna(subset="validation_loss")
        bar.update()
        return pd.DataFrame(
            {
                **start.labels,
                "to": to,
                "step": [0, *known["step"]],
                "loss": [before, *known["validation_loss"]],
                "floor": tabulate._floor(arm),
                "bytes_per_token": np.nan if arm.language else token_bytes(arm.corpus)[windows[:, 1:]].mean(),
            }
        )

    pairs = _pairs(arms, profile)
    bar.reset(len(pairs))
    return pd.concat(tabulate._models_side_by_side(one, pairs, device), ignore_index=True)


def _forgetting(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Held-out loss on the old text, before fine-tuning and after it."""
    device = choose_hardware().device

    def one(pair: tuple[str, Arm, Arm]) -> dict[str, Any]:
        to, start, arm = pair
        config = start.run.config
        windows = start.corpus.windows("validation", config.validation_sequences, config.context + 1)
        before, after = (
            perplexity.perplexity(run.model(device=device), windows, progress=False).loss for run in (start.run, arm.run)
        )
        bar.update()
        return {**start.labels, "to": to, "before": before, "after": after}

    pairs = _pairs(arms, profile)
    bar.reset(len(pairs))
    return pd.DataFrame(tabulate._models_side_by_side(one, pairs, device))


# What makes each table of a study, these and those of `tabulate`; `study_tables` says of which arms.
MEASURES: dict[str, Measure] = {
    **tabulate.MEASURES,
    "transfer_losses": _losses,
    "transfer_forgetting": _forgetting,
    "transfer_probe": _probe,
}
