import json
import shutil

import pandas as pd
import pytest

from tying_utils.experiments import published
from tying_utils.measures.alignment import gaussian_chance


def one(frame: pd.DataFrame, **where) -> dict:
    (row,) = (row for row in frame.to_dict("records") if where.items() <= row.items())
    return row


def test_load_is_read_once():
    assert published.load() is published.load()
    assert "2603.26663" in published.load()["source"]["paper"]


def test_load_from_beside_an_installed_module(tmp_path, monkeypatch):
    package = tmp_path / "tying_utils"
    package.mkdir()
    module = shutil.copy(published.__file__, package)
    monkeypatch.setattr(published, "__file__", str(module))
    read = published.load.__wrapped__
    with pytest.raises(FileNotFoundError, match="published numbers"):
        read()
    (package / "published.json").write_text(json.dumps({"from": "wheel"}))
    assert read() == {"from": "wheel"}


def test_alignment_table():
    frame = published.alignment()
    assert list(frame.columns) == ["models", "source", "target", "kind", "value"]
    assert len(frame) == 2 * 3 * 3
    assert one(frame, models="OLMo", source="untied output", target="tied", kind="orthogonal")["value"] == 0.669
    pair = {"source": "untied input", "target": "untied output"}
    assert one(frame, models="GPT-Neo/Pythia", **pair, kind="linear")["value"] == 0.518


def test_the_published_bias_has_its_correction_beside_it():
    frame = published.corrected_alignment()
    for kind, plain, corrected in (("identity", None, None), ("orthogonal", 0.249, 0.300), ("linear", 0.194, 0.243)):
        output, source = (
            one(frame, models="OLMo", source=f"untied {n}", target="tied", kind=kind) for n in ("output", "input")
        )
        if plain is None:
            assert output["corrected"] == output["value"]
        else:
            assert output["value"] - source["value"] == pytest.approx(plain)
            assert output["corrected"] - source["corrected"] == pytest.approx(corrected, abs=5e-4)


@pytest.mark.parametrize(("frame", "value"), [(published.knn, 0.71), (published.spectral, 0.809454)])
def test_pair_tables(frame, value):
    assert list(frame().columns) == ["models", "a", "b", "value"]
    assert len(frame()) == 3 * 3
    assert one(frame(), models="Qwen3", a="tied", b="untied output")["value"] == value


def test_lens():
    frame = published.lens()
    assert list(frame.columns) == ["model", "tied", "layer", "kl_bits"]
    assert frame.groupby("tied")["layer"].apply(list).tolist() == [list(range(17))] * 2
    assert one(frame, model="OLMo-1B", tied=True, layer=1)["kl_bits"] == 9.6107
    assert one(frame, model="OLMo-1B-0724", tied=False, layer=16)["kl_bits"] == 0.182


def test_gradient_bins_are_contiguous():
    frame = published.gradient_bins()
    assert frame["step_first"].tolist() == [1, *(frame["step_last"][:-1] + 1)]
    assert frame["step_last"].iloc[-1] == 10_000
    assert frame["output_share_mean"].between(0, 1).all()


def test_scaling():
    frame = published.scaling()
    assert list(frame.columns) == ["step", "condition", "scale", "reference", "value"]
    assert frame.groupby("step")["scale"].unique().apply(list).to_dict() == {1_000: [1, 2, 10], 10_000: [1, 5]}
    assert one(frame, step=10_000, scale=5, reference="output")["value"] == 0.369
    assert one(frame, step=1_000, scale=1, reference="input")["value"] == 0.172


def test_evolution():
    frame = published.evolution()
    assert list(frame.columns) == ["model", "table", "step", "to_start", "to_previous"]
    assert set(frame["model"]) == {"OLMo-1B-0724", "OLMo-7B-0424", "Pythia-1B"}
    row = one(frame, model="OLMo-7B-0424", table="output", step=20_000)
    assert (row["to_start"], row["to_previous"]) == (0.629, 0.955)
    assert (frame.loc[frame["step"] == 0, ["to_start", "to_previous"]].to_numpy() == 1).all()


def test_downstream():
    frame = published.downstream()
    assert list(frame.columns) == ["task", "condition", "value"]
    assert frame["condition"].unique().tolist() == ["tied", "tied, input x5"] and frame["task"].nunique() == 9
    assert one(frame, task="BoolQ", condition="tied, input x5")["value"] == 0.548


def test_notes_say_what_the_numbers_say():
    notes = published.NOTES
    moved = published.evolution().pivot(index=["model", "step"], columns="table", values="to_previous")
    moved = moved[moved.index.get_level_values("step") > 0]
    for model, input_moves_more, intervals in (("Pythia-1B", 13, 15), ("OLMo-7B-0424", 2, 5)):
        series = moved.loc[model]
        assert (sum(series["input"] < series["output"]), len(series)) == (input_moves_more, intervals)
    assert "13 of 15" in notes["figure_9"] and "2 of 5" in notes["figure_8"]

    late = moved.loc["OLMo-1B-0724"].loc[18_000:]  # the intervals that end at 18,000 and at 20,000
    assert (late["input"] <= late["output"]).all()
    assert "16,000 to 20,000" in notes["figure_3"]

    chance, scaling = gaussian_chance(50_280, 2_048, "orthogonal"), published.scaling()
    at_chance = scaling.query("step == 1000 and reference == 'input'")["value"]
    assert at_chance.tolist() == pytest.approx([chance] * 3, abs=0.002)
    assert f"{chance:.3f}" in notes["table_6"]
    for kind in ("orthogonal", "linear"):
        assert f"{gaussian_chance(50_280, 2_048, kind):.3f}" in notes["table_1"]
        assert f"{gaussian_chance(36_938, 2_560, kind):.3f}" in notes["table_1"]

    for reference in ("input", "output"):
        base, gain = (one(scaling, step=10_000, scale=scale, reference=reference)["value"] for scale in (1, 5))
        assert f"{gain - base:+.3f}" in notes["table_2"]
