"""How it was measured, from the results alone: the end of every report."""

from __future__ import annotations

from typing import Any

from mupscale.study.page.parts import Answer
from mupscale.study.questions.reading import Row
from mupscale.study.questions.words import several, size
from mupscale.theory.tables import count


def method(results: Row) -> Answer:
    """Model, data, seeds, steps, settings, and what is counted as a FLOP."""
    sweeps = [sweep for sweep in results["sweeps"] if sweep["points"]]
    model, word = results["model"], results["width_word"]
    by_size = sorted(results["sweeps"], key=lambda s: (s["width"], s.get("layers") or 0))
    sizes = {size(s): s["parameters"] for s in by_size}
    shapes = [f"{shape} ({count(parameters)} parameters)" for shape, parameters in sizes.items()]
    told = model["layers"] is None or any(s.get("layers") for s in by_size)  # or by each of them
    layers = "" if told else f", layers: {model['layers']}"
    seeds, steps = (several([f"{s[key]} ({s['name']})" for s in sweeps]) for key in ("seeds", "steps"))
    lines = [
        f"Model: {model['family']}{layers}; {word} {several(shapes)}.",
        f"Data: {results['data']}. Losses are those on the held-out part, in {results['unit']}, at the end "
        "of each run; lower is better.",
        f"Seeds: every point is the mean over {seeds} of them; ± is one standard deviation over the seeds. A "
        "seed has its own weights, noise and order of the data.",
        f"Steps of a run: {steps}.",
        f"Training: {', '.join(f'{key} {_setting(value)}' for key, value in results['training'].items())}.",
        f"All learning rates are said as those of the model of {word} {results['narrow']}; a wider one's "
        "follow from them by μP, and a grown one's by the rules of growth.",
        "FLOPs are those of the matrix products of forward and backward pass, at two operations per "
        "multiply-add, counted by torch on the real model; attention is counted in full, the masked half "
        "included. Elementwise work, the optimizer's update and evaluation are not counted.",
        "Between two lengths of a run, each with its own cooldown, the final loss is taken as linear in the "
        "logarithm of the steps; beyond them only a bound is given.",
    ]
    passes = max((s["passes"] for s in sweeps if s["source"] and s["passes"] is not None), default=None)
    if passes is not None:
        seen = "trains on data that its base model has not seen"
        if passes > 1:
            seen = f"goes on in the shuffled data, and has been through it {passes:.1f} times in the end"
        lines.append(f"A grown model {seen}; the one from scratch that it is compared with sees the same.")
    return Answer(title="How it was measured", parts=lines)


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
