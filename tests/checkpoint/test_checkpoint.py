"""Checkpoint directories on disk: grown, sharded, staged; and every bad input in one clear line."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AlbertForMaskedLM, AutoModelForCausalLM

import mupscale
from models import CONFIGS, build
from mupscale import GrowthError
from mupscale.checkpoint import staging
from mupscale.checkpoint.reader import Checkpoint
from mupscale.checkpoint.staging import staged
from mupscale.cli import main
from mupscale.growth import grow_checkpoint
from mupscale.operators.catalogue import OPERATORS
from mupscale.operators.noise import BLOCK_ENTRIES
from mupscale.study.spec.growth import recipe_of


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "narrow"
    build("llama").float().save_pretrained(path)
    (path / "tokenizer_config.json").write_text('{"a": 1}')
    (path / "generation_config.json").write_text('{"max_length": 7}')
    (path / "pytorch_model.bin").write_bytes(b"an old copy")
    return path


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {"llama", "mistral", "qwen2", "qwen3"}))
def test_a_checkpoint_grows_as_the_module_does(name, tmp_path):
    narrow = build(name).float()
    narrow.save_pretrained(tmp_path / "narrow")
    plan = grow_checkpoint(tmp_path / "narrow", tmp_path / "wide", width=2, seed=5, operator="duplicate")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    wide = mupscale.grow(narrow, plan, seed=5, operator="duplicate")
    for (n, a), (_, b) in zip(stored.named_parameters(), wide.named_parameters(), strict=True):
        assert torch.equal(a, b), n
    assert mupscale.Plan.load(tmp_path / "wide").params == plan.params


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_checkpoint_grows_by_any_operator_as_the_module_does(operator, source, tmp_path):
    growth = {"axes": {"layers": 2}} if operator.startswith("stack") else {"width": 2}
    options = {"operator": operator, "seed": 5, **({"shrink": 0.7} if operator == "zero_pad" else {})}
    plan = grow_checkpoint(source, tmp_path / "wide", **growth, **options)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    wide = mupscale.grow(build("llama").float(), plan, **options)
    for (n, a), (_, b) in zip(stored.named_parameters(), wide.named_parameters(), strict=True):
        assert torch.equal(a, b), n


def test_what_lies_beside_the_weights_comes_along(source, tmp_path):
    grow_checkpoint(source, tmp_path / "wide", width=2, operator="duplicate")
    names = {p.name for p in (tmp_path / "wide").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "mupscale.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    assert json.loads((tmp_path / "wide/generation_config.json").read_text()) == {"max_length": 7}
    manifest = json.loads((tmp_path / "wide/mupscale.json").read_text())
    assert (manifest["operator"], manifest["noise"], manifest["seed"]) == ("duplicate", "balanced:1", 0)
    assert set(manifest["source"]["sha256"]) == {"model.safetensors"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"],
            "examples/frameworks do with those of acc",
        ),
        ([".metadata", "__0_0.distcp"], "grow in place, mupscale.distributed.grow_"),
        (["common.pt", "metadata.json", ".metadata"], "Megatron's; let it export a Hugging Face one"),
        (["notes.txt"], "config.json: not found"),
    ],
)
def test_what_distributed_training_saves_is_told_apart(files, said, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(GrowthError, match=said):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("operator", ["duplicate", "expand", "zero_pad"])
def test_workers_and_shards_change_no_tensor(operator, tmp_path):
    """Of tensors that are made in several blocks, with noise."""
    config = CONFIGS["llama"]()
    config.vocab_size, config.max_position_embeddings = 20_000, 64
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "narrow")
    states = []
    for workers in (1, 2):
        for size in ("5GB", "1MB"):
            wide = tmp_path / f"{workers}-{size}"
            grow = ["grow", str(tmp_path / "narrow"), str(wide), "--width", "2", "--operator", operator]
            assert main([*grow, "--workers", str(workers), "--max-shard-size", size]) == 0
            states.append(AutoModelForCausalLM.from_pretrained(wide).state_dict())
    assert max(tensor.numel() for tensor in states[0].values()) > 2 * BLOCK_ENTRIES
    for state in states[1:]:
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())
    assert main([*grow, "--workers", "0", "--overwrite"]) == 2


def test_shards_hold_the_same_tensors_in_stored_dtypes(tmp_path):
    narrow = build("llama").float()
    narrow.model.norm.to(torch.bfloat16)
    narrow.save_pretrained(tmp_path / "narrow", max_shard_size="20KB")
    grow_checkpoint(tmp_path / "narrow", tmp_path / "one", width=2, operator="duplicate")
    grow_checkpoint(
        tmp_path / "narrow", tmp_path / "many", width=2, max_shard_size="50KB", operator="duplicate"
    )
    one = load_file(tmp_path / "one/model.safetensors")
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(p.stat().st_size < 52_000 for p in shards)
    many = {n: t for p in shards for n, t in load_file(p).items()}
    assert many.keys() == one.keys()
    assert all(torch.equal(many[n], one[n]) for n in one)
    assert one["model.norm.weight"].dtype == torch.bfloat16
    AutoModelForCausalLM.from_pretrained(tmp_path / "many")


def test_dtype_changes_what_is_stored(source, tmp_path):
    grow_checkpoint(source, tmp_path / "wide", width=2, dtype=torch.bfloat16, operator="duplicate")
    assert {t.dtype for t in load_file(tmp_path / "wide/model.safetensors").values()} == {torch.bfloat16}
    assert main(["verify", str(source), str(tmp_path / "wide")]) == 0


def test_old_gpt2_checkpoints_without_prefix_and_with_masks(tmp_path):
    narrow = build("gpt2").float()
    narrow.save_pretrained(tmp_path / "new")
    old = {
        n.removeprefix("transformer."): t for n, t in load_file(tmp_path / "new/model.safetensors").items()
    }
    old["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old/model.safetensors")
    (tmp_path / "old/config.json").write_text((tmp_path / "new/config.json").read_text())
    grow_checkpoint(tmp_path / "old", tmp_path / "wide", width=2, operator="duplicate")
    plan = mupscale.Plan.load(tmp_path / "wide")
    assert mupscale.verify(narrow, AutoModelForCausalLM.from_pretrained(tmp_path / "wide"), plan)


def test_a_tied_readout_that_is_stored_too_must_agree(tmp_path):
    build("llama_tied").float().save_pretrained(tmp_path / "narrow")
    file = tmp_path / "narrow/model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    grow_checkpoint(tmp_path / "narrow", tmp_path / "wide", width=2, operator="duplicate")
    assert "lm_head.weight" not in load_file(tmp_path / "wide/model.safetensors")
    tensors["lm_head.weight"][0] += 1
    save_file(tensors, file)
    with pytest.raises(GrowthError, match="differ, but the config ties them"):
        grow_checkpoint(tmp_path / "narrow", tmp_path / "other", width=2, operator="duplicate")


# ---- bad input: exit status 2 and one line, and no trace of the destination --------------------------------


def edit_config(path, **fields):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))


def edit_weights(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def poison(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")


def truncate(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def shard(path, stored):
    """An index that says the same of every tensor."""
    (path / "model.safetensors").rename(path / "model-1.safetensors")
    names = load_file(path / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(names, stored)}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


DEEP = "[" * 100_000 + "]" * 100_000

BAD = {
    "deep config": (
        lambda p: (p / "config.json").write_text(DEEP),
        [],
        "config.json: not valid JSON (maximum",
    ),
    "list of families": (
        lambda p: edit_config(p, model_type=["llama"]),
        [],
        "model_type ['llama'] is unknown to transformers",
    ),
    "a class that is no model": (
        lambda p: edit_config(p, architectures=["pipeline"]),
        [],
        "'pipeline' is no model of transformers",
    ),
    "a number for classes": (
        lambda p: edit_config(p, architectures=-1),
        [],
        "architectures: is -1, expected a list of names",
    ),
    "no name for a class": (
        lambda p: edit_config(p, architectures=[None]),
        [],
        "architectures: is [None], expected a list of names",
    ),
    "a class that is a number": (
        lambda p: edit_config(p, architectures=[3]),
        [],
        "3 is no model of transformers",
    ),
    "a class of another config": (
        lambda p: edit_config(p, architectures=["GPT2LMHeadModel"]),
        [],
        "no GPT2LMHeadModel can be built of this llama config",
    ),
    "negative size": (
        lambda p: edit_config(p, hidden_size=-4),
        [],
        "no LlamaForCausalLM can be built of this",
    ),
    "more layers than tensors": (
        lambda p: edit_config(p, num_hidden_layers=100_000),
        [],
        "num_hidden_layers is 100000, but the weights are 21 tensors; correct it",
    ),
    "shard that is a number": (lambda p: shard(p, 3), [], "files beside it in weight_map, found 3"),
    "shard elsewhere": (
        lambda p: shard(p, "/etc/passwd"),
        [],
        "expected names of files beside it in weight_map, found '/etc/passwd'",
    ),
    "shard above": (
        lambda p: shard(p, "../model.safetensors"),
        [],
        "expected names of files beside it in weight_map, found '../model.safetensors'",
    ),
    "endless shards": (None, ["--max-shard-size", "1e400GB"], "max-shard-size '1e400GB': expected a size"),
    "axis given twice": (None, ["--axes", "d_ff=2", "d_ff=3"], "--axes d_ff=3: d_ff is given twice"),
    "too large for the dtype": (
        lambda p: edit_weights(p, lambda t: t["model.norm.weight"].fill_(1e6)),
        ["--dtype", "float16"],
        "model.norm.weight: grown, it holds numbers too large for torch.float16",
    ),
    "no config": (lambda p: (p / "config.json").unlink(), [], "config.json: not found"),
    "config is not JSON": (lambda p: (p / "config.json").write_text("{"), [], "config.json: not valid JSON"),
    "unknown family": (
        lambda p: edit_config(p, model_type="bart2"),
        [],
        "model_type 'bart2' is unknown to transformers",
    ),
    "truncated weights": (truncate, [], "model.safetensors: truncated or corrupt"),
    "corrupt weights": (
        lambda p: (p / "model.safetensors").write_bytes(b"\0" * 99),
        [],
        "model.safetensors: truncated or corrupt",
    ),
    "no weights": (
        lambda p: [(p / name).unlink() for name in ("model.safetensors", "pytorch_model.bin")],
        [],
        "model.safetensors: not found; expected the weights here, or in pytorch_model.bin",
    ),
    "corrupt pickle": (
        lambda p: (p / "model.safetensors").unlink(),  # beside it lies what is none
        [],
        "pytorch_model.bin: truncated or corrupt",
    ),
    "pickle with code": (
        lambda p: [(p / "model.safetensors").unlink(), torch.save({"a": os.system}, p / "pytorch_model.bin")],
        [],
        "pytorch_model.bin: truncated or corrupt (Weights only load failed",
    ),
    "old pickle": (
        lambda p: [
            (p / "model.safetensors").unlink(),
            torch.save({"a": torch.ones(2)}, p / "pytorch_model.bin", _use_new_zipfile_serialization=False),
        ],
        [],
        "pytorch_model.bin: is in torch's old format; load it, and save it again",
    ),
    "missing tensor": (
        lambda p: edit_weights(p, lambda t: t.pop("model.norm.weight")),
        [],
        "'model.norm.weight' is missing",
    ),
    "unknown tensor": (
        lambda p: edit_weights(p, lambda t: t.update(extra=torch.ones(2))),
        [],
        "tensor 'extra' is not in the model of config.json",
    ),
    "wrong shape": (
        lambda p: edit_config(p, intermediate_size=49),
        [],
        "'model.layers.0.mlp.down_proj.weight' has shape (32, 48), config.json says (32, 49)",
    ),
    "nan": (
        lambda p: edit_weights(p, poison),
        [],
        "'model.layers.1.mlp.up_proj.weight' holds NaN or infinity",
    ),
    "factor below one": (None, ["--width", "0"], "width: cannot grow by 0"),
    "fraction of copies": (
        None,
        ["--axes", "d_ff=5/4", "--operator", "duplicate"],
        "axis 'd_ff': grows by 5/4, but",
    ),
    "no factor": (None, ["--axes", "d_ff=1e3"], "--axes d_ff=1e3: expected NAME=FACTOR, such as d_ff=3"),
    "unknown axis": (None, ["--axes", "dff=2"], "unknown axis 'dff'"),
    "rotary head_dim": (None, ["--axes", "head_dim=2"], "rotary"),
    "unknown noise": (None, ["--noise", "loud:1"], "noise 'loud:1': expected none or KIND:STRENGTH"),
    "unknown operator": (None, ["--operator", "triplicate"], "operator 'triplicate' is unknown"),
    "unknown dtype": (None, ["--dtype", "int4"], "dtype 'int4': expected one of"),
    "bad shard size": (
        None,
        ["--max-shard-size", "huge"],
        "max-shard-size 'huge': expected a size such as 5GB",
    ),
    "not a number": (None, ["--width", "two"], "--width two: expected a factor, such as 2"),
    "unknown option": (None, ["--widht", "2"], "Unrecognized options: --widht"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two(case, source, tmp_path, capsys):
    spoil, options, message = BAD[case]
    if spoil is not None:
        spoil(source)
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert {p.name for p in tmp_path.iterdir()} == {"narrow"}


def test_layers_that_share_their_weights_may_be_more_than_these(tmp_path):
    config = AlbertConfig(vocab_size=40, embedding_size=16, hidden_size=32, num_attention_heads=4)
    config.update({"intermediate_size": 48, "num_hidden_layers": 64, "architectures": ["AlbertForMaskedLM"]})
    AlbertForMaskedLM(config).save_pretrained(tmp_path / "narrow")
    checkpoint = Checkpoint(tmp_path / "narrow")
    assert len(checkpoint._files) < 64
    checkpoint.check_layers()


@pytest.mark.parametrize(
    "knobs",
    [
        {"noise": "gaussian:0.3", "optimizer_state": "fresh"},
        {"noise": 0, "optimizer_state": "asymmetric", "lr": 0.1},
        {"operator": "zero_pad", "shrink": 0.4, "optimizer_state": "carried"},
        {"operator": "expand", "shrink": 0.7},
    ],
)
def test_what_a_study_grew_by_the_command_grows_by(knobs, source, tmp_path):
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2", *recipe_of(knobs).split()]) == 0


FORMS = ("model.safetensors", "shards", "pytorch_model.bin", "pickled shards")  # as transformers reads them


def put_weights(path, model, form):
    """Save a model in a directory beside what is there, which transformers would remove."""
    folder = path / "saved"
    folder.mkdir()
    if not form.startswith("p"):
        model.save_pretrained(folder, max_shard_size="30KB" if form == "shards" else "5GB")
    else:
        file = "pytorch_model.bin" if form == FORMS[2] else "pytorch_model-1.bin"
        torch.save(model.state_dict(), folder / file)
        if form == FORMS[3]:
            index = {"weight_map": dict.fromkeys(model.state_dict(), file), "metadata": {}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for file in folder.iterdir():
        file.rename(path / file.name)
    folder.rmdir()


@pytest.mark.parametrize("first", range(4))
def test_of_weights_in_several_forms_those_are_read_that_transformers_reads(first, tmp_path):
    model = build("llama").float()
    for form in FORMS[first:]:
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        put_weights(tmp_path, model, form)
    model.config.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (first < 2)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight
    checkpoint = Checkpoint(tmp_path)
    assert torch.equal(checkpoint.tensor("lm_head.weight"), expected)
    assert torch.equal(checkpoint.load().lm_head.weight, expected)


def test_weights_under_a_name_of_their_own_are_not_passed_over(source, tmp_path):
    edit_config(source, transformers_weights="other.safetensors")
    with pytest.raises(GrowthError, match=r"transformers_weights is 'other.safetensors', which is not read"):
        grow_checkpoint(source, tmp_path / "wide", width=2)


def test_a_pickled_view_that_is_negated_is_refused(source, tmp_path, capsys):
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    norm = weights["model.norm.weight"]
    weights["model.norm.weight"] = torch.complex(torch.zeros_like(norm), -norm).conj().imag
    torch.save(weights, source / "pytorch_model.bin")
    assert torch.equal(torch.load(source / "pytorch_model.bin")["model.norm.weight"], norm)
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2"]) == 2
    said = f"{source}/pytorch_model.bin: holds a view that is negated or conjugated"
    assert said in capsys.readouterr().err


BAD_ARGUMENTS = {
    "dtype torch.int32: expected one of torch.float64, torch.float32": {"dtype": torch.int32},
    "dtype 'bfloat16': expected one of": {"dtype": "bfloat16"},
    "seed 0.5: expected a whole number": {"seed": 0.5},
    "seed None: expected a whole number": {"seed": None},
    "seed 'a': expected a whole number": {"seed": "a"},
    "max-shard-size 'five': expected a size": {"max_shard_size": "five"},
    "max-shard-size 5000: expected a size": {"max_shard_size": 5000},
    "max-shard-size b'5GB': expected a size": {"max_shard_size": b"5GB"},
    "workers 'two': expected a whole number": {"workers": "two"},
}


@pytest.mark.parametrize("said", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_anything_is_written(said, source, tmp_path, monkeypatch):
    monkeypatch.setattr("mupscale.checkpoint.staging.staged", None)
    with pytest.raises(GrowthError, match=said):
        grow_checkpoint(source, tmp_path / "wide", width=2, **BAD_ARGUMENTS[said])
    assert {p.name for p in tmp_path.iterdir()} == {"narrow"}


def test_a_seed_of_numpy_is_a_number(source, tmp_path):
    plan = grow_checkpoint(source, tmp_path / "wide", width=2, seed=np.int64(3), operator="duplicate")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    wide = mupscale.grow(build("llama").float(), plan, seed=3, operator="duplicate")
    assert torch.equal(stored.lm_head.weight, wide.lm_head.weight)
    assert mupscale.Plan.load(tmp_path / "wide").growth == plan.growth
    with pytest.raises(GrowthError, match="seed 0.5: expected a whole number"):
        mupscale.grow(build("llama").float(), plan, seed=0.5)


def test_a_link_to_nowhere_beside_the_weights_is_passed_over(source, tmp_path):
    (source / "tokenizer.json").symlink_to(tmp_path / "nowhere")
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2"]) == 0
    assert not os.path.lexists(tmp_path / "wide/tokenizer.json")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype, source, tmp_path, capsys):
    weights = load_file(source / "model.safetensors")
    name = sorted(weights)[0]
    torch.save({**weights, name: weights[name].to(dtype)}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2"]) == 2
    said = f"{source / 'pytorch_model.bin'}: {name!r} holds {dtype}; expected floating point numbers"
    assert said in capsys.readouterr().err


def test_missing_source(tmp_path, capsys):
    assert main(["grow", str(tmp_path / "none"), str(tmp_path / "wide"), "--width", "2"]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_nonfinite_weights_are_let_through_when_asked(source, tmp_path):
    edit_weights(source, poison)
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2", "--allow-nonfinite"]) == 0


def test_a_destination_is_replaced_only_when_asked_and_only_a_checkpoint(source, tmp_path, capsys):
    command = ["grow", str(source), str(tmp_path / "wide"), "--width", "2"]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists; choose another destination or add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--axes", "d_ff=3"]) == 0
    assert mupscale.Plan.load(tmp_path / "wide").growth["d_ff"] == 3
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    assert main(["grow", str(source), str(tmp_path / "precious"), "--width", "2", "--overwrite"]) == 2
    assert main(["grow", str(source), str(source), "--width", "2", "--overwrite"]) == 2
    assert main(["grow", str(source), str(tmp_path), "--width", "2", "--overwrite"]) == 2
    assert (tmp_path / "precious/thesis.txt").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide", "precious"}


def test_a_sentence_transformers_folder_keeps_its_pooling(source, tmp_path, capsys):
    (source / "modules.json").write_text("[]")
    (source / "1_Pooling").mkdir()
    width = json.loads((source / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    grow_checkpoint(source, tmp_path / "wide", width=2, operator="duplicate")
    grown = json.loads((tmp_path / "wide/1_Pooling/config.json").read_text())
    assert grown == pooling | {"word_embedding_dimension": 2 * width}
    assert (tmp_path / "wide/modules.json").is_file()

    for bad, said in (("[1]", "expected a JSON object"), ("{bad", "not valid JSON")):
        (source / "1_Pooling" / "config.json").write_text(bad)
        assert main(["grow", str(source), str(tmp_path / "wider"), "--width", "2"]) == 2
        assert f"1_Pooling/config.json: {said}" in capsys.readouterr().err
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    (source / "2_Dense").mkdir()
    (source / "2_Dense" / "config.json").write_text("{}")
    (source / "2_Dense" / "model.safetensors").write_bytes(b"")
    assert main(["grow", str(source), str(tmp_path / "wider"), "--width", "2"]) == 2
    assert "2_Dense: holds weights of a module after the model" in capsys.readouterr().err
    assert not (tmp_path / "wider").exists()


def precious(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder / "thesis.txt"


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_of_others_under_the_name_of_an_old_destination_is_left_alone(there, source, tmp_path):
    thesis = precious(tmp_path / ".wide.old")
    command = ["grow", str(source), str(tmp_path / "wide"), "--width", "2"]
    if there:
        (tmp_path / "wide").mkdir()
        assert main(command) == 2
    else:
        assert main(command) == 0
        assert main(["verify", str(tmp_path / "wide")]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide", ".wide.old"}
    assert thesis.read_text() == "years of work"


def test_it_is_in_the_way_of_an_overwriting_alone(source, tmp_path, capsys):
    command = ["grow", str(source), str(tmp_path / "wide"), "--width", "2", "--overwrite"]
    assert main(command) == 0
    thesis = precious(tmp_path / ".wide.old")
    assert main(command) == 2
    assert ".wide.old: is in the way of --overwrite" in capsys.readouterr().err
    assert thesis.exists()
    assert main(["verify", str(tmp_path / "wide")]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide", ".wide.old"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_others_have_under_the_name_of_an_unfinished_one_is_left_alone(
    overwrite, source, tmp_path, capsys
):
    thesis = precious(tmp_path / ".wide.partial")
    command = ["grow", str(source), str(tmp_path / "wide"), "--width", "2", *["--overwrite"] * overwrite]
    assert main(command) == 2
    assert ".wide.partial: is in the way, and of no growth" in capsys.readouterr().err
    assert thesis.exists()
    thesis.unlink()
    thesis.parent.rmdir()
    thesis.parent.write_text("a file")
    assert main(command) == 2
    assert ".wide.partial: is in the way (Not a directory)" in capsys.readouterr().err
    thesis.parent.unlink()
    thesis.parent.mkdir()
    assert main(command) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide"}


def test_killed_before_the_new_destination_has_its_name_it_can_be_repeated(source, tmp_path):
    """Whole, and without its journal."""
    script = (
        "import os, signal, sys\n"
        "from mupscale import growth\n"
        "from mupscale.checkpoint import staging\n"
        "staging._rename_new = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "growth.grow_checkpoint(sys.argv[1], sys.argv[2], width=2)\n"
    )
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "wide")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".wide.partial/mupscale.json").exists()
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide"}


def test_a_failure_while_writing_keeps_what_was_there(source, tmp_path, monkeypatch):
    grow_checkpoint(source, tmp_path / "wide", width=2, operator="duplicate")
    before = (tmp_path / "wide/model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    command = ["grow", str(source), str(tmp_path / "wide"), "--width", "3", "--overwrite"]
    with monkeypatch.context() as broken:
        broken.setattr("mupscale.checkpoint.staging.copy_companions", full)
        assert main(command) == 2
    assert (tmp_path / "wide/model.safetensors").read_bytes() == before
    assert main(command) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide"}


def test_a_killed_run_leaves_no_destination_and_can_be_repeated(source, tmp_path):
    script = (
        "import os, signal, sys\n"
        "from mupscale import growth\n"
        "from mupscale.checkpoint import staging\n"
        "staging.copy_companions = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)\n"
        "growth.grow_checkpoint(sys.argv[1], sys.argv[2], width=2)\n"
    )
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "wide")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "wide").exists()
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2"]) == 0
    assert main(["verify", str(source), str(tmp_path / "wide")]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide"}  # nor anything else


def test_killed_between_two_renames_the_old_destination_comes_back(source, tmp_path):
    grow_checkpoint(source, tmp_path / "wide", width=2, operator="duplicate")
    before = (tmp_path / "wide/model.safetensors").read_bytes()
    script = (
        "import errno, os, pathlib, signal, sys\n"
        "from mupscale import growth\n"
        "from mupscale.checkpoint import staging\n"
        "def cannot(*args): raise OSError(errno.EINVAL, 'no exchange here')\n"
        "staging._exchange = cannot\n"
        "rename = pathlib.Path.rename\n"
        "def once(path, target):\n"
        "    rename(path, target)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.rename = once\n"
        "growth.grow_checkpoint(sys.argv[1], sys.argv[2], width=3, overwrite=True)\n"
    )
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "wide")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "wide").exists()
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "3"]) == 2  # it is there again
    assert (tmp_path / "wide/model.safetensors").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide"}


def test_killed_right_after_the_exchange_the_new_destination_is_there(source, tmp_path):
    grow_checkpoint(source, tmp_path / "wide", width=2, operator="duplicate")
    script = (
        "import os, signal, sys\n"
        "from mupscale import growth\n"
        "from mupscale.checkpoint import staging\n"
        "exchange = staging._exchange\n"
        "staging._exchange = lambda *names: (exchange(*names), os.kill(os.getpid(), signal.SIGKILL))\n"
        "growth.grow_checkpoint(sys.argv[1], sys.argv[2], width=3, overwrite=True)\n"
    )
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "wide")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert mupscale.Plan.load(tmp_path / "wide").growth["d_ff"] == 3
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2", "--overwrite"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide"}


def test_one_run_at_a_time_writes_to_a_destination(source, tmp_path, capsys):
    with staged(tmp_path / "wide", source=source, overwrite=False, making={}) as (partial, _):
        (partial / "config.json").write_text("{}")
        assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2", "--overwrite"]) == 2
        assert "another run is writing to it" in capsys.readouterr().err
        assert (partial / "config.json").exists()
    assert [p.name for p in (tmp_path / "wide").iterdir()] == ["config.json"]


def test_where_nothing_can_be_written_one_line_says_so(source, tmp_path, capsys):
    (tmp_path / "file").touch()
    wide = tmp_path / "file" / "wide"
    assert main(["grow", str(source), str(wide), "--width", "2"]) == 2
    expected = f"mupscale: {wide}: Not a directory; choose a destination that can be written to\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_left_as_it_is(overwrite, source, tmp_path, capsys, monkeypatch):
    copy = staging.copy_companions

    def meanwhile(*args, **how):
        (tmp_path / "wide").mkdir()
        (tmp_path / "wide/thesis.txt").write_text("years of work")
        copy(*args, **how)

    monkeypatch.setattr("mupscale.checkpoint.staging.copy_companions", meanwhile)
    how = ["--overwrite"] * overwrite
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2", *how]) == 2
    said = "not a checkpoint directory" if overwrite else "appeared while this was being written"
    assert said in capsys.readouterr().err
    assert (tmp_path / "wide/thesis.txt").read_text() == "years of work"
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide"}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_where_there_is_no_room_one_line_says_so(with_optimizer, share, source, tmp_path, capsys):
    """As of a full disk, so of a limit on the size of files; filling a hole in one ended the process."""
    if with_optimizer:
        narrow = AutoModelForCausalLM.from_pretrained(source)
        optimizer = torch.optim.AdamW(narrow.parameters())
        narrow(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
        optimizer.step()
        torch.save(optimizer.state_dict(), source / "optimizer.pt")
    grow_checkpoint(source, tmp_path / "wide", width=2, operator="duplicate")
    capsys.readouterr()
    largest = max(p.stat().st_size for p in (tmp_path / "wide").iterdir())
    command = ["grow", str(source), str(tmp_path / "wider"), "--width", "2", "--operator", "duplicate"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), before[1]))
    try:
        status = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    said = capsys.readouterr().err
    assert "wider: File too large; " in said
    assert said.count("\n") == 1
    left = {p.name for p in tmp_path.iterdir()} - {"narrow", "wide"}
    assert ("nothing is left of it" in said) == (not left)
    assert main(command) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"narrow", "wide", "wider"}


@pytest.mark.parametrize("name", ["photo.jpg", "checkpoint-500", "train.py"])
def test_what_is_no_part_of_a_checkpoint_is_not_removed_with_it(name, source, tmp_path, capsys):
    command = ["grow", str(source), str(tmp_path / "wide"), "--width", "2", "--overwrite"]
    assert main(command) == 0
    strange = tmp_path / "wide" / name
    strange.mkdir() if "." not in name else strange.write_text("mine")
    assert main(command) == 2
    assert f"{name}: not part of a checkpoint" in capsys.readouterr().err
    assert strange.exists()


def test_the_destination_is_on_the_disk_before_it_has_its_name(source, tmp_path, monkeypatch):
    synced, rename = set(), Path.rename
    fsync, named = os.fsync, []

    def noted(handle):
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def renamed(path, target):
        named.append((Path(target).name, {p.stat().st_ino for p in (path, *path.rglob("*"))} - synced))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", renamed)
    grow_checkpoint(source, tmp_path / "wide", width=2, operator="duplicate")
    assert named == [("wide", set())]
    assert tmp_path.stat().st_ino in synced


def test_a_source_that_is_cut_short_while_it_is_read_ends_in_one_line(source, tmp_path, capsys, monkeypatch):
    checksums = Checkpoint.checksums

    def cut(checkpoint):
        os.truncate(source / "model.safetensors", 5000)
        return checksums(checkpoint)

    monkeypatch.setattr(Checkpoint, "checksums", cut)
    assert main(["grow", str(source), str(tmp_path / "wide"), "--width", "2"]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors: has been cut short, in a tensor of" in said
    assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["narrow"]


@pytest.mark.parametrize("kind", ["transposed", "part of another", "one number"])
def test_tensors_are_read_as_they_lie_in_an_optimizer_file(kind, source, tmp_path):
    narrow = AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(list(narrow.named_parameters()))
    narrow(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    grow_checkpoint(source, tmp_path / "none", width=2, operator="duplicate")
    torch.save(optimizer.state_dict(), source / "optimizer.pt")
    wide = tmp_path / "wide"
    state = optimizer.state[narrow.model.embed_tokens.weight]
    value = state["exp_avg"]
    state["exp_avg"] = {
        "transposed": value.T.contiguous().T,
        "part of another": torch.stack([value * 2, value])[1],
        "one number": value.mean().expand(value.shape),
    }[kind]
    torch.save(optimizer.state_dict(), source / "optimizer.pt")
    grow_checkpoint(source, wide, width=2, operator="duplicate")
    grown = torch.load(wide / "optimizer.pt")
    names = [name for group in grown["param_groups"] for name in group["param_names"]]
    found = grown["state"][names.index("model.embed_tokens.weight")]["exp_avg"]
    once = found.view(len(value), -1, 2).sum(2)
    assert torch.allclose(once / once.abs().max(), state["exp_avg"] / state["exp_avg"].abs().max(), atol=1e-6)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_pickled_weights_grow_as_safetensors_do(name, sharded, tmp_path):
    model = build(name).float()
    model.save_pretrained(tmp_path / "narrow")
    model.config.save_pretrained(tmp_path / "old")
    state = model.state_dict()  # which has tied weights twice
    names = list(state)
    shards = [names[::2], names[1::2]] if sharded else [names]
    files = [f"pytorch_model-{i:05d}-of-00002.bin" for i in (1, 2)] if sharded else ["pytorch_model.bin"]
    for file, shard in zip(files, shards, strict=True):
        torch.save({n: state[n] for n in shard}, tmp_path / "old" / file)
    if sharded:
        where = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
        (tmp_path / "old/pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": where})
        )
    for source, wide in (("narrow", "wide"), ("old", "other")):
        grow_checkpoint(tmp_path / source, tmp_path / wide, width=2, operator="duplicate")
    assert (tmp_path / "wide/model.safetensors").read_bytes() == (
        tmp_path / "other/model.safetensors"
    ).read_bytes()
    assert main(["verify", str(tmp_path / "old"), str(tmp_path / "other")]) == 0
