"""The numbers in README.md and METHODS.md: blocks between markers, written from the committed tables alone."""

import re
from collections.abc import Callable, Collection
from typing import Any

import pandas as pd

from tying_utils.base import files, paths
from tying_utils.base.names import PYTHON, SHARED_START, TIED, TWO_ROLE
from tying_utils.base.table_store import TableStore
from tying_utils.experiments import alignment, claims, gradients
from tying_utils.experiments import places as effects
from tying_utils.experiments import remedies as outcomes
from tying_utils.experiments.public import Public, output_bias
from tying_utils.experiments.sizes import loss_gaps
from tying_utils.experiments.tables import tied_less_untied, tuned
from tying_utils.measures import statistics
from tying_utils.study.study import Results
from tying_utils.study.sweep import Sweep

PROFILE, DOCUMENTS = "laptop", ("README.md", "METHODS.md")
NAMES = {PYTHON: "Python source", "wikitext-2": "WikiText-2", TWO_ROLE: "two-role language"}
_MARKER = "<!-- {edge} {name}: written by `make figures PROFILE=laptop` -->"


def _value(values: pd.Series, digits: int = 2) -> str:
    interval = statistics.mean_interval(values.to_numpy())
    if interval.n == 1:
        return f"{interval.mean:.{digits}f} (one seed)"
    return f"{interval.mean:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows)]
    return "\n".join(lines)


def _verdicts(results: Results, ids: Collection[str] | None = None) -> str:
    table = claims.verdicts(results)
    corpora = list(table["corpus"].unique())
    rows = []
    for (claim, statistic), part in table.groupby(["claim", "statistic"], sort=False):
        if ids is None or part["id"].iloc[0] in ids:
            own = part.set_index("corpus")
            cells = [_judged(own.loc[corpus]) if corpus in own.index else "" for corpus in corpora]
            rows.append((str(claim), str(statistic), *cells, str(part["published"].iloc[0])))
    return _table(("Claim", "Statistic", *(NAMES[corpus] for corpus in corpora), "Published"), rows)


def _judged(row: pd.Series) -> str:
    return f"**{row['verdict']}** {row['estimate']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def verdicts(results: Results) -> str:
    """Of every claim the statistics that stand for it: verdict, mean and 95 % interval by corpus, and the published value."""
    shown = {*claims.HEADLINES, "output_bias_linear_held_out"}
    return _verdicts(results, shown)


def all_verdicts(results: Results) -> str:
    """Every statistic of every claim."""
    return _verdicts(results)


def ground_truth(results: Results) -> str:
    """Return which role each table shows, in the language whose right answer is known."""
    table = claims.verdicts(results, ("roles",))
    rows = [(str(row["claim"]), str(row["statistic"]), _judged(pd.Series(row))) for row in table.to_dict("records")]
    return _table(("Claim", "Statistic", "Verdict, mean (95 % interval)"), rows)


def conditions(results: Results) -> str:
    """What the committed results were measured on."""
    lines = []
    for corpus, study in results.studies.items():
        manifest = study.manifest or {}
        runs, fingerprints = list(manifest["runs"].values()), list(manifest["corpora"].values())
        fingerprints = [fingerprint for fingerprint in fingerprints if fingerprint["name"] == corpus]  # not what comes after
        minutes = sum(run["made"]["seconds"] for run in runs) / 60
        text = {
            PYTHON: f"the source of Python {fingerprints[0].get('python')}'s standard library ({_size(fingerprints)})",
            TWO_ROLE: f"{len(fingerprints)} languages, one for each seed, agreement and permutation of the roles",
        }.get(corpus, f"its validation text, evaluated on its test text ({_size(fingerprints)})")
        lines.append(
            f"- **{NAMES[corpus]}**: {text}; where nothing else is said OLMo with {study.scales[corpus]}; "
            f"{len(manifest['profile']['seeds'])} seeds, "
            f"{len(runs)} runs, {minutes:.0f} minutes of training in all, a {runs[0]['made']['device']} core each, "
            f"torch {manifest['packages']['torch']}."
        )
    return "\n".join(lines)


def _size(fingerprints: list[dict[str, Any]]) -> str:
    return f"{fingerprints[0]['bytes'] / 1e6:.1f} MB"


def chance(results: Results) -> str:
    """Alignment beside the chance of the pair at hand, the Gaussian formula, and the score on held-out tokens."""
    rows = []
    for (source, target, kind), part in results.studies[PYTHON]["alignment"].groupby(["source", "target", "kind"]):
        if kind != "identity":
            levels = (_value(part["value"]), _value(part["chance"], 3), f"{part['gaussian'].mean():.3f}")
            rows.append((f"{source} → {target}", str(kind), *levels, _value(part["corrected"]), _value(part["held_out"])))
    header = "Tables", "Fit", "Value", "Chance (rows permuted)", "Gaussian formula", "Corrected", "Held-out tokens"
    return _table(header, rows)


def sizes(results: Results) -> str:
    """C5: the tables' share of all parameters, and the loss of tied less untied models, by size."""
    rows = []
    gaps = loss_gaps(results["sizes"])
    for (corpus, _, width, layers), part in gaps.groupby(["corpus", "parameters", "d_model", "n_layers"], sort=False):
        one = part.iloc[0]
        shape = f"d {width}, {layers} layers", f"{one['parameters'] / 1e6:.2f} M", f"{one['share']:.3f}"
        costs = _value(part["equal_shape"], 3), _value(part["equal_parameters"], 3), f"{one['parameters_ratio']:.3f}"
        rows.append((NAMES[str(corpus)], *shape, *costs))
    header = "Corpus", "Untied model", "Parameters", "Share of its tables"
    return _table((*header, "Loss, tied − untied, equal shape", "at equal parameters", "their ratio"), rows)


def architectures(results: Results) -> str:
    """C1 to C5 in each architecture: verdict, mean and 95 % interval."""
    table = effects.judged(effects.effects(results, "architecture"))
    places, rows = list(dict.fromkeys(table["place"])), []
    for (claim, effect, corpus), part in table.groupby(["claim", "effect", "corpus"], sort=False):
        own = part.set_index("place")
        rows.append((str(claim), str(effect), NAMES[str(corpus)], *(_judged(own.loc[place]) for place in places)))
    return _table(("Claim", "Effect", "Corpus", *places), rows)


def grid(results: Results) -> str:
    """C1 to C5 over widths and vocabularies: how many places say what, the range of the means, and the trends."""
    frame = effects.effects(results, "grid")
    table, rows = effects.judged(frame), []
    trends = {key: _trend(part.iloc[0]) for key, part in effects.trends(frame).groupby(["effect", "per"])}
    for (claim, effect), part in table.groupby(["claim", "effect"], sort=False):
        counts = ", ".join(f"{word} at {count}" for word, count in part["verdict"].value_counts().items())
        span = f"{part['estimate'].min():.3f} to {part['estimate'].max():.3f}"
        slopes = (trends[str(effect), f"doubling of {axis}"] for axis in ("d_model", "vocab_size"))
        rows.append((str(claim), str(effect), f"{counts} of {len(part)}", span, *slopes))
    return _table(("Claim", "Effect", "Places", "Means", "Each doubling of d", "Each doubling of V"), rows)


def _trend(row: pd.Series) -> str:
    return f"{row['it']} {row['estimate']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def crossings(results: Results) -> str:
    """Where, along size and share, untying starts or ceases to pay."""
    table = effects.crossings(effects.effects(results, "grid"))
    return _table(("Gap", "Along", "Crosses 0 at"), [tuple(map(str, row)) for row in table.to_numpy()])


def shared_start(results: Results) -> str:
    """What a shared start adds to alignment with the input table."""
    rows = []
    for name, arm in (("alignment", TIED), ("control_alignment", SHARED_START)):
        part = results.studies[PYTHON][name].query("arm == @arm and kind == 'orthogonal'").groupby("source")["value"]
        rows.append((arm, _value(part.get_group("input")), _value(part.get_group("output"))))
    return _table(("Tied arm", "orthogonal, W with E", "orthogonal, W with U"), rows)


def conventions(results: Results) -> str:
    """Output share early and late, by what is compared with what."""
    rows = []
    for label, column in (
        ("weight gradient against weight gradient", "output_share"),
        ("as published (activation gradient of the input)", "published_output_share"),
        ("Adam update", "output_update_share"),
    ):
        parts = (gradients.share_over(results.studies[PYTHON]["gradients"], *span, column) for span in ((0, 0.1), (0.9, 1)))
        rows.append((label, *(_value(part) for part in parts)))
    return _table(("Output share of the tied table", "first tenth of training", "last tenth"), rows)


def lens_indexing(results: Results) -> str:
    """The tied-untied gap by layer, read right and one layer off."""
    rows = []
    for layer, part in results.studies[PYTHON]["lens"].groupby("layer"):
        gaps = [tied_less_untied(tuned(part, indexing=indexing), "kl_bits") for indexing in ("matched", "published")]
        rows.append(("input" if layer == 0 else str(layer), *(_value(gap) for gap in gaps)))
    return _table(("Point", "tied − untied, bits, matched", "the same, read as published"), rows)


def lens_budget(results: Results) -> str:
    """The tied-untied gap at the input by how long the lens was trained."""
    rows = [
        (f"identity, {steps} steps", _value(tied_less_untied(part, "kl_bits")))
        for steps, part in results.studies[PYTHON]["lens_budget"].query("layer == 0").groupby("steps")
    ]
    converged = tuned(results.studies[PYTHON]["lens"], 0)
    rows.append(("least squares, then polished", _value(tied_less_untied(converged, "kl_bits"))))
    return _table(("Lens: start and training", "tied − untied at the input, bits"), rows)


def equal_ratios(results: Results) -> str:
    """What is left of a difference where both scales differ and their ratio does not."""
    rows = []
    for corpus, study in results.studies.items():
        if study.profile.sweep:
            by_ratio = Sweep.of(study).by_ratio()
            for ratio, part in by_ratio.groupby(by_ratio["ratio"].round(6)):
                if len(part) > 1:
                    between = (f"{part[name].min():.3f} to {part[name].max():.3f}" for name in ("output_bias", "loss"))
                    rows.append((NAMES[corpus], f"{ratio:g}", str(len(part)), *between))
    return _table(("Corpus", "input / output scale", "Pairs", "Output bias", "Loss"), rows)


def miniatures(results: Results) -> str:
    """The output bias of the public models' miniatures beside the published one."""
    rows = []
    for row in output_bias(Public(results.profile.name, only_read=True)["alignment"]).to_dict("records"):
        paper = row["published_corrected"]
        cells = (f"{row['corrected']:.3f}", f"{row['held_out']:.3f}", "" if pd.isna(paper) else f"{paper:.3f}")
        rows.append((str(row["family"]), str(row["kind"]), *cells))
    return _table(("Family", "Fit", "Miniatures, corrected", "Held-out tokens", "Published, corrected"), rows)


def remedies(results: Results) -> str:
    """What every remedy changes beside the tied arm of its corpus and shape, and what it costs."""
    found = outcomes.outcomes(results)
    keys = ["corpus", "shape", "arm", "measure"]
    change = {tuple(row[key] for key in keys): row for row in outcomes.changes(found).to_dict("records")}
    rows = []
    for (corpus, shape, arm), part in found.groupby(["corpus", "shape", "arm"], sort=False):
        one = part.iloc[0]
        cells = []
        for measure in outcomes.MEASURES:
            row = change.get((corpus, shape, arm, measure))
            cells.append("" if row is None else f"{row['change']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})")
        ratio = "" if pd.isna(one["step_ratio"]) else f"{one['step_ratio']:.2f}"
        rows.append((NAMES[str(corpus)], str(shape), str(arm), *cells, f"{one['added']:+,.0f}", ratio))
    header = "Corpus", "Compared at", "Arm", "Bias", "Loss, nats", "Lens KL of early layers, bits", "Weights added", "Step time"
    return _table(header, [row for row in rows if row[2] != TIED])


def benchmarks(_: Results) -> str:
    """What ours costs beside other ways to the same values, as ratios, and how it grows."""
    store = TableStore(paths.results("benchmarks"))
    read = [
        (write, store.read(name, lambda entry: True, keep=True)) for name, write in (("ratios", _ratios), ("growth", _slopes))
    ]
    parts = [write(found[0]) for write, found in read if found]
    return "\n\n".join(parts) or "Not measured yet: `make bench`."


def card(_: Results) -> str:
    """What was found on a card, where a check of one has been read."""
    store = TableStore(paths.results("gpu"))
    tables = {
        name: found[0]
        for name in ("checks", "losses", "alignment")
        if (found := store.read(name, lambda entry: True, keep=True))
    }
    if "checks" not in tables or store.manifest is None:
        return "Nothing here was run on a card yet: every number of this page is of a CPU."
    machine, checks = store.manifest["machine"], tables["checks"]
    ours = checks[checks["part"] == "correct"]["outcome"].value_counts()
    words = ", ".join(f"{count} {outcome}" for outcome, count in ours.items())
    lines = [f"- **{machine['card']}**, driver {machine.get('driver', 'none')}, torch {machine['torch']}. Checks: {words}."]
    if "losses" in tables:
        losses = tables["losses"]
        arms = [f"{arm} {_value(own['validation_loss'])}" for arm, own in losses.groupby("arm", sort=False)]
        one = losses.iloc[0]
        size = f"d {one['d_model']}, {one['n_layers']} layers, {one['tokens_per_weight']:.2g} tokens per weight"
        lines.append(f"- Validation loss ({size}, {losses['seed'].nunique()} seeds): {'; '.join(arms)}.")
    if "alignment" in tables:
        bias = alignment.output_bias(tables["alignment"]).groupby("arm", sort=False)["output_bias"]
        lines.append(f"- Output bias, corrected: {'; '.join(f'{arm} {_value(values)}' for arm, values in bias)}.")
    return "\n".join(lines)


def _ratios(table: pd.DataFrame) -> str:
    rows = []
    where = ["part", "what", "V", "d", "layers", "tokens", "ours", "other", "device", "threads"]
    for _, part in table.groupby(where, sort=False, dropna=False):
        one = part.iloc[0]
        size = ", ".join(f"{name} {one[name]:,.0f}" for name in ("V", "d", "layers", "tokens") if pd.notna(one[name]))
        cells = {row["quantity"]: _ratio(pd.Series(row)) for row in part.to_dict("records")}
        times = one["what"] if pd.isna(one["note"]) else f"{one['what']} ({one['note']})"
        names = f"{one['ours']} / {one['other']}"
        shown = (cells.get(quantity, "") for quantity in ("seconds", "memory", "bytes"))
        rows.append((times, size, names, *shown, str(one["rounds"]), f"{one['device']}, {one['threads']} threads"))
    header = "What", "Size", "Ours / other", "Seconds, ratio (quartiles)", "Peak memory", "Bytes read", "Rounds", "On"
    return _table(header, rows)


def _ratio(row: pd.Series) -> str:
    shown = f"{row['ratio']:#.3g}"
    return shown if row["rounds"] == 1 or row["low"] == row["high"] else f"{shown} ({row['low']:#.3g} to {row['high']:#.3g})"


def _slopes(table: pd.DataFrame) -> str:
    axes, rows = list(dict.fromkeys(table["axis"])), []
    for keys, part in table.groupby(["what", "quantity", "device"], sort=False):
        ends = {row["axis"]: row for row in part.to_dict("records")}  # the last one is the largest
        cells = []
        for axis in axes:
            row = ends.get(axis)
            words = "" if row is None else f"{row['slope']:.2f}"
            if row is not None and row["rounds"] > 1:
                words += f" ({row['slope_low']:.2f} to {row['slope_high']:.2f})"
            cells.append(words)
        rows.append((*map(str, keys), *cells))
    return _table(("What", "Cost", "On", *(f"log-log slope in {axis}" for axis in axes)), rows)


BLOCKS: dict[str, Callable[[Results], str]] = {
    "verdicts": verdicts,
    "all-verdicts": all_verdicts,
    "ground-truth": ground_truth,
    "equal-ratios": equal_ratios,
    "sizes": sizes,
    "architectures": architectures,
    "grid": grid,
    "crossings": crossings,
    "conditions": conditions,
    "chance": chance,
    "shared-start": shared_start,
    "conventions": conventions,
    "lens-indexing": lens_indexing,
    "lens-budget": lens_budget,
    "miniatures": miniatures,
    "remedies": remedies,
    "benchmarks": benchmarks,
    "card": card,
}


def filled(text: str, results: Results) -> str:
    """`text` with every block between a begin and an end marker written anew; ValueError for a block that has no writer."""
    pattern = re.compile(r"<!-- begin ([\w-]+): [^>]*-->.*?<!-- end \1: [^>]*-->", re.DOTALL)

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in BLOCKS:
            raise ValueError(f"text: the block {name!r} is unknown; choose one of {', '.join(BLOCKS)}")
        begin, end = (_MARKER.format(edge=edge, name=name) for edge in ("begin", "end"))
        return f"{begin}\n{BLOCKS[name](results)}\n{end}"

    return pattern.sub(block, text)


def refresh_documents(profile: str) -> None:
    """Write the blocks of README.md and METHODS.md anew, if `profile` is the one that they report."""
    if profile != PROFILE:
        return
    results = Results(profile, only_read=True)
    for name in DOCUMENTS:
        path = paths.root() / name
        if path.exists():
            text = filled(path.read_text(encoding="utf-8"), results)
            with files.replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
