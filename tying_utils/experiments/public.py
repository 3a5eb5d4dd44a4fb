"""The paper's own comparisons on public checkpoints, or on their miniatures: tidy tables, each beside the published value.

Tables are read alone, one family at a time; only the lenses load models, whole and one after another.
"""

import time
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pandas as pd

from tying_utils.base.console import tqdm
from tying_utils.experiments import alignment
from tying_utils.experiments.judge import Statistic
from tying_utils.experiments.public_models import MINIATURES, PUBLIC, PublicModels
from tying_utils.experiments.public_tables import TABLES
from tying_utils.study.recorded import Manifest, Measured, Recorded

# Part of every table's record: raise it when a measure would give other numbers.
FORMAT = 1


class Public(PublicModels, Recorded):
    """The measured tables of the paper's model families by name (see `TABLES`), read or measured as `Recorded` says.

    models: "miniatures", trained here where they are missing, or "public", whose tables come from the hub. profile decides
    where the tables lie and how large the miniatures are. `families` chooses some of `checkpoints.families()` by name.
    Raises ValueError for an unknown profile, set of models or family.
    """

    format = FORMAT

    def __init__(
        self,
        profile: str = "quick",
        models: str = MINIATURES,
        *,
        families: tuple[str, ...] | None = None,
        fresh: bool = False,
        only_read: bool = False,
        progress: bool = True,
    ) -> None:
        PublicModels.__init__(self, profile, models, families, progress=progress)
        Recorded.__init__(self, profile, models, fresh=fresh, only_read=only_read, progress=progress)
        self.profile = SimpleNamespace(name=profile, corpus=models)  # what a figure asks of the tables that it is drawn from

    @property
    def names(self) -> list[str]:
        """Return the names of the tables."""
        return list(TABLES)

    @property
    def _always(self) -> dict[str, Any]:
        return {"families": list(self.families)}

    def _command(self, name: str) -> str:
        return f"make reproduce PROFILE={self.profile.name}"

    def _read(self, name: str) -> pd.DataFrame | None:
        # Files of earlier versions hold a difference to the published value: of a miniature to a model of 1B it means nothing.
        table = super()._read(name)
        return None if table is None else table.drop(columns="difference", errors="ignore")

    def _measure(self, name: str) -> Measured:
        from tying_utils.training.hardware import choose_hardware

        began = time.monotonic()
        with tqdm(total=len(self.families), desc=f"measuring {name}", disable=not self.progress, leave=False) as bar:
            table = TABLES[name](self, bar)
        return Measured(
            table=table,
            origin=f"measured now on the {'public models' if self.models == PUBLIC else 'miniatures'}",
            device=choose_hardware().device.type,
            seconds=time.monotonic() - began,
            update=self._describe,
        )

    def _describe(self, manifest: Manifest) -> None:
        """Add to the manifest which checkpoints the tables were measured on."""
        manifest["models"] = self.models
        manifest["sources"] = {**manifest.get("sources", {}), **self.sources}

    def _runs_of(self, name: str) -> list[str]:
        return self._runs

    @cached_property
    def _runs(self) -> list[str]:
        """Return the keys of the miniatures' runs, as the profile means them today; public models have none."""
        from tying_utils.study import miniatures

        return [] if self.models == PUBLIC else miniatures.keys(self._wanted, self.profile.name)


def output_bias(table: pd.DataFrame) -> pd.DataFrame:
    """Return the output bias of each family by fit: alignment of W with U minus that with E, a row per family and kind.

    table: of `Public`, "alignment". Columns: corrected, held_out, and published_corrected where there is a published value.
    There is one model of each kind: no interval over training runs.
    """
    fits = table[table["kind"] != "identity"]
    columns = ("corrected", "held_out", "published_corrected")
    bias = {column: alignment.output_bias(fits, column).set_index(["family", "kind"])["output_bias"] for column in columns}
    return pd.DataFrame(bias).reset_index()


def verdicts(public: Public) -> pd.DataFrame:
    """Judge C1 over families, each one pair of models: columns as `claims.verdicts`, "seeds" being the number of families.

    Families differ in more than the tie, so this says whether the bias is theirs in common, not that the tie makes it.
    """
    bias, found = output_bias(public["alignment"]), []
    for kind, column, words in (("orthogonal", "corrected", "chance-corrected"), ("linear", "held_out", "held-out tokens")):
        own = bias[bias["kind"] == kind]
        paper = own.dropna(subset="published_corrected")
        values = ", ".join(f"{row['family']} {row['published_corrected']:.3f}" for row in paper.to_dict("records"))
        label, unit = f"output bias, {kind}, {words}, over families", "corrected alignment"
        judged = Statistic(f"output_bias_{kind}", "C1", label, unit, published=values + ", minus Gaussian chance")
        found.append(judged.row(own[column]))
    table = pd.DataFrame(found)
    table.insert(2, "corpus", public.models)
    return table
