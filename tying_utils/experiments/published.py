"""Read the paper's numbers, as published (arXiv 2603.26663), as tidy tables; `NOTES` says where one rests on an error."""

import functools
import json
from pathlib import Path

import pandas as pd

NOTES: dict[str, str] = {
    "table_1": "Chance is not subtracted: unrelated Gaussian tables score 0.171 (orthogonal) and 0.202 (linear) at "
    "OLMo's size, 0.223 and 0.263 on the 36,938 common tokens of GPT-Neo/Pythia, so the pairs do not compare either.",
    "figure_1": "The linear map is judged on the rows that it was fitted to; its chance level (0.202) is not shown.",
    "figure_2": "The lens is read one layer off: translator k - 1 is applied to layer k, and the last state, already "
    "normalised, goes through a lens and the norm again, so only layer 0 is right and layer 16 should be 0 bits.",
    "figure_3": "The output table moves more only early: over steps 16,000 to 20,000 the input table moves as much.",
    "figure_4": "Unlike objects are compared: the input norm is of the activation gradient of one micro-batch, the "
    "output norm of the weight gradient, which overstates the output share wherever a token repeats.",
    "figure_8": "The output table moves more only early: in the last 2 of 5 intervals the input table moves more.",
    "figure_9": "The output table moves more only early: in 13 of 15 intervals the input table moves more.",
    "table_2": "One run per condition and no interval: the causal claim rests on +0.006 and -0.015.",
    "table_5": "GPT-Neo/Pythia speaks against the claim: untied input and output share more neighbours (0.611) than "
    "tied and untied output do (0.408).",
    "table_6": "The input column is at chance: 0.172, 0.173, 0.173, where unrelated tables of this size score 0.171.",
    "table_7": "One run per condition, and the baseline was trained with another warmup than the scaled run.",
}

# Tokens and width of the tables behind Table 1, by the name that it gives their models.
SIZES: dict[str, tuple[int, int]] = {"OLMo": (50_280, 2_048), "GPT-Neo/Pythia": (36_938, 2_560)}


@functools.cache
def load() -> dict:
    """Return every published number, as stored; one shared object, not to be altered.

    Read from beside this module in an installed package, from data/published in a checkout; FileNotFoundError if in
    neither.
    """
    here = Path(__file__)
    places = here.with_name("published.json"), here.parents[2] / "data" / "published" / "published.json"
    for place in places:
        if place.is_file():
            return json.loads(place.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"the published numbers are in neither of {', '.join(map(str, places))}")


def alignment() -> pd.DataFrame:
    """Return Table 1. Columns: models, source, target, kind ("identity", "orthogonal", "linear"), value (mean row cosine)."""
    table = dict(load()["table_1_alignment"])
    kinds = table.pop("columns")
    rows = [
        (models, *pair.split(" -> "), kind, value)
        for models, pairs in table.items()
        for pair, kind, value in _cells({"columns": kinds, **pairs})
    ]
    return pd.DataFrame(rows, columns=["models", "source", "target", "kind", "value"])


def corrected_alignment() -> pd.DataFrame:
    """Return Table 1 with the columns chance, that of unrelated Gaussian tables of its size (`gaussian_chance`), and corrected.

    corrected = (value - chance) / (1 - chance). Where row norms are uneven, as in trained tables, this chance is too high.
    """
    from tying_utils.measures.alignment import corrected, gaussian_chance

    table = alignment()
    table["chance"] = [
        gaussian_chance(*SIZES[models], kind) for models, kind in zip(table["models"], table["kind"], strict=True)
    ]
    table["corrected"] = [corrected(value, chance) for value, chance in zip(table["value"], table["chance"], strict=True)]
    return table


def knn() -> pd.DataFrame:
    """Return Table 5. Columns: models, a, b, value (mean overlap of 10 cosine neighbours, 0 to 1)."""
    return _pairs(load()["table_5_knn10_overlap"])


def spectral() -> pd.DataFrame:
    """Return Appendix B, from the history of the authors' code. Columns: models, a, b, value (spectral distance)."""
    return _pairs(load()["appendix_b_spectral_distance"])


def lens() -> pd.DataFrame:
    """Return Figure 2. Columns: model, tied (bool), layer (0 is the input, 16 the last), kl_bits (bits per token)."""
    figure = load()["figure_2_tuned_lens_kl_bits"]
    rows = [
        (name.split(" (")[0], name.endswith("(tied)"), layer, value)
        for name, values in figure.items()
        if name != "points"
        for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["model", "tied", "layer", "kl_bits"])


def gradient_bins() -> pd.DataFrame:
    """Return Figure 4. Columns: step_first, step_last, input_norm_mean, output_norm_mean (L2), output_share_mean (0 to 1)."""
    return pd.DataFrame(load()["figure_4_gradient_norms"]["bins"])


def evolution() -> pd.DataFrame:
    """Return Figures 3, 8 and 9. Columns: model, table ("input", "output"), step, to_start, to_previous (mean row cosines)."""
    frames = [
        pd.DataFrame(
            {
                "model": name.split(" (")[0],
                "table": table,
                "step": series["steps"],
                "to_start": series[f"{table}_vs_init"],
                "to_previous": series[f"{table}_consecutive"],
            }
        )
        for name, series in load()["figures_3_8_9_evolution"].items()
        for table in ("input", "output")
    ]
    return pd.concat(frames, ignore_index=True)


def scaling() -> pd.DataFrame:
    """Return Tables 2 (step 10,000) and 6 (step 1,000): orthogonal alignment of the tied table with an untied reference.

    Columns: step, condition, scale (factor on the input gradient), reference ("input", "output"), value (mean row
    cosine).
    """
    tables = {step: load()[f"table_{n}_gradient_scaling_step_{step}"] for n, step in ((2, 10_000), (6, 1_000))}
    rows = [
        (step, condition, int(condition.partition("input x")[2] or 1), reference, value)
        for step, table in tables.items()
        for condition, values in table.items()
        if condition.startswith("tied")
        for reference, value in zip(("input", "output"), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["step", "condition", "scale", "reference", "value"])


def downstream() -> pd.DataFrame:
    """Return Table 7 (step 10,000). Columns: task, condition ("tied", "tied, input x5"), value (accuracy, or a perplexity)."""
    return pd.DataFrame(_cells(load()["table_7_downstream_step_10000"]), columns=["task", "condition", "value"])


def _pairs(table: dict) -> pd.DataFrame:
    rows = [(models, *pair.split(" vs "), value) for models, pair, value in _cells(table)]
    return pd.DataFrame(rows, columns=["models", "a", "b", "value"])


def _cells(table: dict) -> list[tuple[str, str, float]]:
    """Return row, column and value of each cell of a stored table, whose columns are under "columns"."""
    rows = [(name, values) for name, values in table.items() if name not in ("columns", "note")]
    return [(name, column, value) for name, values in rows for column, value in zip(table["columns"], values, strict=True)]
