"""Tidy tables to what each remedy does: to the bias, to the loss, and what it costs."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tying_utils.base.names import AGAIN, EQUAL, TIED, UNTIED
from tying_utils.experiments.claims import Tables
from tying_utils.measures import statistics

SHAPES = (EQUAL_SHAPE, EQUAL_SIZE) = ("equal shape", "equal parameters")
POLES = (TIED, AGAIN)
# What a remedy is judged by, and what a figure calls it.
MEASURES = {
    "bias": "output bias of the input-use table",
    "loss": "validation loss (nats per token)",
    "early_lens": "lens KL, early layers (bits)",
}


def outcomes(results: Tables | Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each corpus, shape, arm and seed: what the arm came to.

    `results` needs the tables remedy_losses and remedy_lens, and of remedy_alignment (a text), remedy_roles (the two-role
    language) and remedy_steps those that its corpora have. Columns: corpus, shape, arm (without what says its shape), seed,
    and

    - bias: of the table that embeds the input. In a text its orthogonal alignment with the untied output table less that with
      the untied input table, both corrected for chance; in the two-role language its purity in the target role less that in
      the source role. Above 0 it leans to the output. The pole "untied again" is another untied model.
    - source_purity, target_purity: NaN in a text.
    - loss: on held-out text, nats a token; in the two-role language over the floor that nothing can beat.
    - early_lens: tuned-lens KL, bits a token, mean over the input and the first half of the layers; NaN at equal parameters.
    - parameters, and added: those above the tied model's of equal shape.
    - step_ratio: time of a step over the tied arm's, one value for all seeds; NaN at equal parameters.

    At equal shape stand all arms with the tied model's trunk; at equal parameters those that are nearer to the untied model's
    number of weights than to the tied one's: enlarged trunks, and whatever has two tables.
    """
    frames = [_of_corpus(results, corpus) for corpus in results["remedy_losses"]["corpus"].unique()]
    return pd.concat(frames, ignore_index=True)


def _of_corpus(results: Tables | Mapping[str, pd.DataFrame], corpus: str) -> pd.DataFrame:
    def table(name: str) -> pd.DataFrame | None:
        if name not in results:
            return None
        found = results[name]
        found = found[found["corpus"] == corpus]
        return None if found.empty else found

    key = ["arm", "seed"]
    losses = results["remedy_losses"]
    losses = losses[(losses["corpus"] == corpus) & (losses["arm"] != UNTIED)]
    frame = losses[["corpus", *key, "parameters"]].assign(loss=losses["validation_loss"] - losses["floor"].fillna(0.0))
    frame = frame.merge(_biases(table("remedy_alignment"), table("remedy_roles")), on=key, how="left")
    lens = results["remedy_lens"]
    lens = lens[(lens["corpus"] == corpus) & (lens["lens"] == "tuned") & (lens["indexing"] == "matched")]
    early = lens[lens["layer"] < lens["layer"].max() / 2]
    frame = frame.merge(early.groupby(key)["kl_bits"].mean().rename("early_lens"), on=key, how="left")
    steps = table("remedy_steps")
    times = {} if steps is None else steps.set_index("arm")["ratio"].to_dict()
    frame["step_ratio"] = frame["arm"].map(times).astype(float)
    own, two = (frame.loc[frame["arm"] == arm, "parameters"].iloc[0] for arm in POLES)
    frame["added"] = frame["parameters"] - own
    enlarged = frame["arm"].str.endswith(EQUAL)
    frame.insert(1, "shape", np.where(enlarged, EQUAL_SIZE, EQUAL_SHAPE))
    both = frame[~enlarged & (frame["added"] > (two - own) / 2)]
    of_size = both.assign(shape=EQUAL_SIZE, early_lens=np.nan, step_ratio=np.nan)
    if not enlarged.any():  # the profile trains none: there is nothing to compare with
        of_size = of_size.iloc[:0]
    frame = pd.concat([frame, of_size], ignore_index=True)
    frame["arm"] = frame["arm"].str.removesuffix(f", {EQUAL}").replace(EQUAL, TIED)
    return frame


def _biases(alignment: pd.DataFrame | None, roles: pd.DataFrame | None) -> pd.DataFrame:
    key = ["arm", "seed"]
    if roles is not None:
        at_input = roles[roles["table"] != "output"]
        wide = at_input.pivot_table(index=key, columns="role", values="purity")
        columns = {"source_purity": wide["source"], "target_purity": wide["target"]}
        return wide.assign(**columns, bias=wide["target"] - wide["source"]).reset_index()[[*key, "bias", *columns]]
    assert alignment is not None
    wide = alignment.pivot_table(index=key, columns="source", values="corrected")
    bias = (wide["output"] - wide["input"]).rename("bias").reset_index()
    return bias.assign(source_purity=np.nan, target_purity=np.nan)


def changes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What each arm changes beside the tied arm of its corpus and shape: a row for each and measure (`MEASURES`).

    Columns: corpus, shape, arm, measure, change (mean over seeds of the differences within a seed), low, high (95 % t
    interval), seeds, and verdict on the claim that it is lower: "supported", "refuted" (it is higher) or "open", as in
    `claims.verdicts`.
    """
    rows = []
    for (corpus, shape), part in outcomes.groupby(["corpus", "shape"], sort=False):
        by_seed = part.pivot(index="seed", columns="arm", values=[*MEASURES])
        for arm in part["arm"].unique():
            for measure in MEASURES if arm != TIED else ():
                differences = (by_seed[measure][arm] - by_seed[measure][TIED]).dropna()
                if differences.empty:
                    continue
                interval = statistics.mean_interval(differences)
                verdict = statistics.verdict(interval, claimed="below")
                ends = {"change": interval.mean, "low": interval.low, "high": interval.high, "seeds": interval.n}
                rows.append({"corpus": corpus, "shape": shape, "arm": arm, "measure": measure, **ends, "verdict": verdict})
    return pd.DataFrame(rows)


def front(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Mean bias and loss of each corpus, shape and arm, and whether it is on the Pareto front: no other arm is as low in both
    and lower in one. Means alone decide, so arms whose intervals overlap may change places with other seeds."""
    means = outcomes.groupby(["corpus", "shape", "arm"], sort=False, as_index=False)[["bias", "loss"]].mean()

    def stands(row: pd.Series) -> bool:
        others = means[(means["corpus"] == row["corpus"]) & (means["shape"] == row["shape"])]
        as_low = (others["bias"] <= row["bias"]) & (others["loss"] <= row["loss"])
        return not (as_low & ((others["bias"] < row["bias"]) | (others["loss"] < row["loss"]))).any()

    return means.assign(front=[stands(row) for _, row in means.iterrows()])


# What the verdicts on less bias and on less loss come to; an interval that covers 0 is unresolved, not no effect.
_WORDS = {
    ("supported", "supported"): "less bias and less loss",
    ("supported", "open"): "less bias, the loss unresolved",
    ("supported", "refuted"): "less bias, more loss",
    ("open", "supported"): "less loss, the bias unresolved",
    ("open", "open"): "both unresolved",
    ("open", "refuted"): "more loss, the bias unresolved",
    ("refuted", "supported"): "more bias, less loss",
    ("refuted", "open"): "more bias, the loss unresolved",
    ("refuted", "refuted"): "more bias and more loss",
}


def sentences(outcomes: pd.DataFrame, profile: str) -> str:
    """A line of Markdown for each corpus, shape and kind of result: which arms do what to bias and loss beside the tied one."""
    change = changes(outcomes).set_index(["corpus", "shape", "arm", "measure"])
    verdict, by = change["verdict"].unstack("measure"), change["change"].unstack("measure")
    lines = []
    for corpus, shape in dict.fromkeys(zip(outcomes["corpus"], outcomes["shape"], strict=True)):
        lines.append(f"\n{corpus}, {shape}, at {profile} scale:\n")
        part, own = verdict.loc[(corpus, shape)], by.loc[(corpus, shape)]
        for (bias, loss), words in _WORDS.items():
            arms = part.index[(part["bias"] == bias) & (part["loss"] == loss)]
            each = [f"{arm} (bias {own.loc[arm, 'bias']:+.3f}, loss {own.loc[arm, 'loss']:+.3f})" for arm in arms]
            if each:
                lines.append(f"- **{words}** (less bias {bias}, less loss {loss}): {'; '.join(each)}")
    return "\n".join(lines)
