"""README's recipe for the reader's own model is run as it stands; METHODS' table of remedies is the code's.

Numbers that stand in prose, in README, METHODS and the notebooks, are computed again from the committed tables; links between
the documents lead somewhere, and the house is as CONTRIBUTING draws it.
"""

import json
import math
import re
import shlex
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import TrainingArguments

from tying_utils import models
from tying_utils.__main__ import main
from tying_utils.base.names import PYTHON, TIED, TWO_ROLE, UNTIED, WIKITEXT
from tying_utils.experiments import length, on_card, places, position, published, real, remedies, remedies_by_length
from tying_utils.experiments.gradients import share_over
from tying_utils.experiments.scaling import per_decade
from tying_utils.experiments.sizes import loss_gaps
from tying_utils.experiments.tables import tuned, where, with_scaling
from tying_utils.experiments.tuned_lens import gap_by_steps, gap_without
from tying_utils.measures.statistics import Interval, mean_interval
from tying_utils.models.balance import REMEDIES
from tying_utils.study import Results
from tying_utils.study.axis import Lengths
from tying_utils.study.real import RANDOM, TEXT, Real

ROOT = Path(__file__).resolve().parents[1]


def section(document: str, heading: str) -> str:
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert found, f"{document} has no section {heading!r}"
    return found[1]


def blocks(document: str, language: str = "python") -> list[str]:
    """Return the code of a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_front_page_is_short_and_in_order() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900 and len(text.encode()) <= 7000
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    order = ["Five findings", "Should you tie?", "Try it", "The notebooks", "On your own model", "Limits", "Cite"]
    assert headings == order and text.index("**A tied table is mostly") < text.index("![") < text.index(order[0])
    for book in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"](notebooks/{book.name})" in text, f"README does not lead to {book.name}"


def test_commands_in_the_documents_are_there() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "SCALING.md", "examples/README.md"))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert (named := set(re.findall(r"make ([a-z-]+)", text))) and named - {"all"} <= targets
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert (asked := set(re.findall(r"pip install '\.\[(\w+)\]'", text))) and asked <= set(extras)
    assert "pip install weight-tying" not in text, "no index has it"
    for line in re.findall(r"tying-utils ([a-z]+[^`\n]*)", text):
        words = shlex.split(line.partition("#")[0])
        with pytest.raises(SystemExit) as left, redirect_stdout(StringIO()) as told:
            main([words[0], "--help"])
        assert left.value.code == 0
        assert all(option in told.getvalue() for option in words if option.startswith("--")), line


def test_the_front_page_code_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = models.build("gpt2", tied=True, vocab_size=90, d_model=16, n_layers=1, n_heads=2, context=16)
    table = torch.nn.Parameter(torch.randn(90, 16))
    tokens, targets = torch.randint(0, 90, (2, 4, 12))
    names: dict[str, Any] = {"table": table, "trunk": torch.nn.Linear(16, 16), "tokens": tokens, "targets": targets}
    names |= {"torch": torch, "model": model, "optimizer": torch.optim.SGD([table], lr=0.1)}
    plain, split, read = blocks("README.md")
    assert len(plain.splitlines()) == 7
    before = table.detach().clone()
    exec(plain, names)
    torch.testing.assert_close(table.detach(), before - 0.1 * (5 * names["read"].grad + names["write"].grad))
    exec(split, names)
    assert model.get_input_embeddings().weight.grad is not None
    names["tie"].release()
    model.save_pretrained(tmp_path)
    exec(re.sub(r'"allenai/[^"]*"', repr(str(tmp_path)), read), names)
    assert torch.equal(names["tables"].table, model.get_input_embeddings().weight)


def test_the_recipe_runs_as_it_stands(tmp_path):
    model: Any = models.build("gpt2", tied=True, vocab_size=90, d_model=16, n_layers=1, n_heads=2, context=16)
    batches = list(torch.randint(0, 90, (12, 4, 12), generator=torch.Generator().manual_seed(0)))
    rows = [{"input_ids": row, "labels": row} for row in torch.cat(batches)]
    options: dict[str, Any] = {"max_steps": 3, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    args = TrainingArguments(output_dir=str(tmp_path), save_strategy="no", **options)
    names: dict[str, Any] = {"model": model, "batches": batches, "args": args, "data": rows}
    before = models.tables(model).table.clone()
    loop, callback, _ = blocks("examples/README.md")
    assert len([line for line in loop.splitlines() if line.strip()]) <= 20

    exec(loop, names)
    after = models.tables(model).table.clone()
    assert len(names["shares"]) == 12 and all(0 < share < 1 for share in names["shares"])
    assert not torch.equal(after, before)
    total = torch.nn.functional.cross_entropy(model(batches[0][:, :-1]).logits.flatten(0, 1), batches[0][:, 1:].flatten())
    total.backward()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight

    exec(callback, names)
    assert not torch.equal(models.tables(model).table, after)


def value(expression: str, V: int, d: int, w: int) -> int:
    """A cell of the table of remedies in numbers."""
    plain = expression.replace("²", "**2").replace("−", "-").replace(" / ", "//").replace(" (", "*(")
    plain = re.sub(r"(?<=\w) (?=\w)", "*", plain)
    return eval(plain, {"V": V, "d": d, "w": w, "b": math.ceil(math.sqrt(V))})


@pytest.mark.parametrize(("V", "d"), [(300, 32), (97, 20)])
def test_the_table_of_remedies_is_the_codes(V, d):
    lines = [line for line in section("METHODS.md", "Remedies").splitlines() if line.startswith("| `")]
    table = {cells[0].strip("`"): cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}
    assert list(table) == list(REMEDIES)
    for name, (_, asked, added, _) in table.items():
        assert REMEDIES[name].fits == {"tied": (True,), "untied": (False,), "either": (True, False)}[asked]
        assert REMEDIES[name]().added_parameters(V, d) == value(added, V, d, w=16)


class Seeds(Interval):
    """An interval that prints as its mean, and with " ci" after the format as mean (low to high)."""

    def __format__(self, spec: str) -> str:
        digits, _, whole = spec.partition(" ")
        mean, low, high = (format(value, digits) for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})" if whole else mean


def seeds(values: pd.Series) -> Seeds:
    """Return the mean and interval of one value per seed."""
    return Seeds(**vars(mean_interval(values)))


def numbers(results: Results) -> dict[str, Any]:
    """Compute from the committed tables what the sentences below say, by the name that they give it."""
    made: dict[str, Any] = defaultdict(dict)
    for corpus, study in results.studies.items():
        config, losses = study.profile.config(UNTIED, study.profile.seeds[0]), with_scaling(study, "losses")
        tokens = config.steps * config.batch_size * config.context
        weights = losses.query("arm == @UNTIED")["parameters"].iloc[0]
        made["steps"][corpus], made["rate"][corpus] = config.steps, tokens / weights
        made["thousand_tokens"][corpus], made["thousand_weights"][corpus] = tokens / 1e3, weights / 1e3
        made["million_weights"][corpus] = weights / 1e6
        gaps = loss_gaps(study["sizes"])
        own = gaps[gaps["parameters"] == gaps["parameters"].iloc[0]]
        made["behind"][corpus] = seeds(own["equal_shape"])
        made["larger"][corpus] = seeds(own["equal_parameters"] - own["equal_shape"])
        made["smaller"][corpus] = seeds(own["equal_shape"] - own["equal_parameters"])

        gradients = study["gradients"]
        other_arm = gradients.replace({"arm": {UNTIED: TIED, TIED: UNTIED}})
        share, untied = (share_over(of, 0, 0.1) for of in (gradients, other_arm))
        made["share"][corpus], made["share_gap"][corpus] = seeds(share), seeds(share - untied)
        made["update_share"][corpus] = seeds(share_over(gradients, 0, 0.1, "output_update_share"))
        first = gradients.query("arm == @TIED and step <= 10")
        made["first_ten"][corpus] = seeds(first.groupby("seed")["output_share"].mean())

        scaled = pd.concat([losses, study["sweep_losses"]]) if "sweep_losses" in study else losses
        by_arm = scaled.pivot_table(index="seed", columns="arm", values="validation_loss")
        adds = by_arm.sub(by_arm[TIED], axis=0).drop(columns=[TIED, UNTIED])
        made["adds"][corpus] = {arm: seeds(adds[arm]) for arm in adds}
        made["scales_that_add"][corpus] = "every other scale" if (adds.mean() > 0).all() else "not every other scale"
        lens = tuned(with_scaling(study, "lens"), 0).merge(losses, on=["arm", "seed"]).query("arm != @UNTIED")
        made["kl_and_loss"][corpus] = lens["kl_bits"].corr(lens["validation_loss"])

    losses = with_scaling(results.studies[TWO_ROLE], "losses").sort_values("input_scale")
    worse = [arm for arm in losses["arm"].unique() if arm not in (TIED, UNTIED) and made["adds"][TWO_ROLE][arm].low > 0]
    made["worse"] = " and ".join(worse).replace("input ", "")
    made["slope_without"] = seeds(per_decade(losses[~losses["arm"].isin(worse)], "validation_loss"))
    made["least"], made["most"] = sorted(made["behind"][corpus].mean for corpus in (PYTHON, WIKITEXT))
    for group in places.GROUPS:
        for corpus, part in places.effects(results, group).groupby("corpus"):
            rates = 1e3 * made["thousand_tokens"][corpus] / part["parameters"]
            made[group][corpus] = {"least": rates.min(), "most": rates.max()}

    found = remedies.outcomes(results).query("corpus == @PYTHON and shape == @remedies.EQUAL_SHAPE")
    bias = found.query("arm == @TIED")["bias"].mean()
    for row in remedies.changes(found).to_dict("records"):
        arm, measure = row["arm"], row["measure"]
        made[measure][arm] = Seeds(row["change"], row["low"], row["high"], row["seeds"])
    for arm, change in made["bias"].items():
        made["off"][arm], made["left"][arm] = -100 * change.mean / bias, 100 + 100 * change.mean / bias
        made["part"][arm] = change.mean / made["bias"]["input x5"].mean

    roles = results["roles"].query("input_scale == 1 and output_scale == 1 and role == 'source' and table != 'output'")
    for agreement, part in roles.groupby("agreement"):
        wide = part.pivot_table(index="seed", columns="tied", values="over_floor")
        made["agreeing"][agreement] = seeds(wide[True] - wide[False])
    tied = results["roles"].query("arm == @TIED and table == 'tied' and agreement == 0")
    made["purity"] = tied.groupby("role")["purity"].mean().to_dict()
    probe = results.studies[TWO_ROLE]["transfer_probe"].query("arm == @TIED and table == 'tied' and question == 'source role'")
    made["probe"], made["probe_chance"] = seeds(probe["value"]), probe["chance"].mean()

    evolution = published.evolution().query("step > 0 and model == 'Pythia-1B'")
    moved = evolution.pivot_table(index="step", columns="table", values="to_previous")
    made["pythia"] = {"further": (moved["input"] < moved["output"]).sum(), "all": len(moved)}

    long = Lengths()
    for (place, name, tokens), part in length.values(long).groupby(["place", "id", "tokens_per_weight"]):
        words = f"{tokens:g}"
        at = int(words) if words.isdigit() else words  # as a format's index is read
        group = {"packages, d 64": "long", "two-role": "long_roles"}.get(str(place), "wide")
        made[group].setdefault(name, {})[at] = seeds(part["value"])
    made["wide_off"] = {tokens: -change.mean for tokens, change in made["wide"]["scaled_bias"].items()}
    wide = length.values(long).query("place == 'packages, d 128' and id == 'equal_shape'").groupby("tokens_per_weight")["value"]
    apart, behind = wide.get_group(1.3), wide.get_group(4.0)
    made["apart"], made["ahead"] = {"least": apart.min(), "most": apart.max()}, -behind.mean()
    assert (behind < 0).all()
    made["behind_at_20"] = dict(enumerate(wide.get_group(20.0)))
    gaps = length.values(long).query("place == 'packages, d 128' and id == 'lens_gap' and tokens_per_weight == 20")["value"]
    assert len(gaps) == 2 and (gaps < 0).all()
    rated = long["rates"].query("place == 'packages, d 128'").set_index(["arm", "seed", "rate"])["validation_loss"]
    chosen = rated.xs(1.0, level="rate")
    once = long["losses"].query("place == 'packages, d 128' and tokens_per_weight == 1.3").set_index(["arm", "seed"])
    made["kernels"] = (chosen - once["validation_loss"]).abs().max()
    assert (rated.groupby(level=["arm", "rate"]).mean().unstack().idxmin(axis=1) == 1.0).all()
    tables = on_card.found()[1]
    card = on_card.verdicts(tables, long).set_index("id")
    late = tables["share"].query("tenth == 10").groupby("arm")["output_share"].mean()
    made["card"] = {name: Seeds(row["estimate"], row["low"], row["high"], row["seeds"]) for name, row in card.iterrows()}
    made["card_late_untied"], made["card_off"] = late[UNTIED], -made["card"]["scaled_bias"].mean
    made["alone"] = position.positions(long["poles"]).query(
        "corpus == 'packages' and d_model == 64 and arm == 'log count' and tokens_per_weight == 20"
    )
    made["alone"] = made["alone"]["position"].mean()
    deciles = long["deciles"].query("place == 'packages, d 64' and tokens_per_weight == 20 and decile == 1")
    rarest = deciles.pivot_table(index="seed", columns="arm", values="loss")
    made["rarest"] = {arm: seeds(rarest[arm] - rarest[UNTIED]) for arm in rarest}
    for axis in long.places:
        made["at_equal_loss"][axis.profile.name.replace(", ", " ")] = seeds(length.at_equal_loss(axis)["gap"])
    for row in remedies_by_length.judged(long).to_dict("records"):  # type: ignore[arg-type]
        words = f"{row['tokens_per_weight']:g}"
        at = int(words) if words.isdigit() else words
        gap = Seeds(row["estimate"], row["low"], row["high"], row["seeds"])
        made[f"remedied_{row['beside'].split(', ')[-1].replace(' ', '_')}"].setdefault(row["arm"], {})[at] = gap
    left = remedies_by_length.bias_left(long).query("arm == 'norm-match'")  # type: ignore[arg-type]
    for tokens, words in ((0.13, "0.13"), (4.0, 4)):
        made["long_left"][words] = seeds(where(left, tokens_per_weight=tokens)["left"])
    for words, arm, of in (("W", TIED, "tied"), ("E", UNTIED, "input"), ("U", UNTIED, "output")):
        rows = where(long["lean"], tokens_per_weight=20, arm=arm, table=of)
        for place, name in (("packages, d 64", "knows"), ("two-role", "knows_roles")):
            made[name][words] = where(rows, place=place)[["before", "after"]].mean().to_dict()
    steps = gap_by_steps(
        long["lens_steps"].query("place == 'packages, d 64' and tokens_per_weight == 20 and lens == 'stopped'")
    )
    made["stopped"] = steps.query("trained == '400 steps' and text == 'held-out'")["gap"].mean()
    without = gap_without(long["ablation"].query("tokens_per_weight == 20")).query("without == 'layer 1' and how == 'zero'")
    made["without_first"] = {place: seeds(part["gap"]) for place, part in without.groupby("place")}
    tenths = remedies_by_length.losses(long, "deciles").query("tokens_per_weight == 4 and decile == 1")  # type: ignore[arg-type]
    rarest = tenths.pivot_table(index="seed", columns="arm", values="loss")
    made["rarest_remedied"] = {arm: seeds(rarest[arm] - rarest[UNTIED]) for arm in rarest}
    off = [-change.mean for change in made["long"]["scaled_bias"].values()]
    made["off_at_20"] = -made["long"]["scaled_bias"][20].mean
    made["seeds_at_20"] = {3: "three", 4: "four", 5: "five"}[made["long"]["scaled_bias"][20].n]
    made["off_long"] = {"least": min(off), "most": max(off)}

    smollm2 = Real(progress=False)
    for row in real.by_text(smollm2["shares"]).reset_index().to_dict("records"):
        text, on = row["text"], {TEXT: "text", RANDOM: "random"}[row["text"]]
        made[f"real_{row['measure']}"][on] = Seeds(row["mean"], row["low"], row["high"], row["batches"])
        along = real.by_position(smollm2["shares"])[text]
        made["real_first"][on], made["real_last"][on] = along.iloc[0], along.iloc[-1]
    made["real_norms"] = smollm2["norms"].iloc[0].to_dict()
    return made


HOW_LONG = "saw {rate[python]:.2f} tokens per weight ({steps[python]} steps; two-role language: {rate[two-role]:.1f})"
# Every sentence with numbers in it that someone has written by hand, by document; what stands in braces is computed.
SENTENCES = {
    "README.md": [
        "it lies {long[position][20]:.2f ci} of the way from E to U; a table of log counts alone lies at {alone:.2f}",
        "its share of the first tenth's gradient is {long[early_share][20]:.2f} (H200: {card[early_share]:.2f}) at 20, "
        "{long[early_share][0.4]:.2f} at 0.4",
        "held at equal norm, {long_left[4]:.2f ci} of the bias remains (at 4)",
        "by {long[lens_gap][20]:.2f ci} bits: open; H200: {card[lens_gap]:.2f ci}; in a synthetic language "
        "{long_roles[lens_gap][20]:.2f ci}",
        "takes off {off_at_20:.2f} of {long[output_bias][20]:.2f}, and costs {long[scaled_loss][20]:.2f ci} nats per token",
        "| untie | {long[equal_shape][1.3]:.3f ci} at 1.3 tokens per weight |",
        "{long[equal_shape][20]:.3f ci} at 20, H200: {card[equal_shape]:.3f ci}; at equal parameters "
        "{long[equal_parameters][20]:.3f ci}, open among all |",
        "| untie | {rarest[tied]:.2f ci} on the rarest tenth, at 20 |",
        "at 20 tokens per weight at most two million weights, {seeds_at_20} seeds",
    ],
    "METHODS.md": [
        "At 1.3 tokens per weight it is {long[equal_shape][1.3]:.3f ci} nats behind on the source of packages, at 20 "
        "{long[equal_shape][20]:.3f ci}, which is unresolved; in the two-role language {long_roles[equal_shape][0.13]:.3f ci} "
        "at 0.13 and nothing worth naming from 4 on",
        '"The lens gap is refuted": at 20 tokens per weight it is {long[lens_gap][20]:.2f ci} bits, unresolved.',
        "In the two-role language it is {long_roles[lens_gap][20]:.2f ci} there, supported.",
        "and late not ({long[late_share][20]:.2f})",
        "at 4 and 20, W lies {wide[position][4]:.2f} and {wide[position][20]:.2f} of the way from E to U, and ×5 takes "
        "{wide_off[4]:.2f} and {wide_off[20]:.2f} off an output bias of {wide[output_bias][4]:.2f} and "
        "{wide[output_bias][20]:.2f} and costs {wide[scaled_loss][4]:.3f} and {wide[scaled_loss][20]:.3f} nats; the early "
        "output share falls from {wide[early_share][0.13]:.2f} at 0.13 to {wide[early_share][20]:.2f} at 20",
        "at 1.3 the seeds disagree in sign ({apart[least]:.2f} and {apart[most]:.2f} nats), and at 4 the tied model is ahead "
        "in both, by {ahead:.2f}; at 20 it is {behind_at_20[0]:.3f} and {behind_at_20[1]:.3f} behind. The lens gap there is "
        "{wide[lens_gap][20]:.2f} bits, below 0 in both seeds; at d 64 it is {long[lens_gap][20]:.2f}, and on a card, at the "
        "same width, {card[lens_gap]:.2f}.",
        "Both ways were taken at 1.3, and no loss differs by more than {kernels:.3f} nats.",
        "Tying costs {card[equal_shape]:.3f ci} nats at equal shape there, at the edge of what is worth naming, and the lens "
        "gap is {card[lens_gap]:.3f ci} bits. W leans less than at d 64 ({card[output_bias]:.3f ci} against "
        "{long[output_bias][20]:.3f}), and x5 takes off {card_off:.3f}. The output share over the first tenth of training, "
        "all of it warmup, is {card[early_share]:.3f ci}, not {long[early_share][20]:.2f} as at d 64, and "
        "{card[share_gap]:.3f} less in the untied arm; over the last it is {card[late_share]:.3f}, in the untied arm "
        "{card_late_untied:.3f}",
        "Runs of d 64 that have 1,331 and 4,096 steps in all have early shares of {long[early_share][1.3]:.3f} and "
        "{long[early_share][4]:.3f}, and those of d 128 with 1,229 and 3,994 (two seeds) {wide[early_share][0.4]:.3f} and "
        "{wide[early_share][1.3]:.3f}",
        "{long[scaled_loss][1.3]:.2f} nats at 1.3, {long[scaled_loss][20]:.2f ci} at 20",
        "over {real_loss[text].n} batches of four windows of 256 tokens. On WikiText-2, at a loss of {real_loss[text]:.2f} "
        "nats, the output share is {real_output_share[text]:.3f ci} and the two gradients' cosine {real_cosine[text]:.3f ci}; "
        "on tokens drawn at random, at {real_loss[random]:.2f} nats, where a model that says nothing has 10.80, the share is "
        "{real_output_share[random]:.3f ci}",
        "the share goes from {real_first[text]:.3f} to {real_last[text]:.3f} on text and from {real_first[random]:.3f} to "
        "{real_last[random]:.3f} on random tokens",
        "row norm and count in the text is {real_norms[spearman]:.3f} over the {real_norms[seen]:.0f} tokens that occur",
        "tied - untied is {share_gap[python]:.3f ci} on Python source, {share_gap[wikitext-2]:.3f ci} on WikiText-2 and "
        "{share_gap[two-role]:.3f ci} in the two-role language",
        "one half: {first_ten[python]:.3f ci} and {first_ten[wikitext-2]:.3f ci}",
        "({update_share[two-role]:.3f} against {share[two-role]:.3f} over the first tenth)",
        "{left[norm-match]:.0f} % of the bias on Python source remains ({bias[norm-match]:.3f}, {bias[norm-match].low:.3f} to "
        "{bias[norm-match].high:.3f}); on the source of packages at d 64 {long_left[0.13]:.2f ci} at 0.13 tokens per weight "
        "and {long_left[4]:.2f ci} at 4",
        "without its first layer a tied model of the two-role language loses {without_first[two-role]:.1f} nats more",
        "Input x5 takes off {off[input x5]:.0f} %: in the first quarter of training alone "
        "{off[early x5]:.0f} %, in the rest alone {off[late x5]:.0f} %, which is {part[early x5]:.2f} and {part[late x5]:.2f} "
        "of what it takes off throughout",
        "x0.1 adds {adds[python][input x0.1]:.3f} and {adds[wikitext-2][input x0.1]:.3f} nats (Python source, WikiText-2), x2 "
        "{adds[python][input x2]:.3f} and {adds[wikitext-2][input x2]:.3f} (the second {adds[wikitext-2][input x2].low:.4f} to "
        "{adds[wikitext-2][input x2].high:.3f}), x5 {adds[python][input x5]:.3f} and {adds[wikitext-2][input x5]:.3f}",
        "(x3: {adds[two-role][input x3]:.3f}, {adds[two-role][input x3].low:.3f} to {adds[two-role][input x3].high:.3f}; x10: "
        "{adds[two-role][input x10]:.3f}, {adds[two-role][input x10].low:.3f} to {adds[two-role][input x10].high:.3f}); "
        "{worse} add {adds[two-role][input x100]:.3f} and {adds[two-role][input x300]:.3f}, and make the slope: "
        "without them it is {slope_without:.3f ci}",
        "it is {larger[python]:.3f ci} and {larger[wikitext-2]:.3f ci} nats worse than the smaller tied model, on Python "
        "source and WikiText-2. In the two-role language it is better, by {smaller[two-role]:.3f ci}",
        "that is {architecture[python][least]:.2f} to {architecture[python][most]:.2f} in the architectures (two-role "
        "language: {architecture[two-role][least]:.1f} to {architecture[two-role][most]:.1f}), and "
        "{grid[python][least]:.2f} to {grid[python][most]:.1f} from the largest to the smallest place of the grid",
        "whose purity is {purity[target]:.3f} in the target role and {purity[source]:.3f} in the source role, a linear probe "
        "reads the source role at {probe:.3f ci}, against a chance of {probe_chance:.3f}",
        "**How long trained.** Apart from what has a length beside it, as the axis of length and the card, every result is of "
        "models that saw "
        "{rate[python]:.2f} tokens per weight of the untied model ({thousand_tokens[python]:.0f} thousand tokens, "
        "{million_weights[python]:.2f} million weights; in the two-role language {thousand_tokens[two-role]:.0f} "
        "thousand and {thousand_weights[two-role]:.0f} thousand, {rate[two-role]:.2f}), at other sizes with as "
        "many tokens {grid[python][least]:.2f} to {grid[python][most]:.1f}.",
    ],
    "00_overview": [
        "The output path's share of the early gradient falls to {long[early_share][20]:.3f ci} at d 64",
        "in source code has grown to {long[scaled_loss][20]:.3f ci} nats per token",
        "What tying costs at equal shape is {long[equal_shape][1.3]:.3f ci} nats at 1.3 tokens per weight; at 20 it is "
        "unresolved at half a million weights, {long[equal_shape][20]:.3f ci}, and {card[equal_shape]:.3f ci} at two million",
        "W leans less, {card[output_bias]:.3f ci}, and input ×5 takes off {card_off:.3f} of that. Tying costs "
        "{card[equal_shape]:.3f ci} nats, at the edge of what is worth naming, and the embedding is further from the "
        "prediction by {card[lens_gap]:.3f ci} bits. The output share is {card[early_share]:.3f ci} over the first tenth",
        "the tied model is {rarest[tied]:.3f} nats behind on the rarest tenth",
        "{rarest[input x5]:.3f} nats on the rarest tenth",
        HOW_LONG,
        "by {larger[python]:.3f} nats on Python source and by {larger[wikitext-2]:.3f} on WikiText-2",
    ],
    "01_embedding_alignment": [
        "W lies at {long[position][20]:.3f ci} after 20 tokens per weight. Log token counts alone reach {alone:.3f} there",
        "before about as well as U, {knows[W][before]:.3f} against {knows[U][before]:.3f}, and what comes after nearly as well "
        "as E, {knows[W][after]:.3f} against {knows[E][after]:.3f}",
        "in the two-role language it has {knows_roles[W][after]:.3f} of what comes after, where E has "
        "{knows_roles[E][after]:.3f}",
        "at {long[position][0.13]:.3f} after 0.13 tokens per weight, at {long[position][1.3]:.3f} after 1.3, and at "
        "{long[position][20]:.3f ci} after 20, where it is {long[position_without_frequency][20]:.3f} with frequency out and "
        "log counts alone lie at {alone:.3f}. In the two-role language it ends at {long_roles[position][20]:.3f ci}",
        HOW_LONG,
    ],
    "02_gradient_dominance": [
        "with both at equal norm {left[norm-match]:.0f} % of it remains on Python source, and after 4 tokens per weight "
        "{long_left[4]:.2f ci} of it",
        "{long_left[0.13]:.2f} at 0.13 tokens per weight and {long_left[4]:.2f ci} at 4",
        "After 20 tokens per weight the early share is {long[early_share][20]:.3f ci}, hardly more than one half; in a model "
        "four times as large, in larger batches, {card[early_share]:.3f ci}",
        "it is {card[early_share]:.3f ci} at 20, and the untied model's {card[share_gap]:.3f} less; the late one is "
        "{card[late_share]:.3f} there, too",
        "the runs of d 64 with 1,331 and 4,096 steps in all have early shares of {long[early_share][1.3]:.3f} and "
        "{long[early_share][4]:.3f}, and of d 128 with 1,229 and 3,994 (two seeds) {wide[early_share][0.4]:.3f} and "
        "{wide[early_share][1.3]:.3f}",
        "On Python source {left[norm-match]:.0f} % of the bias remains at equal norm",
        "in the first quarter alone takes off {part[early x5]:.2f} of what it takes off throughout",
        "the share is {first_ten[python]:.3f ci} on Python source, {first_ten[wikitext-2]:.3f ci} on WikiText-2",
        "share rises from {long[early_share][0.13]:.3f} to {long[early_share][0.4]:.3f} at 0.4 tokens per weight and falls to "
        "{long[early_share][20]:.3f} at 20, where the late share is {long[late_share][20]:.3f}",
        "grows from {long[share_gap][0.13]:.3f} to {long[share_gap][20]:.3f}",
        HOW_LONG,
        "tied minus untied is {share_gap[python]:.3f ci} on Python source, {share_gap[wikitext-2]:.3f ci} on WikiText-2 and "
        "{share_gap[two-role]:.3f ci} in the two-role language",
    ],
    "03_tuned_lens": [
        "in the two-role language it is above 0, {long_roles[lens_gap][20]:.3f ci}",
        "in source code {long[lens_gap][20]:.3f ci} bits per token at half a million weights, unresolved, and "
        "{card[lens_gap]:.3f ci} at two million",
        "at two million weights, on a card, it is {card[lens_gap]:.3f ci}",
        "At 20 the gap is {long[lens_gap][20]:.3f ci} bits",
        "after 400 steps still shows {stopped:.3f} bits in source code, where one that is trained to its end shows "
        "{long[lens_gap][20]:.3f}",
        "in place of its first layer the tied model loses {without_first[two-role]:.3f} nats more",
        "{at_equal_loss[packages d 64]:.3f ci} bits in source code, {at_equal_loss[two-role]:.3f ci} in the two-role language",
        HOW_LONG,
    ],
    "04_gradient_scaling": [
        "at 20 tokens per weight input ×5 adds {long[scaled_loss][20]:.3f ci} nats per token",
        "it takes {off_long[least]:.3f} to {off_long[most]:.3f} off the bias at every length",
        "{long[scaled_loss][0.13]:.3f ci} nats; it is {long[scaled_loss][1.3]:.3f ci} at 1.3 and "
        "{long[scaled_loss][20]:.3f ci} at 20",
        "comes down to {long_roles[scaled_loss][4]:.3f ci} at 4. On an H200, at d 128, it is {card[scaled_loss]:.3f ci} at 20",
        HOW_LONG,
        "with both gradients held at equal norm {left[norm-match]:.0f} % of it remains on Python source, and "
        "{long_left[4]:.2f ci} after 4 tokens per weight",
        "the KL at the input and the loss correlate at {kl_and_loss[python]:.2f}",
        "in the two-role language only {worse} can be distinguished from it",
    ],
    "05_embedding_evolution": [
        "in cosine by {long[drift_gap][0.13]:.3f} at 0.13 tokens per weight and by {long[drift_gap][20]:.3f} at 20",
        "Pythia-1B data the input table moves further in {pythia[further]} of {pythia[all]} intervals",
        HOW_LONG,
    ],
    "06_ground_truth": [
        "tied minus untied is {long_roles[equal_shape][0.13]:.3f ci} nats",
        "no more than {long_roles[equal_shape][4].high:.3f}",
        "saw {rate[two-role]:.1f} tokens per weight here ({steps[two-role]} steps; {rate[python]:.2f} on text)",
        "the tied model is {agreeing[0]:.3f} nats behind; where they agree, {agreeing[1]:.3f ci}, which is unresolved",
        "reads it from the tied table at {probe:.3f ci}, where chance is {probe_chance:.3f}",
    ],
    "07_scale_explorer": [
        "grows to {long[scaled_loss][20]:.3f ci} nats",
        "held at equal norm from the first step {left[norm-match]:.0f} % of it remains on Python source, and "
        "{long_left[4]:.2f ci} on the source of packages after 4 tokens per weight",
    ],
    "09_remedies": [
        HOW_LONG,
        "the input path times 5 takes off {off[input x5]:.0f} % of the bias",
        "in the first quarter of training alone it takes off {off[early x5]:.0f} %",
        "in the rest alone {off[late x5]:.0f} %",
        "(*norm-match*) leaves {left[norm-match]:.0f} % of the bias",
        "on Python source the interval is {loss[coupled-adam].low:.3f} to {loss[coupled-adam].high:.3f} nats",
        "A faster input table is worth {remedied_second_start[table-rates][0.13]:.3f ci} nats at 0.13 tokens per weight, "
        "{remedied_second_start[table-rates][1.3]:.3f ci} at 1.3 and {remedied_second_start[table-rates][4]:.3f ci} at 4",
        "(beside the untied model {remedied_untied[coupled-adam][4]:.3f ci} nats), and on the rarest tenth of the text it is "
        "{rarest_remedied[coupled-adam]:.2f ci} nats beside the untied model",
        "{remedied_untied[compact][4]:.3f ci} nats beside the untied model at 4",
    ],
    "10_architectures_and_size": [
        "saw {rate[python]:.2f} tokens per weight at d 128 and V 2048 ({steps[python]} steps; over the grid "
        "{grid[python][least]:.2f} to {grid[python][most]:.1f}, in the two-role language about {rate[two-role]:.1f})",
    ],
    "11_transfer": ["({rate[python]:.2f} tokens per weight, two-role language {rate[two-role]:.1f})"],
    "12_should_you_tie": [
        "Gaps are from {grid[python][least]:.2f} to 20 tokens per weight",
        "in source code {card[equal_shape]:.3f ci} nats at two million weights and unresolved at half a million",
        "the gap at equal parameters is {long[equal_parameters][20]:.3f ci}, regained and more",
    ],
}


@pytest.fixture(scope="module")
def computed() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TYING_HOME", str(ROOT))
        yield numbers(Results("laptop", only_read=True))


def source(path: Path) -> str:
    """Return the Markdown of a document, or of a notebook's cells in words."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def prose(document: str) -> str:
    """Return the text of a document or notebook on one line and with one sign for minus."""
    path = ROOT / document if document.endswith(".md") else ROOT / "notebooks" / f"{document}.ipynb"
    return " ".join(source(path).replace("−", "-").split())


@pytest.mark.parametrize(("document", "sentence"), [(name, words) for name, said in SENTENCES.items() for words in said])
def test_numbers_in_prose_are_those_of_the_committed_tables(document: str, sentence: str, computed: dict[str, Any]) -> None:
    said = sentence.format(**computed)
    assert said in prose(document), f"{document} does not say: {said}"


def anchors(path: Path) -> set[str]:
    """Return what GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", source(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / name / "README.md" for name in ("benchmarks", "examples"))])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", source(path)):
        place, _, heading = link.partition("#")
        if "://" not in place:
            aim = path.parent / place if place else path
            assert aim.exists(), f"{link} leads to no file"
            assert not heading or heading in anchors(aim), f"{link} leads to no heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_documents_name_are_there(path: Path) -> None:
    names = re.findall(r"(?:tests|tying_utils)/[\w/]+\.py", source(path))
    assert not [name for name in names if "NAME" not in name and not (ROOT / name).is_file()]
