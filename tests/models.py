"""Small models of every family, away from zeros and ones, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 61
_GQA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "gpt2": lambda: GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=1,
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
    ),
    "gpt2_untied": lambda: GPT2Config(**CONFIGS["gpt2"]().to_dict() | {"tie_word_embeddings": False}),
    "llama": lambda: LlamaConfig(**_GQA, tie_word_embeddings=False),
    "llama_tied": lambda: LlamaConfig(**_GQA, tie_word_embeddings=True),
    "llama_biases": lambda: LlamaConfig(**_GQA, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**_GQA),
    "qwen2": lambda: Qwen2Config(**_GQA),
    "qwen3": lambda: Qwen3Config(**_GQA, head_dim=16),
    "gpt_neox": lambda: GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=VOCAB,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "qwen3_tied": lambda: Qwen3Config(**_GQA, head_dim=16, tie_word_embeddings=True),
}


class Block(nn.Module):
    """A residual block of two convolutions with BatchNorm."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(h)) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """ResNet-18's shape for small images: four stages of two blocks, doubling channels."""

    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    Block(channels[i], channels[i + 1], 1 if i == 0 else 2),
                    Block(channels[i + 1], channels[i + 1], 1),
                )
                for i in range(4)
            )
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stages(self.bn(self.stem(x)).relu())
        return self.head(h.mean((2, 3)))


def make_mlp(width: int) -> nn.Module:
    """A plain MLP; ``width`` multiplies its hidden layers."""
    return nn.Sequential(
        nn.Linear(7, 12 * width),
        nn.Tanh(),
        nn.Linear(12 * width, 8 * width),
        nn.Tanh(),
        nn.Linear(8 * width, 5),
    )


def make_resnet(width: int) -> nn.Module:
    return ResNet(2 * width)


PLAIN: dict[str, Callable[[int], nn.Module]] = {"mlp": make_mlp, "resnet": make_resnet}
NAMES = ["mlp", "resnet", *CONFIGS]


def build(name: str, seed: int = 0) -> nn.Module:
    """A narrow model whose every parameter is random and away from 0 and 1, in float64."""
    torch.manual_seed(seed)
    model = PLAIN[name](1) if name in PLAIN else AutoModelForCausalLM.from_config(CONFIGS[name]())
    model = model.double()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.1)
    return model


def plan_source(name: str, model: nn.Module) -> object:
    """What `mupscale.plan` takes to plan this model."""
    return PLAIN.get(name, model)


def batch(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    if name == "mlp":
        return torch.randn(6, 7, generator=generator).double(), torch.randint(5, (6,), generator=generator)
    if name == "resnet":
        # 2×2 pixels are left in the last stage: with one, BatchNorm over a batch this small meets channels of
        # next to no variance and blows rounding up by 1/√eps a layer.
        images = torch.randn(6, 3, 16, 16, generator=generator).double()
        return images, torch.randint(10, (6,), generator=generator)
    ids = torch.randint(VOCAB, (2, 12), generator=generator)
    return ids, ids


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = data
    if inputs.is_floating_point():
        return nn.functional.cross_entropy(model(inputs), targets)
    return model(input_ids=inputs, labels=targets).loss
