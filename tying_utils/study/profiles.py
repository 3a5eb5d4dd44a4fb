"""The profiles: one dial for scale. `get` finds one; a new profile, or a new arm of one, is a line here."""

from typing import Any

import pandas as pd

from tying_utils.base.names import NEW_ROLES, PYTHON, TWO_ROLE, WIKITEXT, WIKITEXT_103
from tying_utils.corpora.two_role import Settings
from tying_utils.study.arms import TIED, UNTIED, Arm, Place, scaled
from tying_utils.study.profile import Profile

SCALES = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0)

# The other sizes are TrainConfig's defaults: 4 layers, d 128, V 2048, 400 steps. 512 tokens per step leave time for a second
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
# Three seeds are what a verdict needs; what is trained in front of a reader has no more.
_FEWER_ROLES: dict[str, Any] = {
    "seeds": (0, 1, 2),
    "input_scales": (0.1, 1.0, 10.0, 100.0),
    "output_scales": (0.1, 1.0),
    "agreements": (0.0, 1.0),
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
# A model of 10 million weights on 5 million tokens: 3e14 operations per run, of which a T4 does 4e12/s in float32. A table
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
REMEDIES = (
    scaled(5.0),
    Arm(kind="early x5", remedy={"name": "schedule", "input": 5.0, "stop": 0.25}),
    Arm(kind="late x5", remedy={"name": "schedule", "input": 5.0, "start": 0.25}),
    Arm(kind="norm-match", remedy={"name": "norm-match"}),
    Arm(kind="norm-match, smoothed", remedy={"name": "norm-match", "smoothing": 0.9}),
    Arm(kind="pcgrad", remedy={"name": "pcgrad"}),
    Arm(kind="pcgrad by row", remedy={"name": "pcgrad", "by": "row"}),
    *(
        Arm(kind=name, remedy={"name": name})
        for name in ("shrink", "rare-gate", "coupled-adam", "projection", "spd-map", "untie")
    ),
    Arm(kind="factorised", tied=False, remedy={"name": "factorised"}),
    Arm(kind="table-rates", tied=False, remedy={"name": "table-rates", "input": 3.0}),
)


def _remedies(*kinds: str) -> tuple[Arm, ...]:
    return tuple(arm for kind in kinds for arm in REMEDIES if arm.kind == kind)


# Where time is short: what a lens is trained on, and what chance is estimated from.
_FEWER: dict[str, Any] = {"lens_windows": 480, "lens_budgets": (25, 50, 100), "permutations": 30}
ARCHITECTURES = ("gpt_neox", "gpt2", "llama", "qwen3")  # beside OLMo: rotary and learned positions, with and without biases
# Untied, tied, and ways to a table that leans less, or to two tables in the end.
_REPLAYED = (UNTIED, TIED, *_remedies("input x5", "norm-match"))
_STARTS = (UNTIED, TIED, *_remedies("input x5", "norm-match", "untie"))
# Fine-tuning: at half the peak rate of pretraining.
_TUNING: dict[str, Any] = {"warmup_steps": 10, "table_snapshots": 2}
_ENGLISH = {"steps": 150, "learning_rate": 1e-3, "checkpoint_every": 150, "validation_every": 10}
_TO_ENGLISH: dict[str, dict[str, Any]] = {WIKITEXT: {**_TUNING, **_ENGLISH, "corpus": WIKITEXT}}
_OTHER_ROLES = {"steps": 150, "learning_rate": 2e-3, "checkpoint_every": 150, "validation_every": 5}
_TO_OTHER_ROLES = {to: {**_TUNING, **_OTHER_ROLES, "permuted": role} for to, role in NEW_ROLES.items()}


def _size(d_model: int, n_layers: int, n_layers_equal: int) -> Place:
    return Place(d_model=d_model, n_layers=n_layers, n_layers_equal=n_layers_equal)


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
        sizes=(_size(16, 1, 3),),
        remedies=_remedies("input x5", "norm-match", "untie"),
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
        remedies=_remedies("projection", "table-rates"),
        architectures=("gpt2",),
        starts=_STARTS,
        transfers={to: {**fields, "steps": 8, "validation_every": 2} for to, fields in _TO_OTHER_ROLES.items()},
        **_SMOKE_MEASURES,
    ),
    Profile(
        name="quick",
        purpose="two CPU cores, under half an hour for all notebooks",
        corpus=PYTHON,
        seeds=(0, 1, 2),
        training=_SMALL,
        input_scales=(1.0, 5.0, 20.0),
        equal=_EQUAL,
        remedies=_remedies("input x5", "norm-match", "untie"),
        widths=(32, 64),
        vocabularies=(512, 2048),
        **_FEWER,
    ),
    Profile(
        name="quick",
        purpose="the language whose right answer is known",
        **{**_ROLES, **_FEWER_ROLES},
        architectures=("gpt2", "llama"),
        **_FEWER,
        lens={"steps": 200},  # its windows hold half as many tokens
        remedies=_remedies(
            "input x5", "early x5", "late x5", "norm-match", "coupled-adam", "untie", "factorised", "table-rates"
        ),
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
        sizes=(_size(32, 4, 8), _size(64, 4, 6), _size(128, 8, 9)),
        remedies=REMEDIES,
        remedies_enlarged=True,
        few=3,
        replayed=_REPLAYED,
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
        remedies=REMEDIES,
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
        second_start=False,
    ),
):
    PROFILES.setdefault(_profile.name, {})[_profile.corpus] = _profile
COMMITTED = ("laptop",)


def get(name: str, corpus: str | None = None) -> Profile:
    """Return the profile called `name` on `corpus` (default: its first). Raises ValueError with the names that there are."""
    if name not in PROFILES:
        raise ValueError(f"PROFILE: {name!r} is unknown; choose one of {', '.join(PROFILES)}")
    there = PROFILES[name]
    if corpus is not None and corpus not in there:
        raise ValueError(f"CORPUS: {corpus!r} is no corpus of the profile {name!r}; choose one of {', '.join(there)}")
    return there[corpus or next(iter(there))]


def described(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the columns kind, enlarged and agreement of its arms beside their names, which a file holds alone.

    What an arm is, is in these columns (see `arms.Arm`): its name is for people. Raises ValueError for an arm that no
    profile has.
    """
    known = {name: arm for of in PROFILES.values() for profile in of.values() for name, arm in profile.arms.items()}
    if unknown := set(table["arm"]) - set(known):
        raise ValueError(f"table: no profile has the arms {', '.join(map(repr, sorted(unknown)))}; add them to one")
    columns = ("kind", "enlarged", "agreement")
    return table.assign(**{column: [getattr(known[arm], column) for arm in table["arm"]] for column in columns})
