"""The tables of a study: which arms of a profile each is measured of. What measures them is in `tabulate`."""

from collections.abc import Callable, Iterable

from tying_utils.base.names import TWO_ROLE
from tying_utils.study.arms import PAIR, SECOND_START, SHARED_START, TIED, UNTIED, Arm
from tying_utils.study.profile import Arms, Profile


def _pair(profile: Profile) -> Arms:
    return PAIR


def _with_untied(arms: Arms) -> Arms:
    return (UNTIED, *arms) if arms else ()


def _like(arms: Iterable[Arm], *plain: Arm) -> Arms:
    """Return those of `arms` that are one of `plain` at some place."""
    kinds = [arm.kind for arm in plain]
    return tuple(arm for arm in arms if arm.kind in kinds)


def _in_two_roles(arms: Callable[[Profile], Arms]) -> Callable[[Profile], Arms]:
    """Return `arms` of a profile on the two-role language, and none on a text, whose tokens have no known roles."""
    return lambda profile: arms(profile) if profile.corpus == TWO_ROLE else ()


def _sweep_arms(profile: Profile) -> Arms:
    return _with_untied(profile.sweep)


def _remedied(profile: Profile) -> Arms:
    return (*profile.remedied, *profile.enlarged)


# By table its arms; none where the profile has no such table.
TABLES: dict[str, Callable[[Profile], Arms]] = {
    "alignment": _pair,
    "neighbors": _pair,
    "cosines": _pair,
    "control_alignment": lambda profile: (UNTIED, SHARED_START) if profile.shared_start else (),
    "poles": lambda profile: (*PAIR, SECOND_START) if profile.second_start else (),
    "losses": _pair,
    "sizes": lambda profile: profile.sized,
    "gradients": _pair,
    "lens": _pair,
    "lens_budget": _pair,
    "residual": _pair,
    "ablation": _pair,
    "scaling_alignment": lambda profile: _with_untied(profile.scaled),
    "scaling_neighbors": lambda profile: _with_untied(profile.scaled),
    "scaling_losses": lambda profile: profile.scaled,
    "scaling_lens": lambda profile: profile.scaled,
    "drift": _pair,
    "displacement": lambda profile: profile.replayed,
    "frequency": _pair,
    "roles": _in_two_roles(lambda profile: (*PAIR, *profile.scaled, *profile.output_scaled, *profile.agreeing)),
    "sweep_alignment": _sweep_arms,
    "sweep_share": lambda profile: profile.sweep,
    "sweep_lens": _sweep_arms,
    "sweep_losses": _sweep_arms,
    "sweep_roles": _in_two_roles(_sweep_arms),
    "remedy_losses": _remedied,
    # In the two-role language the purity of roles says more.
    "remedy_alignment": lambda profile: () if profile.corpus == TWO_ROLE else _remedied(profile),
    "remedy_roles": _in_two_roles(_remedied),
    "remedy_lens": lambda profile: profile.remedied,
    "remedy_steps": lambda profile: profile.remedied,
    "architecture_alignment": lambda profile: profile.by_architecture,
    "architecture_share": lambda profile: _like(profile.by_architecture, TIED),
    "architecture_lens": lambda profile: _like(profile.by_architecture, *PAIR),
    "architecture_losses": lambda profile: profile.by_architecture,
    "architecture_roles": _in_two_roles(lambda profile: profile.by_architecture),
    "grid_alignment": lambda profile: profile.grid,
    "grid_share": lambda profile: _like(profile.grid, TIED),
    "grid_lens": lambda profile: _like(profile.grid, *PAIR),
    "grid_losses": lambda profile: profile.grid,
    "language": _in_two_roles(lambda profile: (UNTIED,)),
    "unigrams": _in_two_roles(lambda profile: (UNTIED,)),
    "transfer_losses": lambda profile: (*profile.starts, *profile.tuned),
    "transfer_forgetting": lambda profile: (*profile.starts, *profile.tuned),
    "transfer_probe": lambda profile: profile.starts,
}
# Those behind the sliders over both scales.
SWEEP = tuple(name for name in TABLES if name.startswith("sweep_"))
