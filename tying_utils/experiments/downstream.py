"""Downstream tasks (arXiv 2603.26663, Table 7) for runs and checkpoints, through EleutherAI's lm-eval: the extra `eval`.

    scores = evaluate({"tied": run, "OLMo": "allenai/OLMo-1B-hf"}, limit=500)  # a row per model, metric and document
    table(scores)                                                            # a row per model, task and metric
    differences(scores, "tied", "OLMo")                                      # paired: both answered the same documents

lm-eval writes the prompts and scores the answers, so the values are those that it prints itself. Tasks are lm-eval's own or
local ones: no code comes from the hub, no model's and no metric's.
"""

from __future__ import annotations

import difflib
import io
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tying_utils.base import files
from tying_utils.base.checks import positive
from tying_utils.base.console import tqdm
from tying_utils.experiments.paired import COLUMNS, WEIGHTED, differences, moved_by_documents, table
from tying_utils.training.config import DTYPES, TrainConfig
from tying_utils.training.hardware import choose_hardware
from tying_utils.training.run_store import Run

__all__ = ["COLUMNS", "TABLE_7", "differences", "evaluate", "table"]

# The rows of Table 7 and lm-eval's names for them. The paper does not say which accuracy its are: acc and acc_norm both come.
TABLE_7 = {
    "WikiText-2 perplexity": "wikitext",
    "PIQA": "piqa",
    "HellaSwag": "hellaswag",
    "Winogrande": "winogrande",
    "ARC-Easy": "arc_easy",
    "ARC-Challenge": "arc_challenge",
    "BoolQ": "boolq",
    "OpenBookQA": "openbookqa",
    "BLiMP": "blimp",
}
_FEWSHOT_SEED = 1234  # lm-eval's own, of the examples in a prompt


def evaluate(
    sources: Mapping[str, str | Path | Run],
    tasks: Sequence[str] = tuple(TABLE_7.values()),
    *,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    include_path: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Let every model answer every task, with as many examples in the prompt as the task says, which is none in Table 7.

    Args:
        sources: name -> a `Run` or the folder of one; or a checkpoint with its tokenizer, as a folder or a hub id, of another
            revision as "id@revision". Into a run's folder of its model goes the tokenizer of its corpus, so
            that lm-eval's own command reads it from then on; text is opened by the corpus' separator.
        tasks: names of tasks, groups or tags that lm-eval knows. Their data come from the hub on first use.
        limit: only the first so many documents of each part; quick, and no random sample.
        batch_size: texts at once.
        device, dtype: as `training.choose_hardware` takes them; dtype "auto" is the checkpoint's own. Log-softmax is float32.
        include_path: a folder with more tasks as lm-eval's YAML files, whose Python functions are run.
        progress: show a bar for each model and task.

    Returns:
        A row per model, metric and document, with `COLUMNS`. What is lost on the way is told in a warning: a question that is
        longer than the model's context loses its beginning, a task with an answer longer than it is left out for that model,
        and so are metrics that are no mean over documents (F1, BLEU).

    Raises:
        ValueError: lm-eval is not installed, an argument of the wrong kind, an unknown task or one whose data cannot be loaded
            or whose metric is code on the hub, a model or tokenizer that cannot be loaded or would need code from the hub.
    """
    if not isinstance(sources, Mapping) or not sources or not all(isinstance(name, str) and name for name in sources):
        raise ValueError(f"sources: a mapping from names to runs or checkpoints is needed, got {sources!r}")
    names = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
    if not names:
        raise ValueError(
            f"tasks: at least one is needed, got {tasks!r}; choose from {', '.join(TABLE_7.values())} or lm-eval's others"
        )
    batch_size = positive("batch_size", batch_size)
    if limit is not None:
        limit = positive("limit", limit)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is unknown; choose one of {', '.join(map(repr, DTYPES))}")
    settings = {"device": str(choose_hardware(device).device), "dtype": dtype, "batch_size": batch_size}
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"include_path: a folder of lm-eval's YAML files is needed, got {str(include_path)!r}")
    _reader_class()
    resolved = {name: _resolved(name, source) for name, source in sources.items()}
    # All data before any model: what is missing is known at once, not after hours.
    loaded = _loaded(names, include_path, progress)
    parts: list[pd.DataFrame] = []
    for name, place in resolved.items():
        parts.extend(_answers(name, place, loaded, limit, settings, progress))
    if not parts:
        raise ValueError(f"tasks: {', '.join(names)}: all were left out, as the warnings say; add another task")
    scores = pd.concat(parts)[list(COLUMNS)]  # a task may be asked for twice, by its name and by a tag
    return scores.drop_duplicates(["model", "task", "part", "metric", "document"], ignore_index=True)


def _resolved(name: str, source: str | Path | Run) -> tuple[str, str]:
    """Return folder or hub id, and revision; of a run the folder of its model, with the tokenizer in it."""
    if not isinstance(source, str | Path | Run):
        raise ValueError(f"sources: {name!r}: a run, a folder or a hub id is needed, got {source!r}")
    folder = source.folder if isinstance(source, Run) else Path(source)
    if (record := files.read_json(folder / "run.json")) is not None:
        return str(_with_tokenizer(name, folder, record)), "main"
    if isinstance(source, str) and not folder.is_dir():
        place, _, revision = source.partition("@")
        return place, revision or "main"
    if not (folder / "config.json").is_file():
        raise ValueError(f"sources: {name!r}: {folder} holds neither a run nor a checkpoint; give a folder with a config.json")
    return str(folder), "main"


def _with_tokenizer(name: str, folder: Path, record: dict[str, Any]) -> Path:
    """Return the folder of the model of the run in `folder`, verified, with its corpus' tokenizer saved in it."""
    from transformers import PreTrainedTokenizerFast

    held = {file: expected for file, expected in record["files"].items() if file.startswith("model/")}
    if not record["finished"] or not all(files.intact(folder / file, expected) for file, expected in held.items()):
        raise ValueError(
            f"sources: {name!r}: the run in {folder} is unfinished or damaged; train it again, finished parts are kept"
        )
    config = TrainConfig.from_dict(record["config"])
    if config.corpus == "two-role":
        raise ValueError(f"sources: {name!r}: a run on the two-role language reads no text; give a run on text")
    corpus = config.load_corpus()
    if corpus.fingerprint != record["corpus"]:
        raise ValueError(
            f"sources: {name!r}: the text of {config.corpus!r} is not the one that the run in {folder} was trained on"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(corpus.folder / "tokenizer.json"), bos_token=corpus.separator, eos_token=corpus.separator
    )
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


class _TooLong(Exception):
    """An answer is longer than the model's context: it has no likelihood."""


@cache
def _reader_class() -> Any:
    try:
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            f"lm-eval is needed for downstream tasks and could not be imported ({error}): pip install '.[eval]' in the checkout"
        ) from error

    class Reader(HFLM):
        """lm-eval's model with one bar per task, and with a warning on texts that do not fit its context.

        By itself it draws a bar for each of BLiMP's 67 parts, logs a line for each text that it cuts, and stops the whole
        evaluation with an AssertionError at an answer that is longer than the context.
        """

        title, shown, cut = "", False, 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with self._bar(len(requests)):
                return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            with self._bar(None):  # it cuts the texts into windows, and has not told how many
                return super().loglikelihood_rolling(requests, disable_tqdm=True)

        # lm-eval's TemplateLM leaves this method to the model; _model_call is where its HFLM asks the network.
        def _loglikelihood_tokens(self, requests: Any, *args: Any, **changes: Any) -> Any:
            longest = max(len(answer) for _, _, answer in requests)
            if longest > self.max_length:
                raise _TooLong(f"an answer of {longest} tokens does not fit the model's context of {self.max_length}")
            self.cut += sum(len(question) + len(answer) > self.max_length + 1 for _, question, answer in requests)
            return super()._loglikelihood_tokens(requests, *args, **changes)

        def _model_call(self, inps: Any, *args: Any, **changes: Any) -> Any:
            self.bar.update(len(inps))
            return super()._model_call(inps, *args, **changes)

        @contextmanager
        def _bar(self, total: int | None) -> Iterator[None]:
            with tqdm(
                total=total, desc=self.title, unit="text", disable=not self.shown, leave=False, file=self.stderr
            ) as self.bar:
                yield

    return Reader


@contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
    """Silence lm-eval's log and, without `bars`, its bars, of which BLiMP alone has hundreds."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if bars else redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _loaded(names: list[str], include_path: str | Path | None, progress: bool) -> dict[str, Any]:
    """Return what lm-eval makes of each of `names`: its tasks with their documents, and the group that they are, if any."""
    import evaluate as metrics_on_the_hub  # type: ignore[import-not-found]  # it comes with lm-eval
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    refused: list[str] = []

    def refuse(metric: str, *_: Any, **__: Any) -> None:
        refused.append(metric)
        raise ValueError(f"the metric {metric!r} is code on the hub")

    with _quiet():
        manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known) or TABLE_7.values()
            raise ValueError(f"tasks: {name!r} is unknown to lm-eval; did you mean one of {', '.join(near)}?")
    loaded: dict[str, Any] = {}
    # lm-eval fetches a metric that it does not know, and runs it, while it loads the task: no option of its own forbids that.
    load, metrics_on_the_hub.load = metrics_on_the_hub.load, refuse
    try:
        with _quiet(bars=progress):  # those of downloads
            for name in tqdm(names, desc="loading tasks", unit="task", disable=not progress, leave=False):
                loaded[name] = manager.load([name])
    except Exception as error:  # whatever the hub client raises without a network
        if not refused:
            raise ValueError(
                f"tasks: {name!r} could not be loaded ({type(error).__name__}: {error}); its data come from the Hugging Face "
                "hub on first use"
            ) from error
    finally:
        metrics_on_the_hub.load = load
    if refused:  # lm-eval goes on without a metric that it could not load
        raise ValueError(
            f"tasks: the metric {refused[0]!r} is code on the hub, which is not run; leave out the task that needs it"
        )
    for task in (task for made in loaded.values() for task in made["tasks"].values()):
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _answers(
    name: str, place: tuple[str, str], loaded: dict[str, Any], limit: int | None, settings: dict[str, Any], progress: bool
) -> Iterator[pd.DataFrame]:
    """Return the scores of one model, a table per task and metric."""
    from lm_eval import evaluate as answer  # type: ignore[import-not-found]

    source, revision = place
    try:
        with _quiet(bars=progress):
            reader = _reader_class()(
                source, revision=revision, backend="causal", softmax_dtype="float32", trust_remote_code=False, **settings
            )
        if not reader.tok_encode("text"):  # transformers makes up an empty tokenizer where a folder has none
            raise ValueError("no tokenizer lies there")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"sources: {name!r}: {source} could not be loaded ({error}); a causal LM with its tokenizer is needed, as a folder "
            "or on the Hugging Face hub, that needs no code of its own"
        ) from error
    reader.shown, reader.stderr = progress, sys.stderr
    for task, made in loaded.items():
        reader.title, reader.cut = f"{name}: {task}", 0
        try:
            with _quiet():
                result = answer(reader, made, limit=limit, bootstrap_iters=0)
        except _TooLong as error:
            warnings.warn(f"{reader.title} left out: {error}", stacklevel=3)
            continue
        if reader.cut:
            warnings.warn(
                f"{reader.title}: {reader.cut} texts are longer than the model's context of {reader.max_length} tokens and "
                "lost their beginning",
                stacklevel=3,
            )
        for scores in _scores(task, result):
            yield scores.assign(model=name)


def _scores(task: str, result: dict[str, Any]) -> Iterator[pd.DataFrame]:
    """Return lm-eval's result on a task, by document: a table per metric that is a mean over documents."""
    found: dict[tuple[str, str], list[pd.DataFrame]] = {}
    values: dict[tuple[str, str], list[float]] = {}
    left_out = set()
    for part, samples in result["samples"].items():
        for metric, chosen in dict.fromkeys((metric, sample["filter"]) for sample in samples for metric in sample["metrics"]):
            rows = [
                (sample["doc_id"], sample["doc_hash"][:16], *_value_and_weight(metric, sample[metric]))
                for sample in samples
                if sample["filter"] == chosen and metric in sample["metrics"]
            ]
            label = metric if chosen == "none" else f"{metric},{chosen}"
            one = pd.DataFrame(rows, columns=["document", "digest", "value", "weight"])
            one = one.assign(task=part, part=part, metric=label)
            value, _ = moved_by_documents(one)
            # lm-eval's own number is the witness: what is averaged otherwise than here is not passed off as it.
            if one["value"].isna().any() or not np.isclose(value, _number(result["results"][part].get(f"{metric},{chosen}"))):
                left_out.add(label)
                continue
            found.setdefault((metric, chosen), []).append(one)
            values.setdefault((metric, chosen), []).append(value)
    if left_out:
        warnings.warn(f"{task}: {', '.join(sorted(left_out))} left out: no mean over documents", stacklevel=4)
    for (metric, chosen), parts in found.items():
        whole = _number(result.get("groups", {}).get(task, {}).get(f"{metric},{chosen}"))
        together = pd.concat(parts)
        yield together.assign(task=task) if np.isclose(whole, np.mean(values[metric, chosen])) else together


def _value_and_weight(metric: str, score: Any) -> tuple[float, float]:
    if metric in WEIGHTED:
        return float(score[0]), float(score[1])
    return _number(score), 1.0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number | np.bool_) else math.nan
