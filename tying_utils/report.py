"""The numbers in README.md and METHODS.md: blocks between markers, written from the committed tables alone."""

import re
from collections.abc import Callable

import pandas as pd

from tying_utils import claims, files, paths
from tying_utils.measures import statistics
from tying_utils.profiles import SHARED_START, TIED
from tying_utils.study import Study

PROFILE, DOCUMENTS = "laptop", ("README.md", "METHODS.md")
_MARKER = "<!-- {edge} {name}: written by `make figures PROFILE=laptop` -->"


def _value(values: pd.Series, digits: int = 2) -> str:
    interval = statistics.mean_interval(values.to_numpy())
    return f"{interval.mean:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows)]
    return "\n".join(lines)


def verdicts(study: Study) -> str:
    """Every claim with its interval, its verdict and the published value."""
    rows = [
        (
            str(row["claim"]),
            str(row["statistic"]),
            f"{row['estimate']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"**{row['verdict']}**",
            str(row["published"]),
        )
        for row in claims.verdicts(study).to_dict("records")
    ]
    return _table(("Claim", "Statistic", "Mean", "95 % interval", "Verdict here", "Published"), rows)


def conditions(study: Study) -> str:
    """What the committed results were measured on."""
    manifest = study.manifest or {}
    profile, corpus, runs = manifest["profile"], manifest["corpus"], list(manifest["runs"].values())
    config = runs[0]["config"]
    minutes = sum(run["made"]["seconds"] for run in runs) / 60
    return (
        f"Measured on {len(profile['seeds'])} seeds of each arm: OLMo with {config['n_layers']} layers, "
        f"d = {config['d_model']}, V = {config['vocab_size']}, {config['steps']} steps of "
        f"{config['batch_size'] * config['context']} tokens; the source of "
        f"Python {corpus['python']}'s standard library ({corpus['bytes'] / 1e6:.1f} MB). {len(runs)} runs, "
        f"{minutes:.0f} minutes of training in all, a {runs[0]['made']['device']} core each, "
        f"torch {manifest['packages']['torch']}."
    )


def chance(study: Study) -> str:
    """Alignment beside the chance of the pair at hand."""
    rows = []
    for (source, target, kind), part in study["alignment"].groupby(["source", "target", "kind"]):
        if kind != "identity":
            rows.append((f"{source} → {target}", str(kind), _value(part["value"]), _value(part["chance"], 3)))
    return _table(("Tables", "Fit", "Value", "Chance (rows permuted)"), rows)


def shared_start(study: Study) -> str:
    """What a shared start adds to alignment with the input table."""
    rows = []
    for name, arm in (("alignment", TIED), ("control_alignment", SHARED_START)):
        part = study[name].query("arm == @arm and kind == 'orthogonal'").groupby("source")["value"]
        rows.append((arm, _value(part.get_group("input")), _value(part.get_group("output"))))
    return _table(("Tied arm", "orthogonal, W with E", "orthogonal, W with U"), rows)


def conventions(study: Study) -> str:
    """Output share early and late, by what is compared with what."""
    rows = []
    for label, column in (
        ("weight gradient against weight gradient", "output_share"),
        ("as published (activation gradient of the input)", "published_output_share"),
        ("Adam update", "output_update_share"),
    ):
        parts = (claims.share_over(study["gradients"], *span, column) for span in ((0, 0.1), (0.9, 1)))
        rows.append((label, *(_value(part) for part in parts)))
    return _table(("Output share of the tied table", "first tenth of training", "last tenth"), rows)


def lens_indexing(study: Study) -> str:
    """The tied-untied gap by layer, read right and one layer off."""
    rows = []
    tuned = study["lens"].query("lens == 'tuned'")
    for layer, part in tuned.groupby("layer"):
        gaps = [claims.tied_less_untied(part[part["indexing"] == indexing], "kl_bits") for indexing in ("matched", "published")]
        rows.append(("input" if layer == 0 else str(layer), *(_value(gap) for gap in gaps)))
    return _table(("Point", "tied − untied, bits, matched", "the same, read as published"), rows)


def lens_budget(study: Study) -> str:
    """The tied-untied gap at the input by how long the lens was trained."""
    rows = [
        (f"identity, {steps} steps", _value(claims.tied_less_untied(part, "kl_bits")))
        for steps, part in study["lens_budget"].query("layer == 0").groupby("steps")
    ]
    converged = study["lens"].query("lens == 'tuned' and indexing == 'matched' and layer == 0")
    rows.append(("least squares, then polished", _value(claims.tied_less_untied(converged, "kl_bits"))))
    return _table(("Lens: start and training", "tied − untied at the input, bits"), rows)


BLOCKS: dict[str, Callable[[Study], str]] = {
    "verdicts": verdicts,
    "conditions": conditions,
    "chance": chance,
    "shared-start": shared_start,
    "conventions": conventions,
    "lens-indexing": lens_indexing,
    "lens-budget": lens_budget,
}


def filled(text: str, study: Study) -> str:
    """`text` with every block between a begin and an end marker written anew; ValueError for a block that has no writer."""
    pattern = re.compile(r"<!-- begin ([\w-]+): [^>]*-->.*?<!-- end \1: [^>]*-->", re.DOTALL)

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in BLOCKS:
            raise ValueError(f"text: the block {name!r} is unknown; choose one of {', '.join(BLOCKS)}")
        begin, end = (_MARKER.format(edge=edge, name=name) for edge in ("begin", "end"))
        return f"{begin}\n{BLOCKS[name](study)}\n{end}"

    return pattern.sub(block, text)


def refresh_documents(profile: str) -> None:
    """Write the blocks of README.md and METHODS.md anew, if `profile` is the one that they report."""
    if profile != PROFILE:
        return
    study = Study(profile)
    for name in DOCUMENTS:
        path = paths.root() / name
        if path.exists():
            text = filled(path.read_text(encoding="utf-8"), study)
            with files.replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
