"""Every model type of transformers: is its growth proved, or refused, and is the proof right?

    python benchmarks/families.py --json
    python benchmarks/families.py --width 3 --kinds other bloom mamba2

Each type gets a tiny config, a random model in float64, a plan, and wide models grown without noise and with
the default's. Whether these compute the same is checked here, with a comparison and inputs of its own. Causal
language models are grown in depth, too, by 2, which is to keep the function nearly: how nearly is checked.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

import mupscale
from mupscale.layout.inference.instance import instance
from mupscale.layout.tiny_config import tiny
from mupscale.models.inputs import HIDDEN_STATES, example_inputs
from mupscale.models.precision import Float64, float64
from mupscale.models.skeletons import own_config

# Encoders, sequence-to-sequence, vision and speech models, each with the class that is natural for it.
OTHER = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "albert": "AlbertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "deberta-v2": "DebertaV2ForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
    "mpnet": "MPNetForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "mbart": "MBartForConditionalGeneration",
    "pegasus": "PegasusForConditionalGeneration",
    "marian": "MarianMTModel",
    "whisper": "WhisperForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "deit": "DeiTForImageClassification",
    "beit": "BeitForImageClassification",
    "convnext": "ConvNextForImageClassification",
    "resnet": "ResNetForImageClassification",
    "swin": "SwinForImageClassification",
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "wav2vec2": "Wav2Vec2Model",
    "hubert": "HubertModel",
    "vit_mae": "ViTMAEForPreTraining",
    "segformer": "SegformerForImageClassification",
    # more encoders and sequence-to-sequence models
    "camembert": "CamembertForMaskedLM",
    "deberta": "DebertaForMaskedLM",
    "ernie": "ErnieForMaskedLM",
    "eurobert": "EuroBertForMaskedLM",
    "fnet": "FNetForMaskedLM",
    "longformer": "LongformerForMaskedLM",
    "mobilebert": "MobileBertForMaskedLM",
    "nystromformer": "NystromformerForMaskedLM",
    "squeezebert": "SqueezeBertForMaskedLM",
    "longt5": "LongT5ForConditionalGeneration",
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
    "t5gemma": "T5GemmaForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
    # more vision models, detection and depth among them
    "convnextv2": "ConvNextV2ForImageClassification",
    "cvt": "CvtForImageClassification",
    "detr": "DetrForObjectDetection",
    "dinov3_vit": "DINOv3ViTModel",
    "glpn": "GLPNForDepthEstimation",
    "ijepa": "IJepaForImageClassification",
    "poolformer": "PoolFormerForImageClassification",
    "pvt": "PvtForImageClassification",
    "pvt_v2": "PvtV2ForImageClassification",
    "regnet": "RegNetForImageClassification",
    "swinv2": "Swinv2ForImageClassification",
    "videomae": "VideoMAEForVideoClassification",
    "yolos": "YolosForObjectDetection",
    # speech and sound
    "audio-spectrogram-transformer": "ASTForAudioClassification",
    "wavlm": "WavLMForCTC",
    # images and text, or sound and text, together
    "aya_vision": "AyaVisionForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "idefics2": "Idefics2ForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}

# Where the class's defaults alone make no model that runs: what a real config of the family states besides.
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_INDEXER: dict[str, Any] = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 128,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 64,
    "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.25},
}
_SECTIONS = {"rope_parameters": {**_ROPE, "mrope_section": [16, 24, 24]}}
STATED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 10,
        "rope_parameters": {
            "sliding_attention": {**_ROPE, "mrope_section": [24, 20, 20]},
            "full_attention": None,
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 5e5, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "dots1": {
        "n_routed_experts": 128,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "granitemoehybrid": {"layer_types": (["mamba"] * 5 + ["attention"]) * 5 + ["mamba"] * 2},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"is_decoder": True, "hash_seed": 0},
    "qwen4_exp_text": _INDEXER,
    "qwen4_exp": {"text_config": _INDEXER},
    "detr": {
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": {"model_type": "resnet"},
        "position_embedding_type": "learned",
    },
    "qwen2_vl": {"text_config": _SECTIONS},
    "qwen2_5_vl": {"text_config": _SECTIONS},
}


def cases(kinds: list[str]) -> Iterator[tuple[str, str]]:
    causal, other = list(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), list(OTHER)
    for kind, types in (("causal", causal), ("other", other)):
        for model_type in types:
            if kind in kinds or model_type in kinds:
                yield kind, model_type


def default_config(kind: str, model_type: str) -> transformers.PreTrainedConfig:
    """The class's defaults, at full size."""
    given = transformers.CONFIG_MAPPING[model_type](**STATED.get(model_type, {}))
    given.architectures = [OTHER[model_type]] if kind == "other" else None
    return own_config(given)


def plan_full_size(kind: str, model_type: str, width: int) -> dict[str, Any]:
    """One row of the table for the class's defaults as they are: planned, and nothing run but the proof."""
    start = time.perf_counter()
    row: dict[str, Any] = {"kind": kind, "model_type": model_type, "width": width, "status": "proved"}
    try:
        config = default_config(kind, model_type)
    except Exception as error:
        return row | {"status": "not built", "reason": one_line(error)}
    try:
        mupscale.plan(config, width=width)
    except mupscale.GrowthError as error:
        row |= {"status": "refused", "reason": one_line(error)}
    return row | {"seconds": time.perf_counter() - start}


def attempt(kind: str, model_type: str, width: int) -> dict[str, Any]:
    """One row of the table."""
    start = time.perf_counter()
    row: dict[str, Any] = {"kind": kind, "model_type": model_type, "width": width}
    try:
        narrow = randomized(instance(tiny(default_config(kind, model_type)), seed=11))
        inputs = example_inputs(narrow, seed=12, batch=3, length=15)
        calls = [inputs, *alone(narrow, inputs)]
        outputs = [call(narrow, given) for given in calls]
    except Exception as error:
        return row | {"status": "not built", "reason": one_line(error)}
    try:
        plan = mupscale.plan(narrow, width=width)
    except mupscale.GrowthError as error:
        reason = one_line(error)
        return row | {"status": "refused", "reason": reason, "seconds": time.perf_counter() - start}
    wide = instance(plan.config, seed=13)
    differences = []
    for noise in (None, "balanced:1"):
        wide.load_state_dict(mupscale.grow(narrow, plan, noise=noise, operator="duplicate").state_dict())
        for given, expected in zip(calls, outputs, strict=True):
            made = call(wide, stretched(given, width))
            differences += [difference(a, b, width) for a, b in zip(expected, made, strict=True)]
    row |= {"difference": max(differences), "growth": {a: str(g) for a, g in plan.growth.items()}}
    row["status"] = "proved" if max(differences) < 1e-9 else "WRONG"
    return row | {"seconds": time.perf_counter() - start}


def attempt_depth(kind: str, model_type: str) -> dict[str, Any]:
    """One row of the table of depth.

    A check that knows nothing of what layers add to the residual stream, and of what writes to it: with a
    stream K times as large these are 1/K of it, so that logits depend on them to first order alone, in which
    twice half of one is all of it. So the two models differ by 1/K² if every share is right, else by 1/K.
    """
    start = time.perf_counter()
    row: dict[str, Any] = {"kind": kind, "model_type": model_type, "layers": 2}
    try:
        narrow = randomized(instance(tiny(default_config(kind, model_type)), seed=11))
        inputs = example_inputs(narrow, seed=12, batch=3, length=15)
        call(narrow, inputs)
    except Exception as error:
        return row | {"status": "not built", "reason": one_line(error)}
    try:
        plan = mupscale.plan(narrow, axes={"layers": 2})
        deep = instance(plan.config, seed=13)
        deep.load_state_dict(mupscale.grow(narrow, plan).state_dict())
    except mupscale.GrowthError as error:
        reason = one_line(error)
        return row | {"status": "refused", "reason": reason, "seconds": time.perf_counter() - start}

    def off(larger: float) -> float:
        a, b = (call_with(model, inputs, larger) for model in (narrow, deep))
        return ((a - b).abs().max() / a.std()).item()

    larger = next(k for k in (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8) if off(k) < 1e-5 or k == 1e8)
    row |= {"difference": off(1.0), "falls_by": off(larger) / off(4 * larger)}
    row["status"] = "proved" if 14 < row["falls_by"] < 18 else "WRONG"  # 16 and not 4
    return row | {"seconds": time.perf_counter() - start}


def call_with(model: nn.Module, inputs: dict[str, Any], larger: float) -> Tensor:
    """The logits when what goes into the first layer is so many times as large."""

    def enlarge(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] * larger, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * larger}

    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    hook = layers[0].register_forward_pre_hook(enlarge, with_kwargs=True)
    logits = call(model, inputs)[0]
    hook.remove()
    return logits


def randomized(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(14)
    with torch.no_grad():
        for param in model.parameters():
            param += 0.05 * torch.randn(param.shape, generator=draw, dtype=param.dtype)
    return model


def alone(model: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The text without what went with it, images or another model's states, where a model takes it so."""
    others = {"pixel_values", "input_features", *HIDDEN_STATES} & inputs.keys()
    if "input_ids" not in inputs or not others or not model.can_generate():
        return []
    return [{k: v for k, v in inputs.items() if k in ("input_ids", "use_cache")}]


def stretched(inputs: dict[str, Any], width: int) -> dict[str, Any]:
    """The inputs of the wide model: another model's hidden states hold each value ``width`` times."""
    grown = {k: torch.repeat_interleave(v, width, -1) for k, v in inputs.items() if k in HIDDEN_STATES}
    return inputs | grown


def call(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad(), float64(), Float64():
        output = model(**inputs)
    logits = getattr(output, "logits", getattr(output, "logits_per_image", None))
    if logits is None:
        logits = [v for v in output.values() if isinstance(v, Tensor) and v.ndim]
    return logits if isinstance(logits, list) else [logits]


def difference(narrow: Tensor, wide: Tensor, width: int) -> float:
    """Largest difference over the standard deviation; a hidden state must hold each value ``width`` times."""
    if narrow.shape != wide.shape:
        narrow = torch.repeat_interleave(narrow.flatten(), width).sort().values
        wide = wide.flatten().sort().values
    return ((narrow - wide).abs().max() / narrow.std()).item()


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def page(rows: list[dict[str, Any]], counts: dict[str, Counter[str]]) -> str:
    """The page for the docs: what was tried, how many hold, and one line a model type and width."""
    lines = [
        "# Model types",
        "",
        f"Every causal language model type of transformers {transformers.__version__}, and some encoders,",
        "sequence-to-sequence, vision, speech and vision-language models, each grown from a tiny random one",
        "in float64 (`benchmarks/families.py`, which writes this page). *Proved*: the plan was made, which",
        "includes its proof, and the wide model's outputs are the narrow one's by this script's own",
        "comparison, too; the number is their largest difference in standard deviations. *Refused*: with the",
        "reason; nothing is grown. *Not built*: transformers makes no model of it here.",
        "",
        "Causal ones are grown in depth, too, where the function is kept nearly. *Proved* there: the proof",
        "passed, against explicit multipliers, and by this script's own check, which knows nothing of what",
        "writes to the residual stream, the two models differ to second order in what layers add: with a",
        "stream 4 times as large by so many times less, which is 16, where one wrong share would make it 4.",
        "",
        "| | " + " | ".join(STATUS) + " |",
        "|---" * (len(STATUS) + 1) + "|",
        *(f"| {kind} | " + " | ".join(str(c[s]) for s in STATUS) + " |" for kind, c in counts.items()),
        "",
        "| model type | growth | | largest difference, or how much it falls, or the reason |",
        "|---|---|---|---|",
    ]
    for row in rows:
        what = row.get("reason", "").replace("|", "\\|") or f"{row['difference']:.1e}"
        what = f"÷ {row['falls_by']:.4g}" if "falls_by" in row else what
        lines.append(f"| `{row['model_type']}` | {grown(row)} | {row['status']} | {what} |")
    return "\n".join(lines) + "\n"


def grown(row: dict[str, Any]) -> str:
    """By how much a row's model grows."""
    return f"layers × {row['layers']}" if "layers" in row else f"× {row['width']}"


STATUS = ("proved", "refused", "not built", "failed", "WRONG")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--width", type=int, nargs="+", default=[2, 3])
    parser.add_argument(
        "--kinds", nargs="+", default=["causal", "other"], help="causal, other, or model types"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--page", type=Path, help="write a page for the docs here")
    output.add_argument(
        "--full-size", action="store_true", help="plan the defaults as they are; grow nothing"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()

    def late(*_: object) -> None:
        raise TimeoutError("not done after 120 s")

    signal.signal(signal.SIGALRM, late)
    rows = []
    for kind, model_type in cases(args.kinds):
        asked = [{"width": width} for width in args.width]
        if kind == "causal" and not args.full_size:
            asked.append({"layers": 2})
        for growth in asked:
            signal.alarm(120)
            try:
                if "layers" in growth:
                    row = attempt_depth(kind, model_type)
                else:
                    row = (plan_full_size if args.full_size else attempt)(kind, model_type, growth["width"])
            except Exception as error:
                row = {"kind": kind, "model_type": model_type, **growth}
                row |= {"status": "failed", "reason": f"{type(error).__name__}: {one_line(error)}"}
            signal.alarm(0)
            rows.append(row)
            if not args.json:
                print(
                    f"{model_type:28} {grown(row):10}  {row['status']:9} {row.get('seconds', 0):5.1f} s  "
                    f"{row.get('difference', row.get('reason', ''))}"[:300],
                    flush=True,
                )
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(f"{row['kind']} {grown(row)}", Counter())[row["status"]] += 1
    if args.page:
        args.page.write_text(page(rows, counts), encoding="utf-8")
    print(json.dumps({"counts": counts, "rows": rows}, indent=1) if args.json else counts)


if __name__ == "__main__":
    main()
