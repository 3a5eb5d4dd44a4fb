"""The comparisons on miniatures, and the same through a local hub that serves them under the public names."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from local_hub import LocalHub, pointing_at
from scipy import stats

from tying_utils.base import paths
from tying_utils.base.quiet import quiet
from tying_utils.corpora import corpus, vocabulary
from tying_utils.experiments import figures, grid, public, public_models, public_tables, published
from tying_utils.experiments.public import Public, output_bias
from tying_utils.experiments.public_tables import TABLES, rows
from tying_utils.experiments.tables import where
from tying_utils.measures import alignment, integrity, neighbors
from tying_utils.models import checkpoints
from tying_utils.models.families import MODELS, families
from tying_utils.study import miniatures

OLMO = ("OLMo",)


def one(frame: pd.DataFrame, **values: object) -> dict[str, Any]:
    """The only row of `frame` that holds `values`."""
    (row,) = where(frame, **values).to_dict("records")
    return {str(name): value for name, value in row.items()}


@pytest.fixture(scope="module")
def measured(smoke_home: Path) -> Public:
    """Every table, measured on the smoke profile's miniatures."""
    return Public("smoke", progress=False).complete()


# Miniatures


def test_miniatures_are_of_the_same_architecture_tie_dtype_and_layout(measured: Public):
    for family in families().values():
        for model in family.models:
            folder = Path(measured.source(model))
            found = checkpoints.read_tables(folder)
            assert found.tied is model.tied
            assert found.input.dtype == getattr(torch, model.dtype)
            assert (folder / "model.safetensors.index.json").exists() is model.shards
            loaded = public_tables.load_model(folder)
            assert type(loaded).__name__.lower().startswith(model.arch.replace("_", ""))
            tokens = vocabulary.read(folder)
            assert (len(tokens) < len(found.input)) is (model.rows > model.tokens)
            assert len(vocabulary.real_rows(tokens, len(found.input))) == len(tokens)


def test_a_miniature_that_is_followed_has_a_revision_a_checkpoint(measured: Public):
    followed = {model for family in families().values() for model in family.evolution}
    for family in families().values():
        for model in family.models:
            source = measured.source(model)
            if model not in followed:
                with pytest.raises(ValueError, match="its checkpoints are not public"):
                    checkpoints.steps(source)
                continue
            steps = checkpoints.steps(source)
            config = miniatures.config(model, "smoke")
            assert list(steps) == [0, *config.checkpoint_steps]
            last = checkpoints.read_tables(source, steps[config.steps])
            assert integrity.same_bytes(last.output, checkpoints.read_tables(source).output)


def test_miniatures_start_apart(measured: Public):
    seeds = [miniatures.config(model).init_seed for family in families().values() for model in family.models]
    assert len(set(seeds)) == len(seeds)


# What is measured


def test_the_checkpoints_table_says_what_each_holds(measured: Public):
    table = measured["checkpoints"]
    for family in families().values():
        for model in (family.tied, family.untied):
            held = checkpoints.read_tables(measured.source(model))
            row = one(table, model=model.name)
            assert (row["tied"], row["rows"], row["width"]) == (model.tied, *held.input.shape)
            assert row["dtype"] == model.dtype and row["source"] == model.source
            own = held.input.nbytes * (1 if model.tied else 2) / 1e6
            assert own <= row["megabytes_read"] <= own + 0.1


def test_every_table_is_measured_once_and_then_read(measured: Public, smoke_home: Path, monkeypatch: pytest.MonkeyPatch):
    assert set(TABLES) <= {path.stem for path in (smoke_home / "data/results/smoke/miniatures").glob("*.csv")}
    again = Public("smoke", progress=False)
    monkeypatch.setattr(miniatures, "folders", lambda *_, **__: pytest.fail("trained"))
    for name in TABLES:
        pd.testing.assert_frame_equal(again[name], measured[name])
        assert again.origin[name].startswith(f"read from {name}.csv")
    assert set(again.checksums) == {f"miniatures/{name}" for name in TABLES}


def test_a_table_of_other_families_or_of_an_earlier_format_is_not_read(measured: Public, monkeypatch):
    fewer = Public("smoke", families=OLMO, progress=False, only_read=True)
    words = r"spectral.csv: missing, or not as its manifest says; run `make reproduce PROFILE=smoke`"
    with pytest.raises(ValueError, match=words):
        fewer["spectral"]
    monkeypatch.setattr(Public, "format", Public.format + 1)
    again = Public("smoke", progress=False)
    assert again["shares"] is not None and again.origin["shares"].startswith("measured now")
    assert Public("smoke", progress=False, only_read=True)["neighbors"] is not None


def test_scores_are_those_of_the_measures_on_the_shared_tokens(measured: Public):
    family = families()["GPT-Neo/Pythia"]
    tied, untied = (checkpoints.read_tables(measured.source(model)) for model in (family.tied, family.untied))
    ids = [vocabulary.read(measured.source(model)) for model in (family.tied, family.untied)]
    shared = [token for token in ids[0] if token in ids[1]]
    w, u = tied.table[[ids[0][t] for t in shared]], untied.output[[ids[1][t] for t in shared]]
    frame = measured["alignment"].query("family == @family.name and source == 'output' and target == 'tied'").set_index("kind")
    for kind in ("identity", "orthogonal", "linear"):
        # The rows come in another order, which moves a sum's last digits.
        assert frame.loc[kind, "value"] == pytest.approx(alignment.align(u, w, kind), abs=1e-4)
    assert (frame["tokens"] == len(shared)).all()
    near = measured["neighbors"].query("family == @family.name and source == 'output' and target == 'tied'")
    assert near["value"].item() == pytest.approx(neighbors.knn_overlap(u, w), abs=1e-3)


def test_tables_of_unlike_width_are_joined_by_the_linear_map_alone(measured: Public):
    kinds = measured["alignment"].query("family == 'Qwen3' and target == 'tied'")["kind"]
    assert set(kinds) == {"linear"}
    own = measured["alignment"].query("family == 'Qwen3' and target == 'output'")["kind"]
    assert set(own) == {"identity", "orthogonal", "linear"}


def test_published_values_stand_beside_each_pair(measured: Public):
    table = measured["alignment"]
    assert one(table, family="OLMo", kind="orthogonal", source="output", target="tied")["published"] == 0.669
    assert one(table, family="OLMo", kind="orthogonal", source="input", target="output")["published"] == 0.44
    row = one(table, family="GPT-Neo/Pythia", kind="linear", source="input", target="tied")
    assert row["published"] == 0.507 and "difference" not in table
    assert row["published_corrected"] == pytest.approx((0.507 - 0.2633) / (1 - 0.2633), abs=1e-3)
    assert table.query("family == 'Qwen3'")["published"].isna().all()
    near = measured["neighbors"]
    assert one(near, family="Qwen3", source="output", target="tied")["published"] == 0.71
    assert one(near, family="GPT-Neo/Pythia", source="input", target="output")["published"] == 0.611
    apart = measured["spectral"]
    assert one(apart, family="OLMo", source="input", target="tied")["published"] == 1.37257
    assert apart["published"].notna().all()


def test_the_output_bias_is_the_difference_of_two_rows(measured: Public):
    bias, table = output_bias(measured["alignment"]), where(measured["alignment"], family="OLMo", kind="orthogonal")
    own = one(bias, family="OLMo", kind="orthogonal")
    with_input, with_output = (one(table, source=source, target="tied") for source in ("input", "output"))
    for column in ("corrected", "held_out", "published_corrected"):
        assert own[column] == pytest.approx(with_output[column] - with_input[column])
    assert bias.query("family == 'Qwen3'")["kind"].tolist() == ["linear"]


def test_the_verdict_is_over_families(measured: Public):
    judged = public.verdicts(measured)
    bias = output_bias(measured["alignment"])
    linear = bias.query("kind == 'linear'")["held_out"]
    row = one(judged, statistic="output bias, linear, held-out tokens, over families")
    assert (row["estimate"], row["seeds"]) == (pytest.approx(linear.mean()), 3)
    low, high = stats.t.interval(0.95, 2, linear.mean(), stats.sem(linear))
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    assert row["verdict"] == ("supported" if low > 0 else "open" if high > 0 else "refuted")
    assert one(judged, statistic="output bias, orthogonal, chance-corrected, over families")["seeds"] == 2
    assert "OLMo 0.243" in row["published"] and "Qwen3" not in row["published"]
    assert "at smoke scale" in grid.sentence(judged, "smoke")


def test_planted_faults_are_found_and_left_out(measured: Public):
    table = measured["evolution"].query("model == 'Pythia-1B'")
    for _, part in table.groupby("table"):
        assert part.set_index("step")["problem"].dropna().to_dict() == {4: "equal to step 0", 8: "equal to the final table"}
        assert part.loc[part["problem"].notna(), ["to_start", "to_previous"]].isna().all(axis=None)
        assert part.loc[part["problem"].isna(), "to_start"].notna().all()
    assert measured["evolution"].query("model != 'Pythia-1B'")["problem"].isna().all()


def test_norms_count_the_text_by_each_own_tokenizer(measured: Public):
    table = measured["norms"]
    assert set(table["table"]) == {"input", "output", "tied"}
    assert table.groupby(["family", "table"])["tokens"].sum().groupby("family").nunique().eq(1).all()
    assert measured.tokens(MODELS["OLMo-1B"])[0].max() < 340


def test_lens_curves_end_at_zero_where_they_are_read_right(measured: Public):
    table = measured["lens"]
    last = table.groupby(["model", "indexing"]).tail(1)
    assert (last.query("indexing == 'matched'")["kl_bits"] == 0).all()
    assert (last.query("indexing == 'published'")["kl_bits"] > 0).all()
    assert table["published"].isna().all()  # miniatures have another number of layers


def test_rows_are_a_view_where_they_can_be():
    table = torch.arange(12.0).view(6, 2)
    assert rows(table, np.arange(4)).data_ptr() == table.data_ptr()
    assert rows(table, np.array([5, 0])).tolist() == [[10, 11], [0, 1]]


def test_bad_choices_are_named(smoke_home: Path):
    with pytest.raises(ValueError, match="MODELS: 'real' is unknown; choose 'miniatures' or 'public'"):
        Public("smoke", "real")
    with pytest.raises(ValueError, match="PROFILE"):
        Public("none")
    with pytest.raises(ValueError, match="families: Llama unknown; choose of OLMo"):
        Public("smoke", families=("Llama",))
    with pytest.raises(ValueError, match="name: 'weather' is unknown; choose one of checkpoints, alignment"):
        Public("smoke")["weather"]
    with pytest.raises(ValueError, match="fewer than one window of 64"):
        corpus.windows(np.arange(9), 1, 64)


# The public names, through a hub


def test_the_same_comparisons_read_the_hub(measured: Public, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grammar):
    """The miniatures stand for the public models on a local hub: every step of the way but the bytes themselves."""
    texts = tmp_path / "texts" / "wikitext-2"
    texts.mkdir(parents=True)
    for seed, part in enumerate(("train", "valid")):
        (texts / f"wiki.{part}.txt").write_text(grammar(1500, seed))
    monkeypatch.setenv("TYING_TEXTS", str(texts.parent))
    monkeypatch.setenv("TYING_HOME", str(tmp_path / "home"))
    family = families()["OLMo"]
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        for model in family.models:
            folder = Path(measured.source(model))
            hub.add(model.source, folder)
            if model in family.evolution:
                followed = published.evolution().query("model == @model.name")["step"].unique()
                for step, (true, revision) in zip(followed, checkpoints.steps(folder).items(), strict=False):
                    tokens = f"-tokens{step // 1000}B" if true else "-tokens0B"
                    hub.add(model.source, folder / revision, revision=f"step{step}{tokens}")
        real = Public("smoke", "public", families=OLMO, progress=False)
        monkeypatch.setattr(real, "effort", dataclasses.replace(public_models._EFFORTS["smoke"], text="wikitext-2"))
        real.complete()
        whole = sum(request.sent for request in hub.requests if (request.file or "").endswith(".safetensors"))
        hub.stop()
        assert Public("smoke", "public", families=OLMO, progress=False)["lens"] is not None
    own = measured["alignment"].query("family == 'OLMo'")["value"].to_numpy()
    assert np.allclose(real["alignment"]["value"], own)
    evolution = real["evolution"]
    assert set(evolution["model"]) == {"OLMo-1B-0724", "OLMo-7B-0424"} and evolution["published_to_start"].notna().all()
    assert evolution.query("model == 'OLMo-1B-0724'")["step"].unique().tolist()[:3] == [0, 2000, 4000]
    assert real["lens"].query("layer == 0 and model == 'OLMo-1B'")["published"].tolist() == [8.8627, 8.8627]
    manifest, commit = real.manifest or {}, hub.repos[family.tied.source].branches["main"]
    assert manifest["models"] == "public" and manifest["sources"]["OLMo-1B"]["commit"] == commit
    assert whole > 0 and paths.results("smoke") / "public" == real.folder
    words = figures.draw("08_alignment", real).get_supxlabel()
    assert "Measured on the public models" in words.replace("\n", " ")
    assert figures.folder("08_alignment", "smoke", "public") == paths.figures("smoke") / "public"


def test_models_loaded_run_no_code_and_show_no_bars(measured: Public, capfd: pytest.CaptureFixture):
    with quiet():
        loaded = public_tables.load_model(measured.source(MODELS["OLMo-1B"]), dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and not loaded.training
    assert "Loading weights" not in capfd.readouterr().err
