"""Checkpoints whose files are not as they should be: one line that says so, or a growth that can be trained on.

Whatever is changed in whichever file, `mupscale grow` ends with status 0 or 2, in bounded time, without a
traceback; with status 0 the wide checkpoint loads, and its optimizer steps. `mupscale verify` likewise.
"""

import json
import random
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import mupscale
from mupscale.cli import main
from spoiling import ODD, changed, other_bytes

FEW, MANY = 40, 10_000
SECONDS, MEMORY = 20, 4 << 30  # of one growth, which takes a tenth of a second; and of all of them together


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A Trainer's directory in safetensors, in shards, and in a pickle."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=32, max_position_embeddings=32)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    scheduler.step()
    found = []
    for kind in ("whole", "shards", "pickle"):
        path = tmp_path_factory.mktemp(kind)
        model.save_pretrained(path, max_shard_size="4KB" if kind == "shards" else "5GB")
        if kind == "pickle":
            torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
            (path / "model.safetensors").unlink()
        torch.save(optimizer.state_dict(), path / "optimizer.pt")
        torch.save(scheduler.state_dict(), path / "scheduler.pt")
        (path / "trainer_state.json").write_text(json.dumps({"global_step": 1, "max_steps": 10}))
        found.append(path)
    return found


# ---- what is done to a file ----------------------------------------------------------------------------------


def changed_json(path, rng):
    path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)), errors="surrogatepass")


def changed_header(path, rng):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(changed(json.loads(data[8 : 8 + length]), rng)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def changed_pickle(path, rng):
    tensors = (
        torch.tensor(float("nan")),
        torch.zeros(()),
        torch.zeros(1).expand(1 << 34),
        torch.full((16,), float("inf")),
        torch.zeros(16, 16, dtype=torch.int64),
        torch.zeros(16, 16, dtype=torch.complex64),
        torch.zeros(0),
        torch.zeros(2, 3, 4).to_sparse(),
        -torch.ones(16, 16),
    )
    torch.save(changed(torch.load(path, weights_only=True), rng, (*ODD, *tensors)), path)


def changed_values(path, rng):
    """Numbers that are none, or too large, where weights are."""
    tensors = load_file(path)
    name = rng.choice(list(tensors))
    tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = rng.choice((float("nan"), float("inf")))
    save_file(tensors, path, metadata={"format": "pt"})


def spoil(folder, rng):
    """Change one file of a checkpoint; says which, and how."""
    path = rng.choice(sorted(p for p in folder.iterdir() if p.name != "generation_config.json"))
    ways = {".json": [changed_json] * 3, ".safetensors": [changed_header, changed_values]}
    way = rng.choice([other_bytes, *ways.get(path.suffix, [changed_pickle] * 3)])
    if way is other_bytes:
        path.write_bytes(other_bytes(path.read_bytes(), rng))
    else:
        way(path, rng)
    return f"{way.__name__} of {path.name}"


# ---- what must hold ------------------------------------------------------------------------------------------


def check(checkpoints, seed, folder, capsys):
    rng = random.Random(seed)
    source, wide = folder / "narrow", folder / "wide"
    for path in (source, wide, folder / ".wide.partial"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(rng.choice(checkpoints), source)
    how = f"seed {seed}: {spoil(source, rng)}"
    operator = rng.choice((["--operator", "duplicate"], []))
    signal.alarm(SECONDS)
    try:
        status = main(["grow", str(source), str(wide), "--width", "2", *operator])
        said = capsys.readouterr().err
        assert status in (0, 2), how
        assert "Traceback" not in said, how
        if status == 2:
            line = said.strip().splitlines()[-1]
            assert line.startswith("mupscale: "), (how, said)
            assert not wide.exists(), how
            return False
        if runs(source):
            steps(wide, source, how)
        return True
    except Exception as error:
        raise AssertionError(how) from error
    finally:
        signal.alarm(0)


def loaded(folder):
    """On a CPU torch's own attention knows no dropout, to which a config may have been changed."""
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").train()


def stepped(model, folder, groups):
    """The model after a step of its own optimizer, where there is one."""
    model(input_ids=torch.arange(8)[None] % 4, labels=torch.arange(8)[None] % 4).loss.backward()
    if (folder / "optimizer.pt").exists():
        optimizer = torch.optim.AdamW(groups)
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        for group in optimizer.param_groups:
            group["capturable"] = False  # for a GPU alone
        optimizer.step()
    return model


def is_finite(model):
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return all(t.isfinite().all() for t in (*model.parameters(), *grads))


def runs(source):
    """Whether the narrow model, as its files are now, runs, and trains on without NaN or infinity.

    Where its optimizer does not step, growing has to refuse it, so that this is no excuse.
    """
    try:
        model = loaded(source)
        model(input_ids=torch.arange(8)[None] % 4)
    except Exception:
        return False
    try:
        return is_finite(stepped(model, source, model.parameters()))
    except Exception:
        return True


def steps(wide, source, how):
    """What was grown is one that a Trainer goes on from."""
    model = loaded(wide)
    assert is_finite(model), how
    groups = model.parameters()
    if (wide / "optimizer.pt").exists():
        own = torch.load(source / "optimizer.pt", weights_only=True)["param_groups"][0]
        values = {key: own[key] for key in ("lr", "eps", "weight_decay")}  # they decide how many groups
        plan = mupscale.plan(loaded(source), width=2)
        groups = mupscale.param_groups(model, plan, torch.optim.AdamW, **values)
    assert is_finite(stepped(model, wide, groups)), how


def run(checkpoints, folder, capsys, seeds):
    grown = sum(check(checkpoints, seed, folder, capsys) for seed in seeds)
    assert 0.02 * len(seeds) < grown < 0.7 * len(seeds), "most changes matter, and not all"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY


def test_a_spoiled_checkpoint_is_grown_or_refused(checkpoints, tmp_path, capsys):
    run(checkpoints, tmp_path, capsys, range(FEW))


@pytest.fixture(scope="module")
def wides(checkpoints, tmp_path_factory):
    found = []
    for source in checkpoints:
        found.append(tmp_path_factory.mktemp("grown") / source.name)
        assert main(["grow", str(source), str(found[-1]), "--width", "2", "--operator", "duplicate"]) == 0
    return found


def verify(checkpoints, wides, folder, capsys, seeds):
    """`mupscale verify` of what was spoiled: as it was grown, not so, or one line."""
    for seed in seeds:
        rng, wide = random.Random(seed), folder / "wide"
        which = rng.randrange(len(wides))
        shutil.rmtree(wide, ignore_errors=True)
        shutil.copytree(wides[which], wide)
        manifest = wide / "mupscale.json"
        how = spoil(wide, rng) if rng.random() < 0.5 else changed_json(manifest, rng) or "mupscale.json"
        source = rng.choice(([str(checkpoints[which])], []))
        try:
            status = main(["verify", *source, str(wide), *(["--files-only"] if source else [])])
        except Exception as error:
            raise AssertionError(f"seed {seed}: {how}") from error
        said = capsys.readouterr().err
        assert status in (0, 1, 2), (seed, how)
        if status == 2:
            assert said.strip().splitlines()[-1].startswith("mupscale: "), (seed, how)


def test_what_was_spoiled_is_verified_or_refused(checkpoints, wides, tmp_path, capsys):
    verify(checkpoints, wides, tmp_path, capsys, range(FEW))


@pytest.mark.slow
def test_much_that_was_spoiled_is_verified_or_refused(checkpoints, wides, tmp_path, capsys):
    verify(checkpoints, wides, tmp_path, capsys, range(FEW, FEW + MANY // 4))


@pytest.mark.slow
def test_many_spoiled_checkpoints_are_grown_or_refused(checkpoints, tmp_path, capsys):
    run(checkpoints, tmp_path, capsys, range(FEW, FEW + MANY))
