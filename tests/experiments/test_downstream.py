import json
import logging
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tying_utils import models
from tying_utils.corpora.corpus import SEPARATOR
from tying_utils.experiments import downstream, published
from tying_utils.experiments.downstream import COLUMNS, TABLE_7, differences, evaluate, table
from tying_utils.measures.perplexity import perplexity
from tying_utils.measures.statistics import mean_interval

CONTEXT = 64


def scored(
    model: str, values: Any, *, weights: Any = None, metric: str = "acc", part: str = "piqa", task: str = ""
) -> pd.DataFrame:
    """Rows as `evaluate` gives them, document i with values[i]."""
    n = len(values)
    return pd.DataFrame(
        {
            "model": model,
            "task": task or part,
            "part": part,
            "metric": metric,
            "document": range(n),
            "digest": [f"{part}-{i}" for i in range(n)],
            "value": np.asarray(values, dtype=float),
            "weight": np.ones(n) if weights is None else np.asarray(weights, dtype=float),
        }
    )


def only(frame: pd.DataFrame) -> Any:
    assert len(frame) == 1
    return frame.iloc[0]


# Paired statistics, on scores made by hand.


def test_accuracy_is_a_mean_with_its_standard_error():
    row = only(table(scored("tied", [1, 0, 1, 1])))
    assert (row["model"], row["task"], row["metric"], row["value"], row["documents"]) == ("tied", "piqa", "acc", 0.75, 4)
    assert row["standard_error"] == pytest.approx(0.5 / 2)


def test_difference_is_paired():
    first, second = [1, 0, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 1, 0]
    row = only(differences(pd.concat([scored("a", first), scored("b", second)]), "a", "b"))
    expected = mean_interval(np.subtract(second, first))
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert row["standard_error"] == pytest.approx(np.std(np.subtract(second, first), ddof=1) / math.sqrt(8))
    assert row["documents"] == 8


def test_difference_turns_its_sign_and_is_nothing_to_itself():
    scores = pd.concat([scored("a", [1, 0, 0, 1]), scored("b", [1, 1, 1, 0])])
    there, back = only(differences(scores, "a", "b")), only(differences(scores, "b", "a"))
    assert (there["difference"], there["low"], there["high"]) == (-back["difference"], -back["high"], -back["low"])
    same = only(differences(scores, "a", "a"))
    assert (same["difference"], same["standard_error"], same["low"], same["high"]) == (0, 0, 0, 0)


def test_perplexity_is_taken_over_all_words_together():
    nats, words = [-10.0, -60.0, -8.0], [4, 12, 4]
    value = math.exp(78 / 20)
    row = only(table(scored("tied", nats, weights=words, metric="word_perplexity", part="wikitext")))
    assert row["value"] == pytest.approx(value)
    assert only(table(scored("tied", nats, weights=words, metric="bits_per_byte")))["value"] == pytest.approx(3.9 / math.log(2))
    assert only(table(scored("tied", [-1.0, -3.0], metric="perplexity")))["value"] == pytest.approx(math.exp(2))


@pytest.mark.parametrize("metric", ["word_perplexity", "bits_per_byte", "acc"])
def test_standard_errors_agree_with_a_bootstrap_over_documents(metric):
    draw = np.random.default_rng(0)
    n, resampled = 150, 2000
    words = draw.integers(50, 400, n)
    hard = draw.normal(4, 0.6, n)
    nats = [-words * (hard + draw.normal(shift, 0.1, n)) for shift in (0, 0.05)]
    if metric == "acc":
        words, nats = np.ones(n), [(draw.random(n) < 0.3 + 0.2 * (hard > 4)).astype(float) for _ in range(2)]
    scores = pd.concat([scored(name, x, weights=words, metric=metric) for name, x in zip("ab", nats, strict=True)])

    picks = draw.integers(n, size=(resampled, n))
    curve = {"word_perplexity": lambda r: np.exp(-r), "bits_per_byte": lambda r: -r / math.log(2), "acc": lambda r: r}[metric]
    a, b = (curve(x[picks].sum(1) / words[picks].sum(1)) for x in nats)
    assert table(scores)["standard_error"].to_numpy() == pytest.approx([a.std(), b.std()], rel=0.1)
    row = only(differences(scores, "a", "b"))
    assert row["standard_error"] == pytest.approx((b - a).std(), rel=0.1)
    if metric != "acc":  # where the documents' hardness is most of the spread, pairing takes it out
        assert row["standard_error"] < 0.4 * a.std()


def test_parts_count_evenly():
    answers = {("a", "x"): [1, 1, 0, 1], ("a", "y"): [0, 1], ("b", "x"): [1, 1, 1, 1], ("b", "y"): [1, 1]}
    scores = pd.concat([scored(model, values, part=part, task="blimp") for (model, part), values in answers.items()])
    first, second = (row for _, row in table(scores).iterrows())
    assert first["value"] == (0.75 + 0.5) / 2 and second["value"] == 1 and first["documents"] == 6
    assert first["standard_error"] == pytest.approx(math.sqrt(0.25**2 + 0.5**2) / 2)
    row = only(differences(scores, "a", "b"))
    assert row["difference"] == 0.375 and row["standard_error"] == pytest.approx(first["standard_error"])
    assert (row["high"] - row["low"]) / 2 == pytest.approx(2.776445 * row["standard_error"])  # Student t, 6 - 2 degrees


def test_intervals_of_differences_cover_the_truth():
    draw, inside = np.random.default_rng(1), 0
    for _ in range(150):
        hard = draw.random(80)
        first, second = (draw.random(80) < 0.2 + 0.6 * hard for _ in range(2))
        row = only(differences(pd.concat([scored("a", first), scored("b", second)]), "a", "b"))
        inside += row["low"] <= 0 <= row["high"]
    assert 0.9 <= inside / 150 <= 0.99


def test_one_document_says_nothing_of_others():
    scores = pd.concat([scored(name, [-7.3], weights=[3.1], metric="bits_per_byte") for name in "ab"])
    assert table(scores)["standard_error"].isna().all()
    row = only(differences(scores, "a", "b"))
    assert row["difference"] == 0 and row[["standard_error", "low", "high"]].isna().all()


def test_order_of_rows_and_a_file_between_do_not_matter(tmp_path):
    draw = np.random.default_rng(2)
    scores = pd.concat(
        [scored(name, draw.normal(size=9) - 3, weights=range(1, 10), metric="byte_perplexity") for name in "ab"]
        + [scored(name, draw.integers(2, size=9), part=part, task="blimp") for name in "ab" for part in ("x", "y")]
    )
    scores.to_csv(tmp_path / "scores.csv", index=False)
    again = pd.read_csv(tmp_path / "scores.csv").sample(frac=1, random_state=0)
    expected = differences(scores, "a", "b")
    measured = differences(again, "a", "b").set_index(["task", "metric"])
    keys = pd.MultiIndex.from_frame(expected[["task", "metric"]])
    pd.testing.assert_frame_equal(measured.loc[keys].reset_index(), expected)


def test_only_tasks_of_both_are_compared():
    scores = pd.concat([scored("a", [1, 0]), scored("a", [1, 0], part="boolq"), scored("b", [1, 1], part="boolq")])
    assert list(differences(scores, "a", "b")["task"]) == ["boolq"]


def test_bad_scores_are_named():
    scores = pd.concat([scored("a", [1, 0, 1]), scored("b", [1, 1])])
    with pytest.raises(ValueError, match=r"^scores: 'a' and 'b' answered unlike documents of 'piqa', 1 and 0 of them alone"):
        differences(scores, "a", "b")
    other = scored("c", [1, 0, 1]).assign(digest="another text")
    with pytest.raises(ValueError, match=r"^scores: 'a' and 'c' answered unlike documents of 'piqa', 3 and 3 of"):
        differences(pd.concat([scores, other]), "a", "c")
    with pytest.raises(ValueError, match=r"^second: 'd' is no model of scores; choose one of 'a', 'b'"):
        differences(scores, "a", "d")
    with pytest.raises(ValueError, match=r"^first: 7 is no model"):
        differences(scores, 7, "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^scores: the rows of evaluate are needed, got no column digest, weight"):
        table(scores.drop(columns=["digest", "weight"]))
    with pytest.raises(ValueError, match=r"^scores: the rows of evaluate are needed, got none"):
        table(scores[:0])
    with pytest.raises(ValueError, match=r"^scores: finite values and weights are needed, got NaN"):
        table(scored("a", [1, math.nan]))
    with pytest.raises(ValueError, match=r"^scores: each document once is needed, got 3 rows again"):
        table(pd.concat([scores, scored("a", [1, 0, 1])]))


def result(score: Callable[[int], dict[str, Any]], printed: dict[str, float], n: int = 4) -> dict[str, Any]:
    """What lm-eval gives for a task of n documents."""
    about = [{"doc_id": i, "doc_hash": f"{i:064d}", "filter": "none", "metrics": list(score(i))} for i in range(n)]
    samples = [{**sample, **score(i)} for i, sample in enumerate(about)]
    return {"samples": {"piqa": samples}, "results": {"piqa": {f"{metric},none": x for metric, x in printed.items()}}}


def test_rows_come_from_lm_evals_samples():
    printed = {"acc": 0.75, "word_perplexity": math.exp(3.6)}
    given = result(lambda i: {"acc": float(i > 0), "word_perplexity": (-6.0 * i, i + 1)}, printed)
    acc, words = downstream._scores("piqa", given)
    assert acc[["document", "value", "weight"]].to_numpy().tolist() == [[0, 0, 1], [1, 1, 1], [2, 1, 1], [3, 1, 1]]
    assert words[["document", "value", "weight"]].to_numpy().tolist() == [[0, 0, 1], [1, -6, 2], [2, -12, 3], [3, -18, 4]]
    assert set(words["task"]) == set(words["part"]) == {"piqa"} and set(words["metric"]) == {"word_perplexity"}
    assert words["digest"].str.len().eq(16).all()


@pytest.mark.parametrize("printed", [0.0, 0.3])
def test_a_score_that_is_no_mean_is_left_out_even_where_it_is_zero(printed):
    given = result(lambda i: {"mcc": (i % 2, 1), "acc": 1.0, "median": float(i)}, {"mcc": printed, "acc": 1.0, "median": 2.0})
    with pytest.warns(UserWarning, match=r"^piqa: mcc, median left out: no mean over documents"):
        (acc,) = downstream._scores("piqa", given)
    assert set(acc["metric"]) == {"acc"}


# What is said before lm-eval is asked.


def test_table_7_is_the_papers():
    assert list(TABLE_7) == [name for name in published.load()["table_7_downstream_step_10000"] if name != "columns"]


@pytest.mark.parametrize("missing", ["lm_eval", "lm_eval.models.huggingface"])
def test_a_missing_extra_says_how_to_get_it(monkeypatch, missing):
    downstream._reader_class.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"lm-eval is needed .* pip install '\.\[eval\]'"):
        evaluate({"tied": "org/model"}, progress=False)
    downstream._reader_class.cache_clear()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sources": {}}, "sources: a mapping from names"),
        ({"sources": "org/model"}, "sources: a mapping from names"),
        ({"sources": {1: "org/model"}}, "sources: a mapping from names"),
        ({"tasks": []}, "tasks: at least one is needed"),
        ({"limit": 0}, "limit: an integer of at least 1"),
        ({"limit": 0.5}, "limit: an integer of at least 1"),
        ({"batch_size": "auto"}, "batch_size: an integer of at least 1"),
        ({"device": "abacus"}, "device: 'abacus' is not on this machine"),
        ({"dtype": "int8"}, "dtype: 'int8' is unknown; choose one of 'auto'"),
        ({"include_path": "no such folder"}, "include_path: a folder of lm-eval's YAML files is needed, got 'no such folder'"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, changes, named):
    monkeypatch.setattr(downstream, "_reader_class", lambda: pytest.fail("asked too early"))
    with pytest.raises(ValueError, match=rf"^{named}"):
        evaluate(**{"sources": {"tied": "org/model"}, "progress": False, **changes})


@pytest.fixture
def without_lm_eval(monkeypatch) -> None:
    """Sources are looked at, and nothing beyond them."""
    monkeypatch.setattr(downstream, "_reader_class", lambda: None)
    monkeypatch.setattr(downstream, "_loaded", lambda *_: pytest.fail("the source was not refused"))


@pytest.mark.usefixtures("without_lm_eval")
def test_bad_sources_are_named(tmp_path, home, tiny, damaging):
    from tying_utils.training import run_store, train

    def refused(source: Any, words: str) -> None:
        with pytest.raises(ValueError, match=rf"^sources: 'mine': .*{words}"):
            evaluate({"mine": source}, progress=False)

    refused(7, "a run, a folder or a hub id is needed, got 7")
    refused(tmp_path, "holds neither a run nor a checkpoint")
    refused(Path("no such folder"), "holds neither a run nor a checkpoint")
    roles = {"corpus": "two-role", "path": None, "vocab_size": 64, "language": {"classes": 4, "length": 4000}}
    refused(train(tiny(**roles), progress=False), "a run on the two-role language reads no text")
    run = train(tiny(), progress=False)
    record = run_store.files.read_json(run.folder / "run.json")
    assert record is not None
    run_store.files.write_json(run.folder / "run.json", {**record, "corpus": {**record["corpus"], "sha256": "0"}})
    refused(run, "the text of 'text' is not the one that the run in .* was trained on")
    run_store.files.write_json(run.folder / "run.json", {**record, "finished": False})
    refused(str(run.folder), "is unfinished or damaged")
    run_store.files.write_json(run.folder / "run.json", record)
    damaging(run.folder / "model" / "config.json", "flipped")
    refused(run.folder, "is unfinished or damaged")


# Through lm-eval, offline: tasks and models are made here.

COLOURS = ("ochre", "olive", "white", "black", "brown", "indigo", "yellow", "purple")
QUESTION = """
tag: hues
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
PAGES = """
task: pages
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
GROUP = """
group: colours
task:
  - colours_sky
  - colours_sea
aggregate_metric_list:
  - metric: acc
    aggregation: mean
    weight_by_size: false
"""


class Made:
    """A folder of tasks, their documents by task, and two models, tied and untied, with a tokenizer of bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks = folder / "tasks"
        self.tasks.mkdir()
        draw = random.Random(0)
        self.documents: dict[str, list[dict[str, Any]]] = {}
        for part, count in (("sky", 9), ("sea", 5)):
            asked = [f"Of what colour is {part} {draw.randrange(100)}?" for _ in range(count)]
            documents = [{"question": q, "choices": draw.sample(COLOURS, 3), "answer": draw.randrange(3)} for q in asked]
            self.add(f"colours_{part}", f"task: colours_{part}\n{QUESTION}", documents)
        words = ("boat", "is", "\u00fcber", "under", "lemon")
        pages = [{"page": " ".join(draw.choices(words, k=k))} for k in (3, 9, 40, 5, 30, 12)]
        self.add("pages", PAGES, pages)
        (self.tasks / "colours.yaml").write_text(GROUP, encoding="utf-8")
        for name in ("tied", "untied"):
            self.checkpoint(name, tied=name == "tied").save_pretrained(folder / name)

    def add(self, name: str, words: str, documents: list[dict[str, Any]]) -> None:
        self.documents[name] = documents
        data = self.folder / f"{name}.json"
        data.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
        place = {"data_files": {"test": str(data)}, "cache_dir": str(self.folder / "cache")}
        text = f"{words}\ndataset_path: json\ndataset_kwargs: {json.dumps(place)}\n"
        (self.tasks / f"{name}.yaml").write_text(text, encoding="utf-8")

    def checkpoint(self, name: str, **changes: Any) -> Any:
        from tokenizers import Tokenizer, decoders, pre_tokenizers
        from tokenizers.models import BPE
        from transformers import PreTrainedTokenizerFast

        alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(BPE({sign: i for i, sign in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<|endoftext|>"])
        end = "<|endoftext|>"
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(self.folder / name)
        sizes = {"vocab_size": len(alphabet), "d_model": 16, "n_layers": 2, "n_heads": 2, "context": CONTEXT}
        model = models.build("olmo", **{"tied": True, "seed": sum(map(ord, name)), **sizes, **changes})
        with torch.no_grad():
            for parameter in model.parameters():  # far enough from uniform that choices differ
                parameter.mul_(6)
        return model.eval()

    def sources(self) -> dict[str, str | Path]:
        return {"tied": str(self.folder / "tied"), "untied": self.folder / "untied"}


@pytest.fixture(scope="module")
def only_own_tasks() -> Iterator[None]:
    """lm-eval reads its own thousands of tasks for ten seconds: here it knows none of them."""
    tasks = pytest.importorskip("lm_eval.tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
        yield


@pytest.fixture(scope="module")
def made(only_own_tasks, tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def asking(made) -> Callable[..., pd.DataFrame]:
    def ask(**changes: Any) -> pd.DataFrame:
        usual = {"sources": made.sources(), "tasks": ["colours", "pages"], "device": "cpu", "include_path": made.tasks}
        return evaluate(**{**usual, "progress": False, **changes})

    return ask


@pytest.fixture(scope="module")
def scores(asking) -> pd.DataFrame:
    return asking()


def by_hand(folder: Path, given: str, predicted: str) -> float:
    """Log-likelihood of bytes after other bytes (or after the separator), in nats, by the model's own forward pass."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before, after = (tokenizer.encode(text) if text else [tokenizer.eos_token_id] for text in (given, predicted))
    assert len(before) + len(after) <= CONTEXT + 1
    with torch.no_grad():
        log_p = model(torch.tensor([[*before, *after]])).logits[0].double().log_softmax(-1)
    return float(sum(log_p[len(before) + i - 1, token] for i, token in enumerate(after)))


def test_rows_of_evaluate(scores, made):
    assert list(scores.columns) == list(COLUMNS)
    assert list(dict.fromkeys(scores["model"])) == ["tied", "untied"]
    counts = scores.groupby(["model", "task", "part", "metric"], sort=False).size()
    for model in ("tied", "untied"):
        one = counts[model]
        acc = {(task, part): n for (task, part, metric), n in one.items() if metric == "acc"}
        assert acc == {("colours", "colours_sky"): 9, ("colours", "colours_sea"): 5}
        # The group has no acc_norm of its own: its parts stand for themselves.
        assert one["colours_sky", "colours_sky", "acc_norm"] == 9 and one["colours_sea", "colours_sea", "acc_norm"] == 5
        assert [one["pages", "pages", name] for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")] == [6, 6, 6]
    assert not scores.duplicated(["model", "metric", "part", "document"]).any()
    assert scores["digest"].nunique() == len({json.dumps(d) for documents in made.documents.values() for d in documents})


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_choices_are_the_models_own(scores, made, name):
    """Right is where the right answer, and of acc_norm the right answer a character, is the likeliest."""
    mine = scores[(scores["model"] == name) & (scores["part"] == "colours_sky")].set_index(["metric", "document"])["value"]
    seen: dict[str, set[int]] = {"acc": set(), "acc_norm": set()}
    for i, document in enumerate(made.documents["colours_sky"]):
        nats = [by_hand(made.folder / name, document["question"], f" {choice}") for choice in document["choices"]]
        for metric, lengths in (("acc", [1] * 3), ("acc_norm", list(map(len, document["choices"])))):
            best = int(np.argmax(np.divide(nats, lengths)))
            assert mine[metric, i] == (best == document["answer"])
            seen[metric].add(best)
    assert all(len(answers) > 1 for answers in seen.values())  # else any order of the choices would do


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_perplexity_of_text_is_the_models_own(scores, made, name):
    mine = scores[(scores["model"] == name) & (scores["metric"] == "word_perplexity")].set_index("document")
    texts = [document["page"] for document in made.documents["pages"]]
    assert list(mine["weight"]) == [len(text.split()) for text in texts]
    short = [i for i, text in enumerate(texts) if len(text.encode()) <= CONTEXT]
    assert short and len(short) < len(texts)  # longer texts are read in pieces
    for i in short:
        assert mine["value"][i] == pytest.approx(by_hand(made.folder / name, "", texts[i]), rel=1e-5)
    in_bits = only(table(scores[(scores["model"] == name) & (scores["metric"] == "bits_per_byte")]))["value"]
    size = sum(len(text.encode()) for text in texts)
    assert in_bits == pytest.approx(-mine["value"].sum() / size / math.log(2))


def test_table_is_what_lm_eval_prints(scores, made, only_own_tasks):
    lm_eval = pytest.importorskip("lm_eval")
    manager = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(made.tasks))
    model, options = f"pretrained={made.folder / 'untied'}", {"device": "cpu", "task_manager": manager, "bootstrap_iters": 10}
    printed = lm_eval.simple_evaluate("hf", model, tasks=["colours", "pages"], **options)
    assert printed is not None
    mine = table(scores[scores["model"] == "untied"]).set_index(["task", "metric"])
    assert len(mine) == 6
    for task, metric in mine.index:
        theirs: Any = printed["results"][task]
        assert mine["value"][task, metric] == pytest.approx(theirs[f"{metric},none"], rel=1e-6)
        if "perplexity" not in metric and metric != "bits_per_byte":  # for those it has no standard error
            assert mine["standard_error"][task, metric] == pytest.approx(theirs[f"{metric}_stderr,none"])
    assert mine["standard_error"].notna().all()
    difference = differences(scores, "tied", "untied").set_index(["task", "metric"])
    both = table(scores).set_index(["model", "task", "metric"])["value"]
    assert difference["difference"].to_dict() == pytest.approx((both["untied"] - both["tied"]).to_dict())
    assert difference["standard_error"].notna().all() and (difference["standard_error"] > 0).any()


def test_models_do_not_touch_each_other(scores, asking, made):
    swapped = asking(sources=dict(reversed(made.sources().items())), batch_size=3)
    one, other = (frame.sort_values(["model", "part", "metric", "document"], ignore_index=True) for frame in (swapped, scores))
    pd.testing.assert_frame_equal(one, other, rtol=1e-5)


def test_a_limit_takes_the_first_documents(scores, asking):
    few = asking(limit=2)
    assert set(few["document"]) == {0, 1}
    keys = ["model", "part", "metric", "document"]
    whole = scores.set_index(keys).loc[list(few[keys].itertuples(index=False, name=None))].reset_index()
    pd.testing.assert_frame_equal(few[[*keys, "value"]], whole[[*keys, "value"]], rtol=1e-5)


def test_a_task_that_is_asked_for_twice_counts_once(scores, asking):
    twice = asking(tasks=["hues", "colours_sky", "colours"])
    counts = table(twice).query("model == 'tied'").set_index(["task", "metric"])["documents"]
    parts = {(f"colours_{part}", metric): n for part, n in (("sky", 9), ("sea", 5)) for metric in ("acc", "acc_norm")}
    assert counts.to_dict() == {**parts, ("colours", "acc"): 14}


def test_a_run_is_read_with_its_own_tokenizer(asking, made, home, tiny):
    from tying_utils.training import train

    config = tiny(context=64)
    run = train(config, progress=False)
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    both = asking(sources={"run": run, "its folder": str(run.folder)}, tasks="pages")
    as_checkpoint = asking(sources={"model": run.folder / "model"}, tasks="pages")  # the tokenizer lies there by now
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.array_equal(np.random.get_state()[1], generators[1])  # type: ignore[index]
    one, other = (part.drop(columns="model").reset_index(drop=True) for _, part in both.groupby("model", sort=False))
    pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(one, as_checkpoint.drop(columns="model"))
    assert train(config, progress=False).folder == run.folder  # the run is as whole as before

    corpus, model = config.load_corpus(), run.model()
    end = corpus.tokenizer.token_to_id(SEPARATOR)
    values = one[one["metric"] == "word_perplexity"].set_index("document")["value"]
    read = 0
    for i, document in enumerate(made.documents["pages"]):
        ids = torch.tensor([[end, *corpus.tokenizer.encode(document["page"]).ids]])
        if ids.shape[1] <= config.context + 1:
            result = perplexity(model, ids, progress=False)
            assert values[i] == pytest.approx(-result.nats, rel=1e-5)
            read += 1
    assert read


def test_a_question_longer_than_the_context_is_told_of(asking, made):
    # A space and five letters follow; what the last token would predict is not asked, so 59 bytes fit and 60 do not.
    long = [{"question": "?" * n, "choices": COLOURS[:3], "answer": 0} for n in (59, 60, 90)]
    made.add("stories", f"task: stories\n{QUESTION}", long)
    with pytest.warns(UserWarning, match=r"^tied: stories: 6 texts are longer than the model's context of 64 tokens and lost"):
        scores = asking(sources={"tied": made.folder / "tied"}, tasks=["stories"])
    assert len(scores) == 6


def test_a_task_with_an_answer_longer_than_the_context_is_left_out(asking, made):
    document = {"question": "And then?", "choices": ["yes", "no" * 40], "answer": 0}
    made.add("long_answers", f"task: long_answers\n{QUESTION}", [document])
    words = r"^tied: long_answers left out: an answer of 81 tokens does not fit the model's context of 64$"
    with pytest.warns(UserWarning, match=words):
        scores = asking(sources={"tied": made.folder / "tied"}, tasks=["long_answers", "pages"])
    assert set(scores["task"]) == {"pages"}
    with pytest.raises(ValueError, match=r"^tasks: long_answers: all were left out"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asking(tasks=["long_answers"])


def test_what_is_no_mean_over_documents_is_left_out(asking, made):
    text = QUESTION.replace("acc_norm", "mcc")
    made.add("judged", f"task: judged\n{text}", made.documents["colours_sky"])
    with pytest.warns(UserWarning, match=r"^judged: mcc left out: no mean over documents"):
        scores = asking(tasks=["judged"], limit=4)
    assert set(scores["metric"]) == {"acc"}
    made.add("only_judged", f"task: only_judged\n{text.replace('  - metric: acc', '')}", made.documents["colours_sky"])
    with pytest.raises(ValueError, match=r"^tasks: only_judged: all were left out"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asking(tasks=["only_judged"])


def test_a_group_that_weighs_its_parts_is_given_by_part(asking, made):
    weighed = GROUP.replace("group: colours", "group: weighed").replace("false", "true")
    (made.tasks / "weighed.yaml").write_text(weighed, encoding="utf-8")
    scores = asking(tasks=["weighed"])
    assert set(scores["task"]) == {"colours_sky", "colours_sea"}


def test_code_from_the_hub_is_refused(asking, made):
    text = QUESTION.replace("acc_norm", "somebodys_metric")
    made.add("foreign", f"task: foreign\n{text}", made.documents["colours_sky"])
    with pytest.raises(ValueError, match=r"^tasks: the metric 'somebodys_metric' is code on the hub, which is not run"):
        asking(tasks=["foreign"])
    made.checkpoint("foreign").save_pretrained(made.folder / "foreign")
    file = made.folder / "foreign" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    (made.folder / "foreign" / "code.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    named = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    file.write_text(json.dumps({**config, "model_type": "foreign", "auto_map": named}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^sources: 'foreign': .* could not be loaded"):
        asking(sources={"foreign": made.folder / "foreign"})


def test_bad_tasks_and_models_are_named(asking, made):
    with pytest.raises(ValueError, match=r"^tasks: 'colour' is unknown to lm-eval; did you mean one of .*colours"):
        asking(tasks=["colour"])
    made.add("gone", f"task: gone\n{QUESTION}", made.documents["colours_sky"])
    (made.folder / "gone.json").unlink()
    with pytest.raises(ValueError, match=r"^tasks: 'gone' could not be loaded \(FileNotFoundError"):
        asking(tasks=["gone"])
    made.checkpoint("mute").save_pretrained(made.folder / "mute")
    for file in (made.folder / "mute").glob("token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"^sources: 'mute': .* could not be loaded"):
        asking(sources={"mute": made.folder / "mute"})


def test_progress_is_one_bar_that_can_be_silenced(asking, capsys):
    level = logging.getLogger("lm_eval").level
    asking(limit=2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    asking(limit=2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "tied: colours" in captured.err and "untied: pages" in captured.err
    assert "Running" not in captured.err
    assert logging.getLogger("lm_eval").level == level


def test_table_7_with_documents_of_its_form(made, monkeypatch):
    """Through lm-eval's own prompts, on documents made up here: each task has the metrics that Table 7 may mean."""
    manager = pytest.importorskip("lm_eval.tasks.manager")
    datasets = pytest.importorskip("datasets")
    choices = {"text": ["a boat", "the sea", "no", "lemons"], "label": ["A", "B", "C", "D"]}
    boat = {"question": "is it a boat", "passage": "It floats.", "label": 1, "idx": 0}
    forms = {
        "EleutherAI/wikitext_document_level": {"page": " = Boat = \n A boat floats @-@ mostly . \n"},
        "baber/piqa": {"goal": "To float", "sol1": "take a boat", "sol2": "take a stone", "label": 0},
        "Rowan/hellaswag": {
            **{"activity_label": "Sailing", "ctx_a": "A man sails.", "ctx_b": "he", "label": "2", "ind": 1},
            "endings": ["sings.", "falls over.", "lands.", "eats a lemon."],
        },
        "allenai/winogrande": {"sentence": "The _ floats.", "option1": "boat", "option2": "stone", "answer": "1"},
        "allenai/ai2_arc": {"id": "1", "question": "What floats?", "choices": choices, "answerKey": "A"},
        "aps/super_glue": boat,
        "allenai/openbookqa": {"id": "1", "question_stem": "What floats is", "choices": choices, "answerKey": "A"},
        "nyu-mll/blimp": {"sentence_good": "A boat floats.", "sentence_bad": "A boat float."},
    }

    def load(path: str, name: str | None = None, **_: Any) -> Any:
        rows = datasets.Dataset.from_list([forms[path]] * 3)
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager.TaskManager)  # with all of lm-eval's own tasks
    made.checkpoint("wide", context=256).save_pretrained(made.folder / "wide")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scores = evaluate({"wide": made.folder / "wide"}, limit=2, device="cpu", progress=False)
    result = table(scores)
    metrics = result.groupby("task", sort=False)["metric"].agg(list)
    assert list(metrics.index) == list(TABLE_7.values())
    assert set(metrics["wikitext"]) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert all(metrics[name] == ["acc"] for name in ("winogrande", "boolq", "blimp"))
    both = ("piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa")
    assert all(metrics[name] == ["acc", "acc_norm"] for name in both)
    assert result.set_index("task")["documents"]["blimp"] == 2 * 67
