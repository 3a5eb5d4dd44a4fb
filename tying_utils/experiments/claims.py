"""Tidy tables to verdicts: what each claim says, what was measured, and whether the interval lies on the claimed side."""

from collections.abc import Callable, Sequence

import pandas as pd

from tying_utils.experiments import alignment, cause, evolution, gradients, ground_truth, scaling, sizes, transfer, tuned_lens
from tying_utils.experiments.judge import Evidence
from tying_utils.experiments.tables import OfCorpus, Tables

# Each claim with the table that it cannot do without, and what yields its statistics on one corpus.
_CLAIMS: dict[str, tuple[str, Callable[[Tables], Evidence]]] = {
    "C1": ("alignment", alignment.evidence),
    "C2": ("gradients", gradients.evidence),
    "C2 cause": ("gradients", cause.evidence),
    "C3": ("lens", tuned_lens.evidence),
    "C4": ("scaling_alignment", scaling.evidence),
    "C4 sweep": ("sweep_alignment", scaling.sweep_evidence),
    "C5": ("sizes", sizes.evidence),
    "C6": ("drift", evolution.evidence),
    "roles": ("roles", ground_truth.evidence),
    "transfer": ("transfer_losses", transfer.evidence),
}
CLAIMS = tuple(_CLAIMS)

# The statistics that stand for the claims, by id.
HEADLINES = (
    "output_bias",
    "early_share",
    "early_update_share",
    "lens_gap",
    "bias_per_decade",
    "loss_per_decade",
    "equal_shape",
    "equal_parameters",
)
# Of the table of verdicts, in the order that they have there.
_COLUMNS = ["claim", "statistic", "corpus", "estimate", "low", "high", "seeds", "scale", "verdict", "published"]
_COLUMNS += ["id", "unit", "null", "claimed"]


def verdicts(results: Tables, claims: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Judge each claim of arXiv 2603.26663 at the scale that `results` were measured at: a row per statistic and corpus.

    Columns: claim, statistic (its label), corpus, estimate (mean over seeds), low, high (95 % t interval over seeds), seeds,
    scale (in words, where `results` know it), verdict, published, id (of the statistic, for code), unit (of estimate, low and
    high), null (the value that would be no effect) and claimed (the side of it). A verdict is "supported" where the interval
    lies on the claimed side of the null, "refuted" where it lies on the other, "equivalent" where it lies wholly too near to it
    to be worth naming, "open" where none of these holds, "not measurable" at equal parameters where a larger tied model is no
    better than a smaller one, and "" below three seeds.

    C1: the tied table is nearer to the untied output table. C2: output gradients dominate (C2b: Adam updates). C3: early
    layers of a tied model are further from its prediction, and contribute less. C4: a larger input scale reduces both; its
    price is the loss ("C4 sweep": so does a smaller output scale, and what counts is their ratio). C5: tables hold a smaller
    share of a larger model, and a tied model loses to an untied one of equal shape, and of equal parameters. C6: an untied
    model's output table moves further from its start than its input table. "roles": the same in a language whose right answer
    is known (`two_role`). "transfer": a start that leans less learns a second text sooner and forgets less of the first,
    new source roles cost it more and new target roles less, and as an input table the tied one tells less of its tokens (not in
    the paper; steps that never reach the target count as all there are).

    `results` needs, for the `claims` asked for (default: all whose first table is there), the tables alignment, neighbors
    (C1), gradients (C2), lens, lens_budget, residual (C3), sweep_alignment (C4 sweep), drift (C6), sizes (C5), roles, for C4
    scaling_alignment, scaling_lens, scaling_losses with their unscaled likes, and for "transfer" transfer_losses,
    transfer_forgetting and transfer_probe, each with the columns corpus and seed.

    Raises ValueError for an unknown claim or for no tables, KeyError for a missing table.
    """
    asked = list(claims or ()) if isinstance(claims, tuple | list | set | frozenset | None) else [claims]
    if unknown := [claim for claim in asked if claim not in CLAIMS]:
        raise ValueError(f"claims: {unknown!r:.80} unknown; choose from {', '.join(CLAIMS)}")
    if isinstance(results, Sequence) or not (hasattr(results, "__getitem__") and hasattr(results, "__contains__")):
        raise ValueError(f"results: a Study, a Results or a dict of tables is needed, got {type(results).__name__}")
    scales = getattr(results, "scales", {})
    rows = []
    for claim in asked or [claim for claim in CLAIMS if _CLAIMS[claim][0] in results]:
        table, evidence = _CLAIMS[claim]
        of_claim = [
            {"corpus": corpus, "scale": scales.get(corpus, ""), **statistic.row(values)}
            for corpus in results[table]["corpus"].unique()
            for statistic, values in evidence(OfCorpus(results, corpus))
        ]
        # Of each statistic the corpora are together.
        order = list(dict.fromkeys(row["id"] for row in of_claim))
        rows += sorted(of_claim, key=lambda row: order.index(row["id"]))
    return pd.DataFrame(rows, columns=_COLUMNS)
