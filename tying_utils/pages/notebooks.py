"""Run the numbered notebooks top to bottom, each in a fresh kernel, with its parameters replaced."""

import base64
import mimetypes
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tying_utils.base import files, paths
from tying_utils.base.console import tqdm
from tying_utils.study import profiles

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
START = "start_here.ipynb"  # the idea, in plain torch: no profile
SCHEMATIC = "schematic.png"  # the attachment of a notebook's first cell that shows what it compares
_PICTURE = re.compile(r"(!\[[^\]]*\]\()(?!\w+:)([^)\s]+)")


def numbered(folder: Path = FOLDER) -> list[Path]:
    """Return the notebooks in reading order, the overview last: it reads what the others measured."""
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"folder: {folder} holds no numbered notebook; run from a checkout of the repository")
    return [*found[1:], found[0]] if found[0].name.startswith("00") else found


def everything() -> list[Path]:
    """Return the notebook that comes first, then the numbered ones as `numbered` does."""
    return [FOLDER / START, *numbered()]


def of_profile(path: Path, profile: str) -> dict[str, str]:
    """Return the parameters that run a notebook on `profile`, as `run` takes them: none for the one that has no profile."""
    return {} if path.name == START else {"PROFILE": repr(profile)}


def attach_schematics(folder: Path = FOLDER) -> list[Path]:
    """Attach to the first cell of each notebook the picture of what it compares; return the notebooks that changed.

    An attachment shows wherever the notebook is opened. One that looks the same is left as it is.
    """
    import nbformat

    from tying_utils.experiments import schematics

    changed = []
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        drawn = schematics.png(path.name.split("_")[0])
        kept = notebook.cells[0].get("attachments", {}).get(SCHEMATIC, {}).get("image/png", "")
        if not kept or not schematics.alike(base64.b64decode(kept), drawn):
            notebook.cells[0].attachments = {SCHEMATIC: {"image/png": base64.b64encode(drawn).decode()}}
            with files.replacing(path) as temporary:
                nbformat.write(notebook, temporary)
            changed.append(path)
    return changed


def run(path: Path, target: Path, parameters: Mapping[str, str], *, kernel: str = "python3", progress: bool = True) -> None:
    """Execute the notebook at `path` in its own folder, in a fresh `kernel`, and write the executed copy to `target`.

    `parameters` maps a name to the Python text of its value; each must be there once, as "NAME = ...", at the start of a line
    of the cell tagged "parameters". The copy is written even when a cell fails; it holds the pictures that its text shows, so
    it may be opened anywhere. Raises ValueError for a parameter that is not there, and RuntimeError with the cell's words when
    a cell raises.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    _set_parameters(notebook, path, parameters)
    code = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=code, desc=path.stem, unit="cell", disable=not progress) as bar:
        place = {"metadata": {"path": str(path.parent)}}
        # A kernel warns of a connection in plain text; one that can encrypt it is asked to.
        secret = Config({"KernelManager": {"transport_encryption": "auto"}})
        options = {"config": secret, "timeout": 7200, "kernel_name": kernel, "on_cell_executed": lambda **_: bar.update()}
        try:
            NotebookClient(notebook, resources=place, **options).execute()
        except CellExecutionError as error:
            raise RuntimeError(f"{path.name} failed:\n{error}") from error
        finally:
            _attach_pictures(notebook, path.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, target)


def _attach_pictures(notebook: Any, folder: Path) -> None:
    """Put each picture that a cell's text shows by its place relative to `folder` into the cell."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown"):

        def attach(found: re.Match[str], cell: Any = cell) -> str:
            if not (picture := folder / found[2]).is_file():
                return found[0]
            name = re.sub(r"^[./]+", "", found[2]).replace("/", "-")
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            data = base64.b64encode(picture.read_bytes()).decode()
            cell["attachments"] = cell.get("attachments", {}) | {name: {kind: data}}
            return f"{found[1]}attachment:{name}"

        cell.source = _PICTURE.sub(attach, cell.source)


def _set_parameters(notebook: object, path: Path, parameters: Mapping[str, str]) -> None:
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]  # type: ignore[attr-defined]
    if len(cells) != 1:
        raise ValueError(f"path: {path.name} has {len(cells)} cells tagged 'parameters'; one is needed")
    lines = cells[0].source.splitlines()
    for name, value in parameters.items():
        places = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        if len(places) != 1:
            words = f"{name!r} is there {len(places)} times in the parameters of {path.name}; once is needed"
            raise ValueError(f"parameters: {words}")
        comment = lines[places[0]].partition("#")
        lines[places[0]] = f"{name} = {value}" + (f"  #{comment[2]}" if comment[1] else "")
    cells[0].source = "\n".join(lines)


def reproduce(profile: str, *, notebooks: Sequence[Path] | None = None, progress: bool = True) -> Path:
    """Run every notebook on `profile` and draw its figures; returns the folder of the executed copies.

    A committed profile is measured afresh first: reading back what is committed would reproduce nothing. A table of runs on
    a text that is not on this machine stays as it was committed, with a warning that says how to give it.
    """
    from tying_utils.experiments import figures
    from tying_utils.experiments.public import Public
    from tying_utils.study.study import Results

    results = Results(profile, fresh=profile in profiles.COMMITTED, progress=progress)
    if profile in profiles.COMMITTED:
        for corpus, study in results.studies.items():
            kept = study.without_text()
            for words in dict.fromkeys(kept.values()):
                names = ", ".join(name for name, said in kept.items() if said == words)
                warnings.warn(f"{corpus}: {names} stay as they were committed. {words}", stacklevel=2)
            study.complete(name for name in study.names if name not in kept)
        Public(profile, fresh=True, progress=progress).complete()
    target = paths.root() / "build" / "notebooks" / profile
    for path in notebooks or everything():
        run(path, target / path.name, of_profile(path, profile), progress=progress)
    figures.render(profile, progress=progress)
    return target
