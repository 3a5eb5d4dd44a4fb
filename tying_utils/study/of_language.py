"""What can be measured where the language is known: the roles that a table shows, and the language itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tying_utils.base.console import tqdm
from tying_utils.corpora.two_role import Language
from tying_utils.measures import neighbors
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, each, side_by_side


def roles(run: Trained) -> pd.DataFrame:
    """Return how pure the neighbourhoods of a run's tables are in each hidden role, and its loss above the language's own.

    A row per table and role. Raises ValueError for a run on a text: the roles of its tokens are not known.
    """
    language, config = run.language, run.run.config
    if language is None:
        raise ValueError(f"arm: a run on the two-role language is needed, this one is on {run.corpus.name!r}")
    over = run.run.metrics["validation_loss"].iloc[-1] - run.floor
    rows = []
    for name, table in run.tables().items():
        for role, classes in (("source", language.source), ("target", language.target)):
            own = classes[run.used.numpy()]
            rows.append(
                {
                    **run.labels,
                    "output_scale": config.output_scale,
                    "agreement": language.settings.agreement,
                    "tied": config.tied,
                    "table": name,
                    "role": role,
                    "purity": neighbors.purity(table, own),
                    "chance": neighbors.purity_chance(own),
                    "over_floor": over,
                }
            )
    return pd.DataFrame(rows)


all_roles = each(lambda run, _: roles(run), side_by_side)


def _first_language(runs: Sequence[Trained]) -> Language:
    language = runs[0].language
    assert language is not None, "study_tables asks for these tables on the two-role language alone"
    return language


def transitions(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Tabulate how much likelier a target class is after a source class than at large, for the first seed's language."""
    language = _first_language(runs)
    after = np.stack([language.transition[:, language.target == c].sum(1) for c in range(language.settings.classes)], axis=1)
    base = np.bincount(language.target, language.unigram)
    ratio = np.log(after / base)
    bar.update(len(runs))
    rows = [{"source": s, "target": t, "log_ratio": ratio[s, t]} for s, t in np.ndindex(ratio.shape)]
    return pd.DataFrame(rows).assign(corpus=profile.corpus, seed=runs[0].seed, entropy_rate=language.entropy_rate)


def unigrams(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Tabulate the Zipfian weight of each token of the first seed's language, and how often it occurs in the long run."""
    language = _first_language(runs)
    order = np.argsort(-language.weights, kind="stable")
    bar.update(len(runs))
    found = {"rank": np.arange(1, len(order) + 1), "weight": language.weights[order], "unigram": language.unigram[order]}
    return pd.DataFrame(found).assign(corpus=profile.corpus, seed=runs[0].seed)
