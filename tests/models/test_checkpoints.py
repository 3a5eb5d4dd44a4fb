import gc
import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from local_hub import Fault, LocalHub, environment, pointing_at
from safetensors.torch import load_file, save_file

from tying_utils import models
from tying_utils.base.folder import VerifiedFolder
from tying_utils.base.hub import Unreachable
from tying_utils.measures.integrity import same_bytes
from tying_utils.models import checkpoints
from tying_utils.models.checkpoints import read_tables, steps

ARCHITECTURES = ["olmo", "olmo2", "gpt_neox", "gpt_neo", "qwen3"]
SIZES = {"vocab_size": 320, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 32}


def saved(folder, arch="olmo", *, tied, dtype=torch.float32, shards=False, **sizes):
    model = models.build(arch, tied=tied, seed=3, **{**SIZES, **sizes})
    model.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="12kB" if shards else "5GB")
    assert shards == (folder / "model.safetensors.index.json").exists()
    return folder


def configured(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def from_pretrained(folder):
    from transformers import AutoModelForCausalLM

    return models.tables(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))


@pytest.fixture
def hub(tmp_path):
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        yield hub


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture
def copy(untied, tmp_path):
    return shutil.copytree(untied, tmp_path / "copy")


@pytest.fixture
def weights(untied):
    return load_file(untied / "model.safetensors")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Tables of 1.3 MB each beside as much of trunk, so that bytes can be counted."""
    folder = tmp_path_factory.mktemp("wide")
    return saved(folder, tied=False, vocab_size=2560, d_model=128, n_layers=4, n_heads=4)


def own_size(tables):
    return sum(t.nbytes for t in ([tables.input] if tables.tied else [tables.input, tables.output]))


def assert_equal(tables, expected):
    assert tables.tied == expected.tied
    assert same_bytes(tables.input, expected.input)
    assert same_bytes(tables.output, expected.output)
    if tables.tied:
        assert tables.output.data_ptr() == tables.input.data_ptr()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "shards"), [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)])
def test_tables_equal_those_of_the_loaded_model_bit_for_bit(arch, tied, dtype, shards, tmp_path, hub):
    folder = saved(tmp_path / "model", arch, tied=tied, dtype=dtype, shards=shards)
    expected = from_pretrained(folder)
    assert expected.input.dtype == dtype
    local = read_tables(folder)
    assert_equal(local, expected)
    assert local.commit is None and local.bytes_read >= own_size(local)
    commit = hub.add("org/model", folder)
    remote = read_tables("org/model", progress=False)
    assert_equal(remote, expected)
    assert remote.commit == commit and remote.names == local.names
    assert len(set(local.names)) == (1 if tied else 2)


def test_nothing_but_the_tables_is_fetched_and_a_second_call_reads_no_network(wide, hub):
    hub.add("org/wide", wide)
    tables = read_tables("org/wide", progress=False)
    assert tables.bytes_read == hub.served
    assert own_size(tables) == 2 * 2560 * 128 * 4
    assert hub.served <= 1.01 * own_size(tables) + 200_000
    assert hub.served < 0.7 * (wide / "model.safetensors").stat().st_size
    hub.reset()
    again = read_tables("org/wide")
    assert hub.requests == [] and again.bytes_read == 0
    assert_equal(again, tables)
    by_commit = read_tables("org/wide", tables.commit)
    assert hub.requests == [] and by_commit.commit == tables.commit
    hub.stop()
    assert_equal(read_tables("org/wide"), tables)


def test_a_branch_that_moved_is_found_on_refresh(tmp_path, hub):
    first = hub.add("org/model", saved(tmp_path / "one", tied=True))
    old = read_tables("org/model")
    second = hub.add("org/model", saved(tmp_path / "two", "gpt_neo", tied=False))
    assert read_tables("org/model").commit == old.commit == first
    new = read_tables("org/model", refresh=True)
    assert new.commit == second and not new.tied
    assert read_tables("org/model").commit == second
    assert read_tables("org/model", first).tied


@pytest.mark.parametrize("name", ["input.safetensors", "output.safetensors", "record.json", "refs.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "emptied", "missing"])
def test_every_damaged_file_of_the_cache_is_named_set_aside_and_read_anew(untied, hub, tmp_path, damaging, recwarn, name, how):
    hub.add("org/model", untied)
    expected = {part: getattr(read_tables("org/model"), part).clone() for part in ("input", "output")}
    gc.collect()  # what is mapped is not to be cut short
    (file,) = (tmp_path / "cache").rglob(name)
    damaged = damaging(file, how)
    hub.reset()
    again = read_tables("org/model")
    # Beside the header, the tables that are not whole: both where no record says that they are.
    assert len([request for request in hub.requests if request.range]) == {"refs.json": 1, "record.json": 3}.get(name, 2)
    assert all(same_bytes(getattr(again, part), table) for part, table in expected.items())
    asides = list(file.parent.glob("*.damaged-*"))
    assert [aside.read_bytes() for aside in asides] == ([] if how == "missing" else [damaged])
    said = [str(warning.message) for warning in recwarn.list if "made again" in str(warning.message)]
    if not (name.endswith(".json") and how == "missing"):  # a record that is gone is none that was ever made
        assert len(said) == 1 and str(file) in said[0]
    hub.reset()
    assert read_tables("org/model").bytes_read == 0 and hub.requests == []


@pytest.mark.parametrize("tied", [True, False])
def test_bin_checkpoints_are_read_whole_and_say_so(tied, tmp_path, hub):
    folder = saved(tmp_path / "model", "gpt_neox", tied=tied)
    expected = from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if tied:
        weights["embed_out.weight"] = weights["gpt_neox.embed_in.weight"]
    (folder / "model.safetensors").unlink()
    for legacy in (False, True):
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        with pytest.warns(UserWarning, match="pytorch_model.bin are read") as said:
            assert_equal(read_tables(folder), expected)
        assert len(said) == 1
    hub.add("org/model", folder)
    with pytest.warns(UserWarning, match="pytorch_model.bin are read"):
        remote = read_tables("org/model")
    assert_equal(remote, expected)
    assert hub.served == remote.bytes_read >= (folder / "pytorch_model.bin").stat().st_size
    hub.reset()
    assert_equal(read_tables("org/model"), expected)
    assert hub.requests == []


def test_sharded_bin_checkpoints(untied, copy, weights):
    (copy / "model.safetensors").unlink()
    shards = {name: f"pytorch_model-0000{1 + (name == 'lm_head.weight')}-of-00002.bin" for name in weights}
    for file in set(shards.values()):
        torch.save({name: weights[name] for name in shards if shards[name] == file}, copy / file)
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.warns(UserWarning, match="are read"):
        assert_equal(read_tables(copy), from_pretrained(untied))


def test_the_tie_is_read_from_the_checkpoint(copy, weights):
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, copy / "model.safetensors")
    with pytest.warns(UserWarning, match="tie_word_embeddings = False, the checkpoint holds one table"):
        tables = read_tables(copy)
    assert tables.tied and len(set(tables.names)) == 2
    weights["lm_head.weight"][-1, -1] += 1e-6
    save_file(weights, copy / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not read_tables(copy).tied
    configured(copy, tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="holds two tables that differ"):
        assert not read_tables(copy).tied


def test_names_choose_the_tensors(copy, weights):
    save_file(weights | {"model.other.embed_tokens.weight": weights["lm_head.weight"].clone()}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"embed_tokens.weight.*names=\(input, output\)"):
        read_tables(copy)
    tables = read_tables(copy, names=("model.embed_tokens.weight", "model.other.embed_tokens.weight"))
    assert not tables.tied and same_bytes(tables.output, weights["lm_head.weight"])
    with pytest.raises(ValueError, match=r"names: .* holds no tensor 'x'; it holds .*lm_head.weight"):
        read_tables(copy, names=("x", "lm_head.weight"))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, headers={"Retry-After": "0"}, times=2),
        Fault(status=503, times=1),
        Fault(status=503, times=1, methods=("HEAD",)),
        Fault(drop_after=7000, times=3),
        Fault(drop_after=0, times=1),
        Fault(short=1000, times=2),
    ],
    ids=["429", "503", "503-head", "drop", "drop-at-once", "short"],
)
def test_a_failing_server_is_asked_again(fault, untied, hub):
    hub.add("org/model", untied)
    hub.faults[".safetensors"] = fault
    assert_equal(read_tables("org/model"), from_pretrained(untied))
    assert fault.times == 0
    assert hub.served <= 1.01 * 2 * 320 * 16 * 4 + 200_000


def test_what_came_before_a_drop_is_not_asked_for_again(wide, hub):
    hub.add("org/model", wide)
    hub.faults[".safetensors"] = Fault(drop_after=500_000, skip=1)  # the header, then each answer stops short
    tables = read_tables("org/model")
    assert_equal(tables, from_pretrained(wide))
    assert tables.bytes_read <= 1.01 * own_size(tables) + 200_000


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_a_server_that_ignores_ranges_makes_the_whole_file_come(skip, untied, hub):
    hub.add("org/model", untied)
    hub.faults[".safetensors"] = Fault(ignore_range=True, skip=skip)
    with pytest.warns(UserWarning, match="the server serves no part of model.safetensors"):
        tables = read_tables("org/model")
    assert_equal(tables, from_pretrained(untied))


@pytest.mark.parametrize("fault", [Fault(wrong_range=(8, 0)), Fault(wrong_range=(-1, 0), skip=1), Fault(drop_after=0, skip=1)])
def test_a_server_that_goes_on_failing_leaves_no_half_file(fault, untied, hub, tmp_path):
    hub.add("org/model", untied)
    hub.faults[".safetensors"] = fault
    with pytest.raises(Unreachable, match="try again later"):
        read_tables("org/model")
    assert not list((tmp_path / "cache" / "assets").rglob("*.safetensors*"))
    hub.faults.clear()
    assert_equal(read_tables("org/model"), from_pretrained(untied))


def test_an_interrupted_reading_goes_on_with_the_next_table(wide, hub):
    hub.add("org/model", wide)
    hub.faults[".safetensors"] = Fault(status=404, skip=2)  # the header and one table come
    with pytest.raises(ValueError):
        read_tables("org/model")
    hub.reset()
    tables = read_tables("org/model")
    assert_equal(tables, from_pretrained(wide))
    assert hub.served < 0.6 * own_size(tables) + 200_000


def lies(**changes):
    return lambda header: header["lm_head.weight"].update(changes)


def swapped(header):
    one, other = header["lm_head.weight"], header["model.layers.0.self_attn.q_proj.weight"]
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


LIES = {
    "offsets of another size": lies(data_offsets=[0, 320 * 16 * 4 + 4]),
    "another tensor's place": swapped,
    "negative": lies(data_offsets=[-4, 320 * 16 * 4 - 4]),
    "beyond the end": lies(data_offsets=[10**9, 10**9 + 320 * 16 * 4]),
    "no numbers": lies(data_offsets=["a", None]),
    "another dtype": lies(dtype="F16"),
    "another shape": lies(shape=[320, 15]),
    "a shape turned": lies(shape=[16, 320]),
    "no shape": lambda header: header["lm_head.weight"].pop("shape"),
    "a tensor missing": lambda header: header.pop("model.layers.0.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused(lie, copy, hub, tmp_path):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    lie(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    hub.add("org/model", copy)
    for source in (copy, "org/model"):
        with pytest.raises(ValueError, match="source: .*(is damaged|another model)"):
            read_tables(source)
    assert not list((tmp_path / "cache" / "assets").rglob("*put.safetensors"))


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda content: b"\x01\x02345",
        lambda content: struct.pack("<Q", 1 << 60) + b"{}",
        lambda content: struct.pack("<Q", 4) + b"nope",
        lambda content: content[:-1],
    ],
)
def test_a_file_that_is_no_whole_safetensors_is_refused(spoilt, copy):
    path = copy / "model.safetensors"
    path.write_bytes(spoilt(path.read_bytes()))
    with pytest.raises(ValueError, match="is damaged: its header"):
        read_tables(copy)


def test_a_header_of_many_megabytes_is_not_read(copy):
    with (copy / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    with pytest.raises(ValueError, match="is damaged: its header claims 200000000 bytes of a file of 300000000"):
        read_tables(copy)


def test_an_index_that_lies_is_refused(tmp_path):
    folder = saved(tmp_path / "model", tied=False, shards=True)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    other = next(file for file in index["weight_map"].values() if file != index["weight_map"]["lm_head.weight"])
    index["weight_map"]["lm_head.weight"] = other
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="the index of .* places lm_head.weight in"):
        read_tables(folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_tables(folder)


@pytest.mark.filterwarnings("ignore:.*no safetensors")
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_names_a_file_that_is_not_there_is_refused(tmp_path, hub, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 6, "architectures": ["LlamaForCausalLM"]}))
    shards = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), "lost")
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": shards}))
    hub.add("org/lost", folder)
    for source in (folder, "org/lost"):
        with pytest.raises(ValueError, match=rf"^source: {source} holds no lost, though it says so; copy it anew"):
            read_tables(source)


def test_what_is_not_there_is_said_in_one_sentence(untied, hub, monkeypatch):
    hub.add("org/model", untied)
    hub.add("org/closed", untied, gated=True)
    for source, revision, said in (
        ("org/none", None, "has no model 'org/none' that this account may see; check the spelling"),
        ("org/closed", None, "org/closed is gated; accept its terms at .*/org/closed, then log in"),
        ("org/model", "step7", "revision: org/model has no revision 'step7'"),
        ("/no/such/folder", None, "'/no/such/folder' is neither a folder nor a model id like"),
        (untied, "step7", "revision: .* holds no folder 'step7'; it holds none"),
    ):
        with pytest.raises(ValueError, match=said):
            read_tables(source, revision)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert_equal(read_tables("org/closed"), from_pretrained(untied))
    hub.stop()
    with pytest.raises(Unreachable, match="cannot be reached for org/other .*give a local folder"):
        read_tables("org/other")


def test_no_token_is_sent_to_another_host(untied, tmp_path, monkeypatch):
    with LocalHub(cdn_from=1000) as hub, pointing_at(hub, tmp_path):
        monkeypatch.setenv("HF_TOKEN", hub.token)
        hub.add("org/closed", untied, gated=True)
        assert_equal(read_tables("org/closed"), from_pretrained(untied))
        elsewhere = [request for request in hub.requests if request.host.startswith("localhost")]
        assert elsewhere and all(request.authorization is None for request in elsewhere)
        assert all(request.authorization for request in hub.requests if request not in elsewhere)
        assert sum(request.sent for request in elsewhere) < (untied / "model.safetensors").stat().st_size + 70_000


def test_a_snapshot_of_the_hub_library_is_used_and_serves_without_a_network(untied, hub):
    hub.add("org/model", untied)
    snapshot_download("org/model")
    hub.reset()
    tables = read_tables("org/model")
    assert tables.bytes_read == 0 and all(request.method == "HEAD" for request in hub.requests)
    assert_equal(tables, from_pretrained(untied))


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_a_snapshot_will_do(offline, untied, tmp_path):
    script = """
from tying_utils.checkpoints import read_tables
t = read_tables('org/model')
print(t.bytes_read, t.tied)
read_tables('org/other')
"""
    with LocalHub() as hub:
        hub.add("org/model", untied)
        with pointing_at(hub, tmp_path):
            snapshot_download("org/model")
        variables = environment(hub, tmp_path) | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    assert shown.stdout.split() == ["0", "False"], shown.stderr
    assert "Unreachable: source: " in shown.stderr
    assert ("HF_HUB_OFFLINE is set" if offline else "cannot be reached") in shown.stderr


@pytest.mark.parametrize(("rows", "said"), [(None, "gives no vocab_size"), (321, "promises 321 rows")])
def test_a_configuration_that_does_not_fit(rows, said, copy):
    configured(copy, vocab_size=rows)
    with pytest.raises(ValueError, match=said):
        read_tables(copy)


def test_a_folder_without_a_checkpoint(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor pytorch_model.bin"):
        read_tables(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json of .* is not JSON"):
        read_tables(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no config.json"):
        read_tables(copy)


def test_an_encoder_has_no_output_table(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=300, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"holds no output table \(BertModel\); a causal language model is needed"):
        read_tables(tmp_path / "bert")


def test_quantised_tables_are_refused(copy, weights):
    for dtype in (torch.int8, torch.float8_e4m3fn, torch.uint32):
        save_file(weights | {"lm_head.weight": torch.zeros(320, 16).to(dtype)}, copy / "model.safetensors")
        with pytest.raises(ValueError, match=r"output table lm_head.weight .* is stored as .*, quantised or not"):
            read_tables(copy)
    del weights["lm_head.weight"]
    save_file(weights | {"lm_head.qweight": torch.zeros(320, 2, dtype=torch.int32)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"output table .* is quantised \(lm_head.qweight\)"):
        read_tables(copy)


def test_steps_lists_the_revisions_of_training(untied, hub, tmp_path):
    for name in ("step10", "step2-tokens4B", "step0", "main", "other"):
        hub.add("org/model", untied, revision=name)
        shutil.copytree(untied, tmp_path / "local" / name)
    expected = {0: "step0", 2: "step2-tokens4B", 10: "step10"}
    assert steps("org/model") == steps(tmp_path / "local") == expected
    assert list(steps("org/model")) == [0, 2, 10]
    assert_equal(read_tables(tmp_path / "local", "step10"), from_pretrained(untied))
    hub.add("org/plain", untied)
    with pytest.raises(ValueError, match="no revision called step0, .*; it has no other revisions, its checkpoints are not"):
        steps("org/plain")


STYLES = {
    "OLMo 2": ("stage1-step{}-tokens5B", "stage1"),
    "OLMo 2, annealed": ("stage2-ingredient1-step{}-tokens3B", "stage2-ingredient1"),
    "OLMo 3": ("stage3-step{}", "stage3"),
    "SmolLM3": ("stage1-step-{}", "stage1"),
    "SmolLM3, longer": ("lc-4k-to-32k-step-{}", "lc-4k-to-32k"),
    "BLOOM": ("global_step{}", ""),
    "in a stage": ("stage1-global_step{}", "stage1"),
    "Trainer": ("checkpoint-{}", ""),
    "LLM360": ("ckpt_{}", ""),
    "Megatron": ("iter_000{}", ""),
    "Apertus": ("step{}-tokens1.5T", ""),
}


@pytest.mark.parametrize("style", STYLES)
def test_steps_reads_other_styles(style, tmp_path):
    name, stage = STYLES[style]
    for step in (1000, 2, 30):
        (tmp_path / name.format(step)).mkdir()
    for other in ("main", "runs", "step", "stepping-1", "instruct"):
        (tmp_path / other).mkdir()
    expected = {step: name.format(step) for step in (2, 30, 1000)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps(tmp_path) == steps(tmp_path, stage) == expected
    assert list(steps(tmp_path)) == [2, 30, 1000]


def test_stages_are_kept_apart(untied, hub):
    for name in ("stage1-step0-tokens0B", "stage1-step1000-tokens5B", "stage2-ingredient1-step0-tokens0B", "lc-step-0", "main"):
        hub.add("org/model", untied, revision=name)
    others = r"steps of stage 'stage1'; it has others, as stage='stage2-ingredient1', 'lc'$"
    with pytest.warns(UserWarning, match=others):
        assert steps("org/model") == {0: "stage1-step0-tokens0B", 1000: "stage1-step1000-tokens5B"}
    assert steps("org/model", "stage2-ingredient1") == {0: "stage2-ingredient1-step0-tokens0B"}
    with pytest.raises(ValueError, match=r"^stage: org/model has 'stage1', 'stage2-ingredient1', 'lc', got 'stage3'$"):
        steps("org/model", "stage3")
    hub.add("org/model", untied, revision="step7")
    with pytest.warns(UserWarning, match="steps of stage ''; it has others, as stage='stage1'"):
        assert steps("org/model") == {7: "step7"}


def test_revisions_that_look_like_steps_and_are_not_read_are_named(tmp_path):
    for name in ("step0", "step1000", "step20k", "step2000-unsharded", "global_step9_universal", "v1.0"):
        (tmp_path / name).mkdir()
    with pytest.warns(UserWarning, match=r"not read as steps: global_step9_universal, step2000-unsharded, step20k$"):
        assert steps(tmp_path) == {0: "step0", 1000: "step1000"}


@pytest.mark.parametrize("count", [3, 20])
def test_revisions_of_an_unknown_style_are_listed(count, tmp_path):
    for number in range(count):
        (tmp_path / f"after-{number:02}-days").mkdir()
    more = " and 8 more" if count == 20 else ""
    with pytest.raises(
        ValueError, match=rf"; it has after-00-days, .*-days{more}; give one of them to read_tables as revision$"
    ):
        steps(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_only_the_tables_are_held_in_memory(tmp_path):
    folder = saved(tmp_path / "model", tied=False, vocab_size=32_000, d_model=512, n_layers=2, n_heads=4)
    script = f"""
import pathlib, torch, safetensors, tying_utils.checkpoints as c
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # kB
before = peak()
t = c.read_tables({str(folder)!r})
t.input.sum(), t.output.sum()
print((peak() - before) * 1024 / (2 * t.input.numel() * 4))
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert 0.5 < float(shown.stdout) <= 1.3, shown.stderr


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_cache_of_the_first_format_two_tables_are_used_and_a_tie_is_read_anew(tied, tmp_path, hub):
    hub.add("org/model", saved(tmp_path / "model", tied=tied))
    first = read_tables("org/model")
    (path,) = (path for path in (tmp_path / "cache").rglob("record.json") if "refs" not in path.parts)
    cached = VerifiedFolder(path.parent, path.name)
    record = cached.read() or {}
    assert record["format"] == checkpoints.FORMAT == 2
    cached.commit(record | {"format": 1})
    hub.reset()
    assert_equal(read_tables("org/model"), first)
    assert bool(hub.requests) == tied, "where one table was held, another of an unknown name may have been overlooked"


@pytest.mark.parametrize("source", [None, 5, b"x", ["x"], "~nobody-of-that-name/x", "x" * 300])
def test_a_source_that_can_be_none_is_named(source):
    for read in (read_tables, steps):
        with pytest.raises(ValueError, match="^source: "):
            read(source)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(({"names": names}, "^names: two tensors' names") for names in ((), ("lm_head.weight",), {"a": "b"}, 5, "ab", (1, 2))),
        *(({"revision": revision}, "^revision: ") for revision in (5, b"main", "x" * 300)),
    ],
)
def test_a_bad_argument_is_named(untied, tmp_path, arguments, said):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for source in (untied, "org/none" if arguments.get("revision") != "x" * 300 else untied, tmp_path / "m.gguf"):
        with pytest.raises(ValueError, match=said):
            read_tables(source, **arguments)
    with pytest.raises(ValueError, match="^stage: a string is needed, got 5"):
        steps(untied, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("architectures", [[None], None, 5, {"a": 1}, "LlamaModel"])
def test_a_configuration_whose_architectures_are_none(copy, weights, architectures):
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    with pytest.raises(ValueError, match="holds no output table .a model of no stated architecture"):
        read_tables(copy)


def test_what_lies_beside_is_named(copy, tmp_path):
    with pytest.raises(ValueError, match=rf"^source: .*model.safetensors is a file; give its folder {copy}, "):
        read_tables(copy / "model.safetensors")
    run = tmp_path / "run"
    run.mkdir()
    copy.rename(run / "model")
    with pytest.raises(ValueError, match=rf"^source: .* holds no config.json; give {run / 'model'}$"):
        read_tables(run)
    (run / "q.GGUF").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=rf"; give {run / 'model'} or {run / 'q.GGUF'}$"):
        read_tables(run)
    with pytest.raises(ValueError, match="no GGUF file|package gguf is needed"):
        read_tables(run / "q.GGUF")
    assert not read_tables((run / "model").rename(tmp_path / "mod.gguf")).tied
