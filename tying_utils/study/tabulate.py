"""Runs to tidy tables: what a study measures of the arms of a profile, and which arms each table needs."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import trim_mean
from tqdm.auto import tqdm

from tying_utils.base.names import PLACE, TIED
from tying_utils.corpora.store import Corpus
from tying_utils.corpora.two_role import Language
from tying_utils.measures import alignment, drift, frequency, lens, lens_budget, neighbors, residual
from tying_utils.study import columns
from tying_utils.study.profiles import Profile
from tying_utils.training import Trainer, choose_hardware
from tying_utils.training.run_store import Run


@dataclass(frozen=True)
class Arm:
    """One run of a study with its place in it."""

    name: str
    seed: int
    run: Run
    corpus: Corpus

    @property
    def labels(self) -> dict[str, Any]:
        scale = self.run.config.input_scale
        return {"corpus": self.corpus.name, "arm": self.name, "input_scale": scale, "seed": self.seed}

    @property
    def place(self) -> tuple[Any, ...]:
        """What an untied run has to share with this one to be its reference: seed, architecture and the tables' shape."""
        config = self.run.config
        return self.seed, config.arch, config.vocab_size, config.d_model

    @cached_property
    def used(self) -> torch.Tensor:
        """The tokens that occur in the training text: the others' rows are no embeddings, and all untrained rows look alike."""
        return torch.from_numpy(self.corpus.counts.nonzero()[0])

    def tables(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """Rows of the used tokens by table: "tied", or "input" and "output"."""
        tables = self.run.tables(step)
        named = {"tied": tables.table} if tables.tied else {"input": tables.input, "output": tables.output}
        return {name: table[self.used] for name, table in named.items()}

    @cached_property
    def language(self) -> Language | None:
        """The two-role language that the run was trained on; None for a text."""
        config = self.run.config
        return Language(config.vocab_size, config.language) if config.language else None


Measure = Callable[[Sequence[Arm], Profile, "tqdm[Any]"], pd.DataFrame]


@dataclass(frozen=True)
class _Pair:
    """Two tables of one seed that are compared: the names of both, and the labels of the arm that they belong to."""

    labels: dict[str, Any]
    source: str
    target: str
    tables: tuple[torch.Tensor, torch.Tensor]

    @property
    def names(self) -> dict[str, Any]:
        return {**self.labels, "source": self.source, "target": self.target}


def _pairs(arms: Sequence[Arm]) -> list[_Pair]:
    """Each arm's table or tables beside the untied pair of its place; that pair itself too where the tied arm is among them."""
    references, others = _references(arms)
    with_own = any(arm.name == TIED for arm in arms)  # in one table of a study is enough
    pairs = []
    for arm in arms:
        if arm in others:
            reference = references[arm.place].tables()
            for name, own in arm.tables().items():
                pairs += [_Pair(arm.labels, source, name, (table, own)) for source, table in reference.items()]
        elif with_own:
            both = arm.tables()
            pairs.append(_Pair(arm.labels, "input", "output", (both["input"], both["output"])))
    return pairs


def _references(arms: Sequence[Arm]) -> tuple[dict[tuple[Any, ...], Arm], list[Arm]]:
    """The first plain untied arm of each place, and the arms that are compared with one: all others."""
    references: dict[tuple[Any, ...], Arm] = {}
    for arm in arms:
        if not arm.run.config.tied and arm.run.config.remedy is None:
            references.setdefault(arm.place, arm)
    return references, [arm for arm in arms if references[arm.place] is not arm]


_KINDS: tuple[alignment.Kind, ...] = ("identity", "orthogonal", "linear")


def _alignment(
    arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]", kinds: Sequence[alignment.Kind] = _KINDS
) -> pd.DataFrame:
    def one(pair: _Pair) -> list[dict[str, Any]]:
        rows = []
        for kind in kinds:
            score = alignment.alignment(*pair.tables, kind, permutations=profile.permutations)
            rows.append({**pair.names, "kind": kind, **columns.scores(score)})
            rows[-1] |= {"held_out": score.held_out, "gaussian": score.gaussian, "tokens": score.tokens}
        bar.update()
        return rows

    pairs = _pairs(arms)
    bar.reset(len(pairs))
    return pd.DataFrame([row for rows in _side_by_side(one, pairs, torch.device("cpu")) for row in rows])


def _orthogonal_score(source: torch.Tensor, target: torch.Tensor, permutations: int) -> dict[str, float]:
    """The orthogonal score alone, beside chance from `permutations`."""
    value = alignment.align(source, target, "orthogonal")
    chance = alignment.chance(source, target, "orthogonal", permutations=permutations)
    scores = {"value": value, "chance": chance.mean, "chance_low": chance.low, "chance_high": chance.high}
    return scores | {"corrected": alignment.corrected(value, chance.mean)}


def _at_the_input(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """The table that each arm embeds its input with, beside the untied pair; orthogonal fit, chance from few permutations."""
    references, others = _references(arms)
    permutations = max(2, profile.permutations // 10)
    bar.reset(len(others))

    def one(arm: Arm) -> list[dict[str, Any]]:
        name, own = next(iter(arm.tables().items()))
        rows = []
        for source, table in references[arm.place].tables().items():
            rows.append({**arm.labels, "source": source, "target": name, **_orthogonal_score(table, own, permutations)})
        bar.update()
        return rows

    return pd.DataFrame([row for rows in _side_by_side(one, others, torch.device("cpu")) for row in rows])


def _step_times(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Seconds of a training step over those of the tied arm, in turns: of the first seed's arms, each a short training."""
    first = [arm for arm in arms if arm.seed == arms[0].seed]
    rounds = max(6, profile.permutations // 2)
    bar.reset(rounds)
    threads = torch.get_num_threads()
    torch.set_num_threads(first[0].run.config.threads)
    try:
        trainers = {arm.name: Trainer(arm.run.config.replace(steps=rounds), arm.corpus) for arm in first}
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for step in range(1, rounds + 1):
            # Forwards and backwards, so that none is always first.
            for name in [*trainers][:: 1 if step % 2 else -1]:
                began = time.perf_counter()
                float(trainers[name].step(step)[0])  # waits for the device
                seconds[name].append(time.perf_counter() - began)
            bar.update()
    finally:
        torch.set_num_threads(threads)
    frame = pd.DataFrame(seconds)
    ratios = frame.div(frame[TIED], axis=0)
    rows = []
    for arm in first:
        # Trimmed: the first steps warm up, and now and then the machine does something else. Not the median: a remedy that
        # changes the model on the way has steps of two kinds.
        value, (low, high) = trim_mean(ratios[arm.name], 0.1), ratios[arm.name].quantile([0.25, 0.75])
        rows.append({**arm.labels, "ratio": value, "low": low, "high": high, "rounds": rounds})
    return pd.DataFrame(rows).assign(threads=first[0].run.config.threads)


def _neighbors(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    def one(pair: _Pair) -> dict[str, Any]:
        score = neighbors.overlap(*pair.tables, k=10, permutations=profile.permutations)
        bar.update()
        return {**pair.names, "k": 10, **columns.scores(score)}

    pairs = _pairs(arms)
    bar.reset(len(pairs))
    return pd.DataFrame(_side_by_side(one, pairs, torch.device("cpu")))


def _cosines(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Figure 1: how the per-token cosines of the linear fit are distributed, as a density over 50 bins."""
    rows, pairs = [], _pairs(arms)
    bar.reset(len(pairs))
    for pair in pairs:
        cosines = alignment.token_cosines(*pair.tables, "linear").numpy()
        rows.append(pd.DataFrame({**pair.names, **columns.density(cosines)}))
        bar.update()
    return pd.concat(rows, ignore_index=True)


def _losses(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Loss, the floor where the language is known, and how many weights the model spends on its tables."""
    rows = []
    for arm in arms:
        config, metrics = arm.run.config, arm.run.metrics
        tables = config.vocab_size * config.d_model * (1 if config.tied else 2)
        if config.remedy:
            tables += config.remedy.added_parameters(config.vocab_size, config.d_model)
        rows.append(
            {
                **arm.labels,
                "d_model": config.d_model,
                "n_layers": config.n_layers,
                "validation_loss": metrics["validation_loss"].iloc[-1],
                "floor": _floor(arm),
                "training_loss": metrics["loss"].tail(20).mean(),
                "parameters": arm.run.record["made"]["parameters"],
                "table_parameters": tables,
            }
        )
        bar.update()
    return pd.DataFrame(rows)


def _floor(arm: Arm) -> float:
    """What the language itself scores on the run's held-out windows, nats a token; nan for a text, whose floor nobody knows."""
    if arm.language is None:
        return float("nan")
    config = arm.run.config
    return arm.language.loss(arm.corpus.windows("validation", config.validation_sequences, config.context + 1))


def roles(arm: Arm) -> pd.DataFrame:
    """How pure the neighbourhoods of each of a run's tables are in each hidden role, and its loss above the language's own.

    A row a table and role. Raises ValueError for a run on a text: its roles, if it has any, nobody knows.
    """
    language, config = arm.language, arm.run.config
    if language is None:
        raise ValueError(f"arm: a run on the two-role language is needed, this one is on {arm.corpus.name!r}")
    over = arm.run.metrics["validation_loss"].iloc[-1] - _floor(arm)
    rows = []
    for name, table in arm.tables().items():
        for role, labels in (("source", language.source), ("target", language.target)):
            own = labels[arm.used.numpy()]
            rows.append(
                {
                    **arm.labels,
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


def _roles(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    def one(arm: Arm) -> pd.DataFrame:
        rows = roles(arm)
        bar.update()
        return rows

    return pd.concat(_side_by_side(one, arms, torch.device("cpu")), ignore_index=True)


_GRADIENT_COLUMNS = ["step", "input_norm", "output_norm", "cosine", "output_share", "output_update_share", "clip"]
_GRADIENT_COLUMNS += ["published_input_norm", "published_output_share", "loss"]


def _gradients(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        rows.append(arm.run.metrics[_GRADIENT_COLUMNS].assign(**arm.labels))
        bar.update()
    labels = list(arms[0].labels)
    return pd.concat(rows, ignore_index=True)[labels + _GRADIENT_COLUMNS]


def _lens(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Figure 2: bits that each layer lacks of the model's own prediction, through the tuned lens and the logit lens."""
    device = choose_hardware().device

    def one(arm: Arm) -> list[dict[str, Any]]:
        model = arm.run.model(device=device)
        context = arm.run.config.context
        held_out = arm.corpus.windows("validation", profile.evaluation_windows, context)
        tokens = arm.corpus.windows("train", profile.lens_windows, context)
        tuned = lens.train_lens(model, tokens, seed=arm.seed, progress=False, **profile.lens)
        curves = [("tuned", indexing, lens.kl_by_layer(model, tuned, held_out, indexing=indexing))
                  for indexing in ("matched", "published")]  # fmt: skip
        curves.append(("logit", "matched", lens.kl_by_layer(model, lens.logit_lens(model), held_out)))
        bar.update()
        return [
            {**arm.labels, "lens": name, "indexing": indexing, "layer": layer, "kl_bits": kl}
            for name, indexing, curve in curves
            for layer, kl in enumerate(curve)
        ]

    return pd.DataFrame([row for rows in _models_side_by_side(one, arms, device) for row in rows])


def _lens_budget(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """What Figure 2 becomes when the lens is stopped early."""
    device = choose_hardware().device

    def one(arm: Arm) -> pd.DataFrame:
        context = arm.run.config.context
        held_out = arm.corpus.windows("validation", profile.evaluation_windows, context)
        tokens = arm.corpus.windows("train", profile.lens_windows, context)
        curves = lens_budget.kl_by_budget(
            arm.run.model(device=device), tokens, held_out, budgets=profile.lens_budgets, seed=arm.seed, progress=False
        )
        bar.update()
        return curves.assign(**arm.labels)

    table = pd.concat(_models_side_by_side(one, arms, device), ignore_index=True)
    return table[[*arms[0].labels, "steps", "layer", "kl_bits"]]


def _residual(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        held_out = arm.corpus.windows("validation", profile.evaluation_windows, arm.run.config.context)
        rows.append(residual.contributions(arm.run.model(), held_out).assign(**arm.labels))
        bar.update()
    table = pd.concat(rows, ignore_index=True)
    return table[[*arms[0].labels, *(c for c in table.columns if c not in arms[0].labels)]]


def _drift(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        kept = {step: arm.tables(step) for step in arm.run.checkpoints}
        for name in kept[0]:
            frame = drift.drift({step: tables[name] for step, tables in kept.items()})
            rows.append(frame.assign(**arm.labels, table=name))
        bar.update()
    return pd.concat(rows, ignore_index=True)[[*arms[0].labels, "table", "step", "to_start", "to_previous"]]


def _frequency(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        for name, table in arm.tables().items():
            frame = frequency.norm_by_frequency(table, arm.corpus.counts[arm.used.numpy()])
            binned = frequency.binned(frame)
            rows.append(binned.assign(**arm.labels, table=name, spearman=frequency.spearman(frame)))
        bar.update()
    table = pd.concat(rows, ignore_index=True)
    first = [*arms[0].labels, "table", "spearman"]
    return table[[*first, *(c for c in table.columns if c not in first)]]


def _language(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """How much likelier a target class is after a source class than at large, for the first seed's language."""
    language = arms[0].language
    assert language is not None
    after = np.stack([language.transition[:, language.target == c].sum(1) for c in range(language.settings.classes)], axis=1)
    base = np.bincount(language.target, language.unigram)
    ratio = np.log(after / base)
    bar.update(len(arms))
    rows = [{"source": s, "target": t, "log_ratio": ratio[s, t]} for s, t in np.ndindex(ratio.shape)]
    return pd.DataFrame(rows).assign(corpus=profile.corpus, seed=arms[0].seed, entropy_rate=language.entropy_rate)


def _unigrams(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """The Zipfian weight of each token of the first seed's language, and how often it occurs in the long run."""
    language = arms[0].language
    assert language is not None
    order = np.argsort(-language.weights, kind="stable")
    bar.update(len(arms))
    columns = {"rank": np.arange(1, len(order) + 1), "weight": language.weights[order], "unigram": language.unigram[order]}
    return pd.DataFrame(columns).assign(corpus=profile.corpus, seed=arms[0].seed)


def _swept(measure: Measure) -> Measure:
    """`measure`, with the output path's scale beside the input path's."""

    def measured(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
        table = measure(arms, profile, bar)
        scales = {arm.name: arm.run.config.output_scale for arm in arms}
        place = list(table.columns).index("input_scale") + 1
        table.insert(place, "output_scale", table["arm"].map(scales))
        return table

    return measured


def _placed(measure: Measure) -> Measure:
    """`measure`, with where each arm was trained in columns of its own, and the arm called as at the profile's own place."""

    def measured(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
        table = measure(arms, profile, bar)
        configs = {arm.name: arm.run.config for arm in arms}
        places = {name: table["arm"].map({arm: getattr(of, name) for arm, of in configs.items()}) for name in PLACE}
        table = table.assign(**places, arm=table["arm"].str.partition(",")[0])
        first = ["corpus", *PLACE]
        return table[[*first, *table.columns.difference(first, sort=False)]]

    return measured


def _alignment_over_training(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Each tied table beside the untied pair of its seed after as many steps; orthogonal fit, chance from few permutations."""
    references, tied = _references(arms)
    permutations = max(2, profile.permutations // 10)
    bar.reset(len(tied))

    def one(arm: Arm) -> list[dict[str, Any]]:
        rows = []
        for step in _spaced(arm.run.checkpoints):
            table = arm.tables(step)["tied"]
            for source, other in references[arm.place].tables(step).items():
                scores = _orthogonal_score(other, table, permutations)
                rows.append({**arm.labels, "step": step, "source": source, "target": "tied", **scores})
        bar.update()
        return rows

    return pd.DataFrame([row for rows in _side_by_side(one, tied, torch.device("cpu")) for row in rows])


def _spaced(steps: Sequence[int]) -> list[int]:
    """Of `steps` in order the first, then each that lies half as far again as the one before it, and the last."""
    kept = [steps[0]]
    for step in steps[1:-1]:
        if step >= 1.5 * kept[-1] and steps[-1] >= 1.25 * step:
            kept.append(step)
    return [*kept, steps[-1]]


def _growing(steps: int) -> np.ndarray:
    """The last steps of spans that grow with the step."""
    return np.unique(np.round(steps ** np.linspace(0, 1, 25)).astype(int))


def _tenths(steps: int) -> np.ndarray:
    """The last steps of the tenths of training."""
    return np.unique(steps * np.arange(1, 11) // 10)


def _share_over_training(
    arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]", spans: Callable[[int], np.ndarray] = _growing
) -> pd.DataFrame:
    """Mean output share over spans of training; `step` is the last of its span."""
    rows = []
    for arm in arms:
        metrics, edges = arm.run.metrics, spans(arm.run.config.steps)
        span = edges[np.searchsorted(edges, metrics["step"])]
        means = metrics.groupby(span)[["output_share", "output_update_share"]].mean()
        rows.append(means.rename_axis("step").reset_index().assign(**arm.labels))
        bar.update()
    labels = list(arms[0].labels)
    return pd.concat(rows, ignore_index=True)[[*labels, "step", "output_share", "output_update_share"]]


def _side_by_side(function: Callable[[Any], Any], items: Sequence[Any], device: torch.device) -> list[Any]:
    """`function` of each item, in order: on the CPU in as many threads as it has cores, each computing on one."""
    if device.type != "cpu":
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max(1, min(threads, len(items))), initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(function, items))


def _models_side_by_side(function: Callable[[Any], Any], items: Sequence[Any], device: torch.device) -> list[Any]:
    """The same where `function` builds models and lenses."""
    # transformers puts another module in its own place when it is imported: threads that are the first to import it, at once,
    # are handed the one without its models.
    import transformers  # noqa: F401
    import tuned_lens  # noqa: F401

    def one(arm: Arm) -> Any:
        try:
            return function(arm)
        except ValueError as error:  # as of a lens that diverged: of which run, a measure does not know
            raise ValueError(f"{error} (arm {arm.name!r}, seed {arm.seed})") from error

    return _side_by_side(one, items, device)


_orthogonal, _share_by_tenths = partial(_alignment, kinds=("orthogonal",)), partial(_share_over_training, spans=_tenths)

# What makes each table; `study_tables` says of which arms.
MEASURES: dict[str, Measure] = {
    "alignment": _alignment,
    "neighbors": _neighbors,
    "cosines": _cosines,
    "control_alignment": _alignment,
    "losses": _losses,
    "sizes": _losses,
    "gradients": _gradients,
    "lens": _lens,
    "lens_budget": _lens_budget,
    "residual": _residual,
    "scaling_alignment": _alignment,
    "scaling_neighbors": _neighbors,
    "scaling_losses": _losses,
    "scaling_lens": _lens,
    "drift": _drift,
    "frequency": _frequency,
    "roles": _roles,
    "sweep_alignment": _swept(_alignment_over_training),
    "sweep_share": _swept(_share_over_training),
    "sweep_lens": _swept(_lens),
    "sweep_losses": _swept(_losses),
    "sweep_roles": _roles,
    "remedy_losses": _losses,
    "remedy_alignment": _at_the_input,
    "remedy_roles": _roles,
    "remedy_lens": _lens,
    "remedy_steps": _step_times,
    "architecture_alignment": _placed(_orthogonal),
    "architecture_share": _placed(_share_by_tenths),
    "architecture_lens": _placed(_lens),
    "architecture_losses": _placed(_losses),
    "architecture_roles": _placed(_roles),
    "grid_alignment": _placed(_orthogonal),
    "grid_share": _placed(_share_by_tenths),
    "grid_lens": _placed(_lens),
    "grid_losses": _placed(_losses),
    "language": _language,
    "unigrams": _unigrams,
}
