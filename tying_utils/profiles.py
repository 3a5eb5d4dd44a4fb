"""One dial for scale: how large the models are, how many seeds there are, and which arms are trained."""

from dataclasses import dataclass, field
from typing import Any

from tying_utils.config import TrainConfig

UNTIED, TIED, SHARED_START = "untied", "tied", "shared start"
SCALES = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0)  # on the input path; 1 is the ordinary tied arm


def scaled(scale: float) -> str:
    """The name of the arm that multiplies the input path's gradient by `scale`."""
    return TIED if scale == 1 else f"input x{scale:g}"


SCALED = tuple(scaled(scale) for scale in SCALES if scale != 1)


@dataclass(frozen=True)
class Profile:
    """A scale to run the notebooks at. `training` holds the fields of TrainConfig that differ from its defaults."""

    name: str
    purpose: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)
    lens: dict[str, Any] = field(default_factory=dict)  # arguments of measures.lens.train_lens
    lens_windows: int = 960  # of the training text, to train lenses on
    lens_budgets: tuple[int, ...] = (25, 50, 100, 200, 400)  # steps of a lens from the identity
    evaluation_windows: int = 64  # of the held-out text, for lenses and the residual stream
    permutations: int = 20  # of rows, for chance

    def config(self, arm: str, seed: int) -> TrainConfig:
        """The training condition of one arm and seed.

        Tied and untied arms start independently; scaled arms start where the tied one does, so that they differ in the scale
        alone; "shared start" is the control: a tied arm that starts from the untied arm's input table and trunk. The data
        come in one order for all arms of a seed.
        """
        if arm not in (UNTIED, TIED, SHARED_START, *SCALED):
            raise ValueError(f"arm: {arm!r} is unknown; choose one of {(UNTIED, TIED, SHARED_START, *SCALED)}")
        scales = {scaled(scale): scale for scale in SCALES}
        return TrainConfig(
            **self.training,
            tied=arm != UNTIED,
            input_scale=scales.get(arm, 1.0),
            init_seed=1000 + seed if arm in (UNTIED, SHARED_START) else seed,
            data_seed=seed,
        )


# The other sizes are TrainConfig's defaults: 4 layers, d 128, V 2048, 400 steps. 512 tokens a step leave time for a second
# seed; a warmup over the first quarter spares the untied arm the early spikes that set it back by half a nat on some seeds.
_SMALL = {"context": 64, "batch_size": 8, "warmup_steps": 100}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "smoke",
            "for the tests: every step of every notebook, at a size that shows nothing",
            seeds=(0, 1),
            arms=(UNTIED, TIED, *SCALED),
            training={
                "vocab_size": 384,
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
            },
            lens={"steps": 5},
            lens_budgets=(2, 4),
            lens_windows=16,
            evaluation_windows=8,
            permutations=5,
        ),
        Profile(
            "quick",
            "two CPU cores, about ten minutes for all notebooks",
            seeds=(0, 1),
            arms=(UNTIED, TIED, *SCALED),
            training=_SMALL,
        ),
        Profile(
            "laptop",
            "two CPU cores, about half an hour; the committed results",
            seeds=(0, 1, 2),
            arms=(UNTIED, TIED, *SCALED, SHARED_START),
            training=_SMALL,
        ),
    )
}
COMMITTED = ("laptop",)


def get(name: str) -> Profile:
    """The profile called `name`; ValueError with the names there are otherwise."""
    if name not in PROFILES:
        raise ValueError(f"PROFILE: {name!r} is unknown; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
