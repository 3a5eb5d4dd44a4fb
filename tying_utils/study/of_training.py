"""What is measured by training finished runs again: which path moved a table, how far, and how straight."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tying_utils.base.console import tqdm
from tying_utils.corpora.corpus import Corpus
from tying_utils.measures.displacement import parts
from tying_utils.study.columns import labelled, tabulated
from tying_utils.study.of_tables import orthogonal
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, references
from tying_utils.training.config import TrainConfig
from tying_utils.training.trainer import Trainer

Sums = dict[str, dict[str, Tensor]]


def replay(config: TrainConfig, corpus: Corpus, *, progress: bool = False) -> tuple[pd.DataFrame, Sums]:
    """Train `config` again on `corpus`, without writing, and return what moved its tables: rows, and sums of the updates.

    A run keeps its tables, not what each path added to them. On the CPU the steps are those of the run, to the bit, on the
    machine that trained it. Columns, a row for each of about ten log-spaced steps and the last, table and part (as
    `Trainer.update_parts` calls them): step, table, part, share, norm and coherence up to that step (`displacement.parts`).
    Sums by table and part, (V, d) float32, all tokens. The bar shows where this takes over two seconds.

    Raises ValueError for a run that goes on from another, and for a remedy under which no path has an update of its own.
    """
    if config.start is not None:
        raise ValueError(f"config: a run from a fresh start is needed, {config.title!r} goes on from another; give that one")
    sums: Sums = {}
    lengths: dict[str, dict[str, Tensor]] = {}
    rows, told = [], {*np.round(config.steps ** np.linspace(0, 1, 10)).astype(int).tolist()}
    bar: dict[str, Any] = {"desc": f"again {config.title}", "unit": "step", "leave": False, "delay": 2}
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)  # they decide the last bits
    try:
        trainer = Trainer(config, corpus)
        for step in tqdm(range(1, config.steps + 1), disable=not progress, **bar):
            trainer.step(step)
            for table, added in trainer.update_parts().items():
                held = sums.setdefault(table, {part: torch.zeros_like(update) for part, update in added.items()})
                far = lengths.setdefault(table, {part: update.new_zeros(()) for part, update in added.items()})
                for part, update in added.items():
                    held[part] += update
                    far[part] += torch.linalg.vector_norm(update)
                if step in told:
                    found = parts(held, far).items()
                    rows += [{"step": step, "table": table, "part": part, **own._asdict()} for part, own in found]
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(rows), sums


def _told_apart(run: Trained) -> bool:
    """Return whether `replay` can train a run again, and tell its paths apart."""
    config = run.run.config
    # A remedy that adds weights makes the tables of them, or parts the tie on the way.
    added = config.remedy.added_parameters(config.vocab_size, config.d_model) if config.remedy else 0
    return config.start is None and added == 0


def _displacement(run: Trained, reference: Trained | None, profile: Profile, progress: bool) -> pd.DataFrame:
    rows, sums = replay(run.run.config, run.corpus, progress=progress)
    last = rows["step"] == run.run.config.steps
    used = [{part: added.cpu()[run.used] for part, added in held.items()} for held in sums.values()]  # as the last rows are
    shares = [own.share for held in used for own in parts(held, dict.fromkeys(held, 1.0)).values()]
    rows.loc[last, "used_share"] = shares
    for name in ("input", "output"):
        rows[f"{name}_alignment"] = np.nan
        if reference is not None:
            table = reference.tables()[name]
            scores = [orthogonal(table, added, profile)["corrected"] for held in used for added in held.values()]
            rows.loc[last, f"{name}_alignment"] = scores
    return labelled(run.labels, rows)


def displacement(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Measure what share of a table's displacement each path supplied, and how far its steps agree, by training again.

    Columns: the labels of the run, those of `replay`, and of the tokens that occur, at the last step (before: NaN), used_share,
    and input_alignment and output_alignment of the part's sum with the untied input and output table of its place, orthogonal,
    corrected for chance (NaN where there is no untied run beside this one). Left out are runs that have no such parts:
    fine-tuned ones, which begin with another run's weights, and those whose tables are made of other weights or parted on the
    way, where Adam's moments are not those of one path.
    """
    found = references(runs)

    def one(run: Trained) -> pd.DataFrame:
        reference = found.get(run.place)
        return _displacement(run, None if reference is run else reference, profile, not bar.disable)

    return tabulated(one, [run for run in runs if _told_apart(run)], bar)
