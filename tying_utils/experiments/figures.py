"""Tidy tables to figures at their printed size: every figure by name, drawn, saved, and tied to the tables that it shows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from matplotlib.figure import Figure

from tying_utils.base import files, paths
from tying_utils.experiments import (
    advice,
    alignment,
    cause,
    evolution,
    front,
    gradients,
    ground_truth,
    length,
    overview,
    places,
    position,
    public_figures,
    remedies,
    remedies_by_length,
    scaling,
    sizes,
    style,
    transfer,
    tuned_lens,
)
from tying_utils.experiments.style import Drawing
from tying_utils.experiments.tables import Tables
from tying_utils.study import profiles

_EXPERIMENTS = (overview, sizes, alignment, gradients, tuned_lens, scaling, evolution, ground_truth)
_EXPERIMENTS += (position, cause, public_figures, remedies, places, transfer, length, remedies_by_length, advice, front)
_GALLERIES = [experiment.FIGURES for experiment in _EXPERIMENTS]
FIGURES: dict[str, Drawing] = dict(sorted((name, figure) for gallery in _GALLERIES for name, figure in gallery.items()))


def draw(name: str, tables: Tables) -> Figure:
    """Draw the figure called `name` (a key of `FIGURES`) from tidy tables; ValueError for a name that is unknown."""
    if name not in FIGURES:
        raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(FIGURES)}")
    function = FIGURES[name].function
    with style.styled():
        figure = function(tables)
    words = (function.__doc__ or name).splitlines()[0].removeprefix("Draw ")  # shown as the picture's alternative text
    figure.set_label(words[:1].upper() + words[1:])
    return figure


def folder(name: str, profile: str, corpus: str | None) -> Path:
    """Return where the figure `name` of `corpus` is kept: figures/<profile>, or below it if another corpus is its home."""
    home = FIGURES[name].corpus
    return paths.figures(profile) if corpus in (None, home) else paths.figures(profile) / corpus


def save(figure: Figure, name: str, tables: Any) -> list[Path]:
    """Write NAME.pdf and NAME.png (300 dots per inch) whole into the `folder` of `tables`, and return their paths.

    `tables` is the `study.Study`, `study.Results` or `public.Public` that the figure was drawn from: the checksums of the
    tables that it reads are in the files' metadata (see `source`). Equal input gives equal bytes.
    """
    return write(figure, _folder_of(name, tables), name, _source(name, tables))


def write(figure: Figure, folder: Path, name: str, checksums: Mapping[str, str]) -> list[Path]:
    """Write NAME.pdf and NAME.png into `folder` as `save` does, with the `checksums` of the tables that they show."""
    belongs = json.dumps(checksums, sort_keys=True)
    written = []
    for kind, metadata in (("pdf", {"Keywords": belongs, "CreationDate": None}), ("png", {"Source": belongs})):
        path = folder / f"{name}.{kind}"
        with style.styled(), files.replacing(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
        written.append(path)
    return written


def source(path: Path) -> dict[str, str]:
    """Return the sha256 of each table that a saved PNG was drawn from, by corpus/name; {} if it names none or is unreadable."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return json.loads(image.info["Source"])
    except (OSError, KeyError, ValueError):
        return {}


def _source(name: str, tables: Any) -> dict[str, str]:
    return {key: digest for key, digest in tables.checksums.items() if key.partition("/")[2] in FIGURES[name].needs}


def _folder_of(name: str, tables: Any) -> Path:
    profile = tables.profile
    return folder(name, profile.name, profile.corpus if FIGURES[name].corpus else None)


def publish(name: str, study: Any) -> Figure:
    """Draw a figure from what `save` takes, and save it unless a committed file belongs to these tables.

    A notebook shows it as the value of a cell; beside it the committed figure, where `study` is of another profile.
    """
    figure = draw(name, study)
    kept = [_folder_of(name, study) / f"{name}.{kind}" for kind in ("pdf", "png")]
    current = study.profile.name in profiles.COMMITTED and kept[0].is_file() and source(kept[1]) == _source(name, study)
    if not current:
        save(figure, name, study)
    committed = folder(name, profiles.COMMITTED[0], study.profile.corpus if FIGURES[name].corpus else None) / f"{name}.png"
    if study.profile.name not in profiles.COMMITTED and committed.is_file():
        cast(style.Picture, figure).beside = committed
    return figure


def render(profile: str, progress: bool = True) -> list[Path]:
    """Draw and save every figure of `profile` from its tables on disk alone, on the corpus it is at home in; the paths written.

    Raises ValueError if one of those tables is missing or damaged.
    """
    from tying_utils.base.console import tqdm
    from tying_utils.experiments.public import MINIATURES, Public
    from tying_utils.study import axis
    from tying_utils.study.study import Results

    results, written = Results(profile, only_read=True), []
    homes: dict[str | None, Any] = {None: results, **results.studies, MINIATURES: Public(profile, only_read=True)}
    if profile == axis.PROFILE:
        homes[axis.NAME] = axis.Lengths()
    for name, figure in tqdm(FIGURES.items(), desc=f"drawing {profile}", disable=not progress, leave=False):
        tables = homes.get(figure.corpus)
        if tables is not None and all(table in tables for table in figure.needs):
            written += save(draw(name, tables), name, tables)
    return written
