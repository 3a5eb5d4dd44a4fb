"""The tables of a study: which arms of a profile each is measured of. What measures them is in `tabulate` and `transfer`."""

from collections.abc import Callable, Mapping
from typing import Any

from tying_utils.base.names import ELSEWHERE_SCALE, PAIR, SHARED_START, TIED, TWO_ROLE, UNTIED, scaled
from tying_utils.study.profiles import Profile


def _pair(profile: Profile) -> tuple[str, ...]:
    return PAIR


def _with_untied(arms: tuple[str, ...]) -> tuple[str, ...]:
    return (UNTIED, *arms) if arms else ()


def _at(places: Mapping[str, Any], *arms: str) -> tuple[str, ...]:
    """Each of `arms` (default: those that the claims need) at each of a profile's `places`."""
    return tuple(arm + words for words in places for arm in arms or (*PAIR, scaled(ELSEWHERE_SCALE)))


def _role_arms(profile: Profile) -> tuple[str, ...]:
    return (*PAIR, *profile.scaled, *profile.output_scaled, *profile.agreeing) if profile.corpus == TWO_ROLE else ()


def _sweep_arms(profile: Profile) -> tuple[str, ...]:
    return _with_untied(tuple(profile.sweep))


def _remedied(profile: Profile) -> tuple[str, ...]:
    """The remedies' arms, at equal shape and at equal parameters."""
    return (*profile.remedied, *profile.enlarged)


def _in_text(profile: Profile) -> tuple[str, ...]:
    """The same in a text; in the two-role language the purity of roles says more than alignment does."""
    return () if profile.corpus == TWO_ROLE else _remedied(profile)


def _starts(profile: Profile) -> tuple[str, ...]:
    return tuple(profile.starts)


def _both(profile: Profile) -> tuple[str, ...]:
    return (*profile.starts, *profile.tuned)


# By table its arms; none where the profile has no such table.
TABLES: dict[str, Callable[[Profile], tuple[str, ...]]] = {
    "alignment": _pair,
    "neighbors": _pair,
    "cosines": _pair,
    "control_alignment": lambda profile: (UNTIED, SHARED_START) if profile.shared_start else (),
    "losses": _pair,
    "sizes": lambda profile: profile.sized,
    "gradients": _pair,
    "lens": _pair,
    "lens_budget": _pair,
    "residual": _pair,
    "scaling_alignment": lambda profile: _with_untied(profile.scaled),
    "scaling_neighbors": lambda profile: _with_untied(profile.scaled),
    "scaling_losses": lambda profile: profile.scaled,
    "scaling_lens": lambda profile: profile.scaled,
    "drift": _pair,
    "frequency": _pair,
    "roles": _role_arms,
    "sweep_alignment": _sweep_arms,
    "sweep_share": lambda profile: tuple(profile.sweep),
    "sweep_lens": _sweep_arms,
    "sweep_losses": _sweep_arms,
    "sweep_roles": lambda profile: _sweep_arms(profile) if profile.corpus == TWO_ROLE else (),
    "remedy_losses": _remedied,
    "remedy_alignment": _in_text,
    "remedy_roles": lambda profile: _remedied(profile) if profile.corpus == TWO_ROLE else (),
    "remedy_lens": lambda profile: profile.remedied,
    "remedy_steps": lambda profile: profile.remedied,
    "architecture_alignment": lambda profile: _at(profile.by_architecture),
    "architecture_share": lambda profile: _at(profile.by_architecture, TIED),
    "architecture_lens": lambda profile: _at(profile.by_architecture, *PAIR),
    "architecture_losses": lambda profile: _at(profile.by_architecture),
    "architecture_roles": lambda profile: _at(profile.by_architecture) if profile.corpus == TWO_ROLE else (),
    "grid_alignment": lambda profile: _at(profile.grid),
    "grid_share": lambda profile: _at(profile.grid, TIED),
    "grid_lens": lambda profile: _at(profile.grid, *PAIR),
    "grid_losses": lambda profile: _at(profile.grid),
    "language": lambda profile: (UNTIED,) if profile.corpus == TWO_ROLE else (),
    "unigrams": lambda profile: (UNTIED,) if profile.corpus == TWO_ROLE else (),
    "transfer_losses": _both,
    "transfer_forgetting": _both,
    "transfer_probe": _starts,
}
# Those behind the sliders over both scales.
SWEEP = tuple(name for name in TABLES if name.startswith("sweep_"))
