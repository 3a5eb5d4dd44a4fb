"""One dial for scale: how large the models are, what they train on, how many seeds there are, and which arms are trained."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tying_utils.base.names import (
    AGAIN,
    ELSEWHERE_SCALE,
    ELSEWHERE_SEEDS,
    EQUAL,
    NEW_ROLES,
    PAIR,
    PYTHON,
    SHARED_START,
    TIED,
    TWO_ROLE,
    UNTIED,
    WIKITEXT,
    WIKITEXT_103,
    agreeing,
    crossed,
    enlarged,
    output_scaled,
    scaled,
    tuned,
)
from tying_utils.corpora.two_role import Settings
from tying_utils.training.config import TrainConfig


@dataclass(frozen=True)
class Size:
    """A trunk for the tied and untied arms, and the number of layers that makes a tied model as large as the untied one."""

    d_model: int
    n_layers: int
    n_layers_equal: int

    def named(self, arm: str) -> str:
        """The name of `arm` at this size."""
        return f"{arm}, d {self.d_model}, {self.n_layers} layers"

    def changes(self) -> dict[str, dict[str, Any]]:
        """What each of the size's arms changes, by name."""
        width, own = {"d_model": self.d_model}, {"d_model": self.d_model, "n_layers": self.n_layers}
        return {
            self.named(UNTIED): own | {"tied": False},
            self.named(TIED): own,
            self.named(EQUAL): width | {"n_layers": self.n_layers_equal},
        }


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A scale to run the notebooks at, on one corpus. `training` holds what differs from TrainConfig's defaults."""

    name: str
    purpose: str
    corpus: str
    seeds: tuple[int, ...]
    training: dict[str, Any] = field(default_factory=dict)
    input_scales: tuple[float, ...] = (1.0,)  # 1 is the ordinary tied arm
    output_scales: tuple[float, ...] = (1.0,)
    swept: tuple[float, ...] = ()  # output scales that are crossed with the input scales: the sweep behind the sliders
    agreements: tuple[float, ...] = (0.0,)  # of the two roles; the two-role language alone
    shared_start: bool = True
    equal: dict[str, Any] = field(default_factory=dict)  # fields of the arm `EQUAL`
    sizes: tuple[Size, ...] = ()  # beside the profile's own
    remedies: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name, fields of TrainConfig
    remedies_enlarged: bool = False  # whether those that lack weights beside the untied model are trained with as many, too
    few: int | None = None  # seeds of the arms that only remedies need (None: all)
    architectures: tuple[str, ...] = ()  # beside the profile's own, at its own shape
    widths: tuple[int, ...] = ()  # d_model of a grid with `vocabularies`, at the profile's own depth
    vocabularies: tuple[int, ...] = ()  # token counts of that grid
    starts: dict[str, dict[str, Any]] = field(default_factory=dict)  # arms whose finished runs are fine-tuned, by name
    transfers: dict[str, dict[str, Any]] = field(default_factory=dict)  # by what they are fine-tuned on: fields that differ
    lens: dict[str, Any] = field(default_factory=dict)  # arguments of measures.lens.train_lens
    lens_windows: int = 960  # of the training text, to train lenses on
    lens_budgets: tuple[int, ...] = (25, 50, 100, 200, 400)  # steps of a lens from the identity
    evaluation_windows: int = 64  # of the held-out text, for lenses and the residual stream
    permutations: int = 100  # of rows, for chance

    @cached_property
    def scaled(self) -> tuple[str, ...]:
        """The arms whose input path is scaled."""
        return tuple(scaled(scale) for scale in self.input_scales if scale != 1)

    @cached_property
    def output_scaled(self) -> tuple[str, ...]:
        """The arms whose output path is scaled."""
        return tuple(output_scaled(scale) for scale in self.output_scales if scale != 1)

    @cached_property
    def sweep(self) -> dict[str, tuple[float, float]]:
        """The arms of the sweep with their input and output scale."""
        return {crossed(a, b): (a, b) for a in self.input_scales for b in self.swept}

    @cached_property
    def agreeing(self) -> tuple[str, ...]:
        """The pairs of arms in a language whose roles agree in part."""
        return tuple(agreeing(arm, agreement) for agreement in self.agreements if agreement for arm in PAIR)

    @cached_property
    def sized(self) -> tuple[str, ...]:
        """The arms that compare losses at equal shape and at equal parameters, at every size."""
        own = (*PAIR, EQUAL) if self.equal else ()
        return (*own, *(name for size in self.sizes for name in size.changes()))

    @cached_property
    def remedied(self) -> tuple[str, ...]:
        """The arms that compare remedies at equal shape: the poles, and every remedy."""
        return (UNTIED, AGAIN, TIED, *self.remedies) if self.remedies else ()

    @cached_property
    def enlarged(self) -> dict[str, dict[str, Any]]:
        """Of the tied arm and the remedies those that lack a table beside the untied model, with its number of weights."""
        if not self.remedies_enlarged:
            return {}
        arms = {TIED: {}, **self.remedies}
        return {enlarged(arm): fields | self.equal for arm, fields in arms.items() if self._lacks_a_table(fields)}

    def _lacks_a_table(self, fields: dict[str, Any]) -> bool:
        """Whether an arm of those fields has nearer one table's weights than two's."""
        config = TrainConfig(**{"corpus": self.corpus, **self.training, **fields})
        table = config.vocab_size * config.d_model
        added = config.remedy.added_parameters(config.vocab_size, config.d_model) if config.remedy else 0
        return (1 if config.tied else 2) * table + added < 1.5 * table

    @cached_property
    def by_architecture(self) -> dict[str, dict[str, Any]]:
        """What each architecture changes, by what it adds to the name of an arm; empty where there is none to compare with."""
        others = {f", {arch}": {"arch": arch} for arch in self.architectures}
        return {"": {}} | others if others else {}

    @cached_property
    def grid(self) -> dict[str, dict[str, Any]]:
        """The same of every width with every vocabulary, named as `sizes` are where the vocabulary is the profile's own."""
        own = {name: self.training.get(name, getattr(TrainConfig, name)) for name in ("d_model", "n_layers", "vocab_size")}
        places = {}
        for vocabulary, width in itertools.product(self.vocabularies, self.widths):
            words = f", d {width}, {own['n_layers']} layers" if width != own["d_model"] else ""
            words += f", V {vocabulary}" if vocabulary != own["vocab_size"] else ""
            places[words] = {"d_model": width, "vocab_size": vocabulary}
        return places

    @cached_property
    def elsewhere(self) -> dict[str, dict[str, Any]]:
        """The arms that the claims need at other architectures and shapes: untied, tied, and with the input path scaled."""
        arms = {UNTIED: {"tied": False}, TIED: {}, scaled(ELSEWHERE_SCALE): _scales(ELSEWHERE_SCALE, 1)}
        places = self.by_architecture | self.grid
        return {arm + words: changes | place for words, place in places.items() for arm, changes in arms.items()}

    @cached_property
    def _remedied(self) -> dict[str, dict[str, Any]]:
        """The arms that the remedies' tables need beside the untied and the tied one, and what each changes."""
        return ({AGAIN: {"tied": False}} | self.remedies | self.enlarged) if self.remedies else {}

    def seeds_of(self, *arms: str) -> tuple[int, ...]:
        """The seeds that all of `arms` are trained with: what is compared is compared seed by seed."""
        few = dict.fromkeys(self.elsewhere, ELSEWHERE_SEEDS) | dict.fromkeys(self._remedied, self.few)
        counts = [few.get(arm) for arm in arms if arm not in self._own]
        return self.seeds[: min((count for count in counts if count is not None), default=None)]

    @cached_property
    def tuned(self) -> dict[str, tuple[str, str]]:
        """The fine-tuned arms: what each starts from, and what it goes on to."""
        return {tuned(arm, to): (arm, to) for to in self.transfers for arm in self.starts}

    @cached_property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Every arm of the profile: its name, and the fields of TrainConfig that set it apart from the tied arm."""
        more = self._remedied | self.elsewhere
        return self._own | {arm: changes for arm, changes in more.items() if arm not in self._own}

    @cached_property
    def _own(self) -> dict[str, dict[str, Any]]:
        """The arms of the paper's claims and of fine-tuning, which have all seeds."""
        arms: dict[str, dict[str, Any]] = {UNTIED: {"tied": False}, TIED: {}}
        if self.shared_start:
            arms[SHARED_START] = {}
        if self.equal:
            arms[EQUAL] = self.equal
        arms |= {scaled(scale): _scales(scale, 1) for scale in self.input_scales}
        arms |= {output_scaled(scale): _scales(1, scale) for scale in self.output_scales}
        arms |= {name: _scales(*scales) for name, scales in self.sweep.items()}
        for agreement in self.agreements:
            if agreement:
                arms |= {agreeing(arm, agreement): arms[arm] | {"agreement": agreement} for arm in PAIR}
        for size in self.sizes:
            arms |= size.changes()
        arms |= self.starts
        return arms | {name: {"start": arm, **self.transfers[to]} for name, (arm, to) in self.tuned.items()}

    def config(self, arm: str, seed: int) -> TrainConfig:
        """The training condition of one arm and seed.

        Tied and untied arms start independently; scaled and remedied arms start where the tied one does, so that they differ
        in the scale or the remedy alone; "shared start" is the control: a tied arm that starts from the untied arm's input
        table and trunk. The data come in one order for all arms of a seed; a two-role language is drawn anew for each seed.
        A fine-tuned arm goes on from the finished run of its seed, with the ordinary gradient, tied or untied as that ended.
        """
        if arm not in self.arms:
            raise ValueError(f"arm: {arm!r} is unknown to the profile {self.name!r} on {self.corpus!r}; it has {[*self.arms]}")
        values: dict[str, Any] = {"corpus": self.corpus, **self.training, **self.arms[arm]}
        if "start" in values:
            values["start"] = start = self.config(values["start"], seed)
            values["tied"] = start.tied_after(start.steps)
        if self.corpus == TWO_ROLE:
            own = {"seed": seed, "agreement": values.pop("agreement", 0.0), "permuted": values.pop("permuted", None)}
            values["language"] = dataclasses.replace(values.get("language", Settings()), **own)
        tied = values.setdefault("tied", True)
        apart = (not tied or arm == SHARED_START) and arm not in self._remedied
        return TrainConfig(**values, init_seed=1000 + seed if apart else seed, data_seed=seed)


def _scales(input_scale: float, output_scale: float) -> dict[str, float]:
    """The fields of TrainConfig for both scales that are not 1."""
    both = {"input_scale": input_scale, "output_scale": output_scale}
    return {name: scale for name, scale in both.items() if scale != 1}


SCALES = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0)

# The other sizes are TrainConfig's defaults: 4 layers, d 128, V 2048, 400 steps. 512 tokens a step leave time for a second
# seed; a warmup over the first quarter spares the untied arm the early spikes that set it back by half a nat on some seeds.
_SMALL = {"context": 64, "batch_size": 8, "warmup_steps": 100}
# One of these layers holds 16 d^2 weights, so a table of V = 2048 rows is 128 / d layers: the arms are equal to the weight.
_EQUAL = {"n_layers": 5}
_SMOKE = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "context": 32,
    "batch_size": 4,
    "steps": 20,
    "warmup_steps": 5,
    "table_snapshots": 6,
    "checkpoint_every": 10,
    "validation_every": 10,
    "validation_sequences": 8,
}
_SMOKE_MEASURES: dict[str, Any] = {
    "lens": {"steps": 5},
    "lens_budgets": (2, 4),
    "lens_windows": 16,
    "evaluation_windows": 8,
    "permutations": 5,
}
# A run takes seconds, so that a notebook has room for five seeds of every arm.
_ROLES: dict[str, Any] = {
    "corpus": TWO_ROLE,
    "seeds": (0, 1, 2, 3, 4),
    "training": {
        "vocab_size": 512,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 2,
        "context": 32,
        "batch_size": 16,
        "steps": 200,
        "learning_rate": 4e-3,
        "warmup_steps": 60,
        "table_snapshots": 6,
        "checkpoint_every": 200,
        "validation_every": 100,
        "language": Settings(),
    },
    "input_scales": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    "output_scales": (0.01, 0.1, 1.0, 10.0),
    "agreements": (0.0, 0.5, 1.0),
    "equal": {"d_model": 72},  # within 3 % of the untied model's weights: half a layer more there is not
}
# arXiv 2603.26663, appendix. micro_batches is ours: 4 sequences at a time on each of 8 GPUs.
_PAPER = {
    "vocab_size": 50_280,
    "d_model": 2048,
    "n_layers": 16,
    "n_heads": 16,
    "context": 4096,
    "steps": 10_000,
    "batch_size": 512,
    "micro_batches": 16,
    "learning_rate": 3e-4,
    "warmup_steps": 1000,
    "adam_eps": 1e-5,
    "checkpoint_every": 1000,
    "validation_every": 500,
}
# A model of 10 million weights on 5 million tokens: 3e14 operations a run, of which a T4 does 4e12 a second in float32. A table
# is again as many weights as whole layers, here two.
_LARGER: dict[str, Any] = {
    "training": {
        "vocab_size": 8192,
        "d_model": 256,
        "n_layers": 8,
        "n_heads": 8,
        "context": 256,
        "batch_size": 32,
        "steps": 600,
        "learning_rate": 1e-3,
        "warmup_steps": 150,
        "checkpoint_every": 150,
        "validation_every": 150,
    },
    "equal": {"n_layers": 10},
    "lens": {"steps": 600, "tokens_per_step": 512, "cache_bytes": 2**32},
    "lens_budgets": (100, 200, 400),
    "lens_windows": 1200,
}
# One parameter setting each, the paper's or the middle of the range; the schedules part the steps at the end of the first
# quarter, where the warmup ends.
_REMEDIES: dict[str, dict[str, Any]] = {
    scaled(5.0): _scales(5.0, 1.0),
    **{
        name: {"remedy": remedy}
        for name, remedy in {
            "early x5": {"name": "schedule", "input": 5.0, "stop": 0.25},
            "late x5": {"name": "schedule", "input": 5.0, "start": 0.25},
            "norm-match": {"name": "norm-match"},
            "norm-match, smoothed": {"name": "norm-match", "smoothing": 0.9},
            "pcgrad": {"name": "pcgrad"},
            "pcgrad by row": {"name": "pcgrad", "by": "row"},
            "shrink": {"name": "shrink"},
            "rare-gate": {"name": "rare-gate"},
            "coupled-adam": {"name": "coupled-adam"},
            "projection": {"name": "projection"},
            "spd-map": {"name": "spd-map"},
            "untie": {"name": "untie"},
        }.items()
    },
    "factorised": {"tied": False, "remedy": {"name": "factorised"}},
    "table-rates": {"tied": False, "remedy": {"name": "table-rates", "input": 3.0}},
}
# Where time is short: what a lens is trained on, and what chance is estimated from.
_FEWER: dict[str, Any] = {"lens_windows": 480, "lens_budgets": (25, 50, 100), "permutations": 30}
ARCHITECTURES = ("gpt_neox", "gpt2", "llama", "qwen3")  # beside OLMo: rotary and learned positions, with and without biases
# Untied, tied, and ways to a table that leans less, or to two tables in the end.
_STARTS: dict[str, dict[str, Any]] = {
    UNTIED: {"tied": False},
    TIED: {},
    scaled(5): _scales(5.0, 1),
    "norm-match": {"remedy": {"name": "norm-match"}},
    "untie": {"remedy": {"name": "untie"}},
}
# Fine-tuning: at half the peak rate of pretraining.
_TUNING: dict[str, Any] = {"warmup_steps": 10, "table_snapshots": 2}
_ENGLISH = {"steps": 150, "learning_rate": 1e-3, "checkpoint_every": 150, "validation_every": 10}
_TO_ENGLISH: dict[str, dict[str, Any]] = {WIKITEXT: {**_TUNING, **_ENGLISH, "corpus": WIKITEXT}}
_OTHER_ROLES = {"steps": 150, "learning_rate": 2e-3, "checkpoint_every": 150, "validation_every": 5}
_TO_OTHER_ROLES = {to: {**_TUNING, **_OTHER_ROLES, "permuted": role} for to, role in NEW_ROLES.items()}

PROFILES: dict[str, dict[str, Profile]] = {}
for _profile in (
    Profile(
        name="smoke",
        purpose="for the tests: every step of every notebook, at a size that shows nothing",
        corpus=PYTHON,
        seeds=(0, 1),
        training={**_SMOKE, "vocab_size": 384},
        input_scales=(1.0, 5.0, 20.0),
        equal={"n_layers": 3},
        sizes=(Size(16, 1, 3),),
        remedies={name: _REMEDIES[name] for name in (scaled(5.0), "norm-match", "untie")},
        remedies_enlarged=True,
        few=1,
        widths=(16, 32),
        vocabularies=(300, 384),
        **_SMOKE_MEASURES,
    ),
    Profile(
        name="smoke",
        purpose="the same",
        corpus=TWO_ROLE,
        seeds=(0, 1),
        training={**_SMOKE, "vocab_size": 96, "language": Settings(classes=4, length=5000)},
        input_scales=(1.0, 10.0, 100.0),
        output_scales=(0.1, 1.0),
        swept=(0.1, 1.0),
        agreements=(0.0, 1.0),
        equal={"n_layers": 3},
        remedies={name: _REMEDIES[name] for name in ("projection", "table-rates")},
        architectures=("gpt2",),
        starts=_STARTS,
        transfers={to: {**fields, "steps": 8, "validation_every": 2} for to, fields in _TO_OTHER_ROLES.items()},
        **_SMOKE_MEASURES,
    ),
    Profile(
        name="quick",
        purpose="two CPU cores, under half an hour for all notebooks",
        corpus=PYTHON,
        seeds=(0, 1),
        training=_SMALL,
        input_scales=(1.0, 5.0, 20.0),
        equal=_EQUAL,
        remedies={name: _REMEDIES[name] for name in (scaled(5.0), "norm-match", "projection", "untie")},
        widths=(32, 64),
        vocabularies=(512, 2048),
        **_FEWER,
    ),
    Profile(
        name="quick",
        purpose="the language whose right answer is known",
        **{
            **_ROLES,
            "input_scales": (0.1, 1.0, 10.0, 100.0),
            "output_scales": (0.1, 1.0),
            "agreements": (0.0, 1.0),
        },
        architectures=ARCHITECTURES,
        **_FEWER,
        lens={"steps": 200},  # its windows hold half as many tokens
        remedies=_REMEDIES,
        few=3,
        starts=_STARTS,
        transfers=_TO_OTHER_ROLES,
    ),
    Profile(
        name="laptop",
        purpose="two CPU cores, about two hours; the committed results",
        corpus=PYTHON,
        seeds=(0, 1, 2, 3, 4),
        training=_SMALL,
        input_scales=SCALES,
        swept=(0.1, 0.3, 1.0),
        equal=_EQUAL,
        sizes=(Size(32, 4, 8), Size(64, 4, 6), Size(128, 8, 9)),
        remedies=_REMEDIES,
        remedies_enlarged=True,
        few=3,
        architectures=ARCHITECTURES,
        widths=(32, 48, 64, 96, 128),
        vocabularies=(512, 2048, 8192),
        starts=_STARTS,
        transfers=_TO_ENGLISH,
    ),
    Profile(
        name="laptop",
        purpose="English: trained on WikiText-2's validation text, evaluated on its test text",
        corpus=WIKITEXT,
        seeds=(0, 1, 2, 3, 4),
        training=_SMALL,
        input_scales=SCALES,
        equal=_EQUAL,
    ),
    Profile(
        name="laptop",
        purpose="the language whose right answer is known",
        swept=(0.03, 0.1, 0.3, 1.0, 3.0),
        remedies=_REMEDIES,
        remedies_enlarged=True,
        architectures=ARCHITECTURES,
        starts=_STARTS,
        transfers=_TO_OTHER_ROLES,
        **_ROLES,
    ),
    Profile(
        name="gpu",
        purpose="one GPU: sized for half an hour on a T4, minutes on an H100",
        corpus=PYTHON,
        seeds=(0, 1, 2),
        input_scales=(0.1, 1.0, 5.0, 20.0),
        **_LARGER,
    ),
    Profile(
        name="gpu",
        purpose="the language whose right answer is known, as on two cores",
        **{**_ROLES, "output_scales": (0.1, 1.0), "agreements": (0.0, 1.0)},
    ),
    Profile(
        name="paper",
        purpose="OLMo-1B as published, for many GPUs under torchrun; the published text was 30B tokens of Dolma v1.7",
        corpus=WIKITEXT_103,
        seeds=(0,),
        training=_PAPER,
        input_scales=(1.0, 5.0),
        shared_start=False,
    ),
):
    PROFILES.setdefault(_profile.name, {})[_profile.corpus] = _profile
COMMITTED = ("laptop",)


def get(name: str, corpus: str | None = None) -> Profile:
    """The profile called `name` on `corpus` (default: its first); ValueError with the names there are otherwise."""
    if name not in PROFILES:
        raise ValueError(f"PROFILE: {name!r} is unknown; choose one of {', '.join(PROFILES)}")
    there = PROFILES[name]
    if corpus is not None and corpus not in there:
        raise ValueError(f"CORPUS: {corpus!r} is no corpus of the profile {name!r}; choose one of {', '.join(there)}")
    return there[corpus or next(iter(there))]
