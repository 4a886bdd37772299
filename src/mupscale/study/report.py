"""One self-contained page about a comparison: `report.html`, which needs no network and no other file.

Knows HTML, the results of `mupscale.study.warmstart` and its plots. Every sentence with a figure in it is
made from `results.json`, also where growing did not pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mupscale.study.page.html import (
    html_figures,
    html_list,
    html_page,
    html_paragraphs,
    html_plot,
    html_table,
    write_page,
)
from mupscale.study.page.plots import Plot, all_plots

REPORT_FILE = "report.html"


def write_report(results: dict[str, Any], out: Path) -> Path:
    """Write the pictures, the numbers behind them and `report.html`; return the path of the page.

    Args:
        results: what `compare` returned, or `results.json` read back.
        out: folder to write into.
    """
    pictures = [(plot, plot.save(out)) for plot in all_plots(results)]
    return write_page(out / REPORT_FILE, page(results, pictures))


def page(results: dict[str, Any], pictures: Sequence[tuple[Plot, Path]]) -> str:
    """The page's HTML."""
    narrow, wide = results["narrow"], results["wide"]
    title = f"Growing a model from {_count(narrow['parameters'])} to {_count(wide['parameters'])} parameters"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">mupscale {escape(results["mupscale"])}</p>',
        _headline(results),
        *html_paragraphs(summary(results)),
        "<h2>The curves</h2>",
        *(html_plot(plot, path) for plot, path in pictures),
        "<h2>Was anything lost?</h2>",
        *html_paragraphs(_equality(results)),
        f"<pre>{escape(results['verification']['text'])}</pre>",
        "<h2>All runs</h2>",
        _runs(results),
        "<h2>What became of every parameter</h2>",
        "<p>Every entry of a weight is copied <i>copies</i> times and multiplied by the <i>weight "
        "scale</i>; its gradient comes out multiplied by the <i>gradient scale</i>. Learning rates and "
        "weight decay are multiplied by the last columns, so that the wide model trains as the narrow one "
        "did.</p>",
        html_table(results["plan"]),
        "<h2>How it was measured</h2>",
        html_list(method(results)),
        "<h2>Settings</h2>",
        _settings(results),
    ]
    return html_page(title, body)


# ---- words -------------------------------------------------------------------------------------------------


def summary(results: dict[str, Any]) -> list[str]:
    """What happened and what it saved, for someone who has never grown a model."""
    narrow, wide, saved = results["narrow"], results["wide"], results["savings"]
    grown = next(run for run in results["runs"] if run["kind"] == "grown")
    trained = f" was trained for {narrow['steps']} steps" if narrow["steps"] else " had been trained before"
    same = (
        "gave the same answers" if results["verification"]["equal"] else "did not give quite the same answers"
    )
    differ = " and made to differ a little" if results["settings"]["compare"]["noise"] else ""
    sentences = [
        f"A small language model of {_count(narrow['parameters'])} parameters{trained}. mupscale then made "
        f"a wider one of {_count(wide['parameters'])} out of it: units were copied, the weights were rescaled"
        f"{differ}, and the optimizer's memory was {_carried(results)}. Right "
        f"after growing, the wide model {same} as the small one. It was trained for {grown['steps']} more "
        f"steps and ended at a held-out loss of {grown['final_loss']:.3f}.",
    ]
    equal = saved["scratch_final_loss_at_equal_steps"]
    if equal is not None:
        word = "higher, that is worse" if equal > grown["final_loss"] else "no higher"
        sentences.append(
            "The same wide model, trained from random weights for as many steps on the same text in the "
            f"same order, ended at {equal:.3f}: {word}."
        )
    reach = saved["scratch_steps_to_reach_grown"]
    sentences.append(
        {
            "interpolated": f"From scratch, about {reach['steps']:.0f} steps reach the grown model's loss. ",
            "more than": f"From scratch, even the longest run, {reach['steps']:.0f} steps, missed it. ",
            "at most": f"From scratch, the shortest run, {reach['steps']:.0f} steps, already reached it. ",
        }[reach["bound"]]
        + saving_sentence(saved)
    )
    matched = saved["scratch_final_loss_at_equal_compute"]
    if matched is not None:
        sentences.append(
            f"Spending on the wide model alone what the small model and the grown one cost together pays for "
            f"{saved['scratch_steps_at_equal_compute']} steps from scratch; they end at {matched:.3f}."
        )
    sentences.append(
        "The loss is the average surprise, in nats, at each next token of text that no model was trained on; "
        "lower is better, and 0.1 less means that the right token was given about 10 % more probability."
    )
    return sentences


def saving_sentence(saved: Mapping[str, Any]) -> str:
    """The saved compute in one sentence; bounds are called bounds, losses losses."""
    bound = {"interpolated": "", "more than": "at least ", "at most": "at most "}[
        saved["scratch_steps_to_reach_grown"]["bound"]
    ]

    def share(value: float) -> str:
        if value >= 0:
            return f"saved {bound}{value:.0%}"
        most = {"": "", "at least ": "at most ", "at most ": "at least "}[bound]
        return f"cost {most}{-value:.0%} more than"

    text = f"Growing {share(saved['flops_saved'])} of that compute when the small model is there anyway"
    if saved["flops_saved_counting_narrow"] is None:
        return text + "; what the small model's own training cost is not known."
    return (
        text
        + f", and {share(saved['flops_saved_counting_narrow'])} when its own training is paid for as well."
    )


def method(results: dict[str, Any]) -> list[str]:
    """How the comparison was made, and what it does not show."""
    data, training, compared = (
        results["data"],
        results["settings"]["training"],
        results["settings"]["compare"],
    )
    rates = " and ".join(f"{factor:g}" for factor in compared["scratch_lrs"])
    return [
        f"Text: {data['about']}. Losses are taken on the held-out part, the same blocks every time.",
        f"Every run has the same schedule: {training['warmup_steps']} steps of warmup, a constant learning "
        f"rate, and a linear cooldown over the last {training['cooldown_fraction']:.0%} of its steps.",
        "All runs of the wide model see the same blocks in the same order, from the same place on: "
        f"{data['grown_sees_blocks'][0]} blocks into the shuffled text of "
        f"{data['blocks_in_training_text']} blocks of {data['block_size']} tokens.",
        _what_narrow_saw(data),
        "From scratch means a fresh initialization under μP with the narrow model's learning rate "
        f"({training['lr']:g}), scaled by width, at {rates} times that rate; of each length the better run "
        f"counts. The grown model was run once, at {compared['grown_lr']:g} times the narrow model's rate.",
        "Lengths from scratch share their steps before the cooldown, since those do not depend on the "
        "length; each is counted as a run of its own.",
        "FLOPs are those of the matrix products of forward and backward pass, counted by torch on the "
        "real model; attention is counted in full, evaluation and the optimizer's elementwise work not at "
        "all.",
        "Steps from scratch to reach the grown model's loss are interpolated between runs, linearly in "
        "the logarithm of the steps, and never extrapolated.",
        "One seed was run. Differences of a few thousandths of a nat are noise.",
    ]


def _what_narrow_saw(data: Mapping[str, Any]) -> str:
    if data["narrow_saw_blocks"] is None:
        return (
            "Which text the narrow model was trained on is not known; it may have seen some of this before."
        )
    first, last = data["narrow_saw_blocks"]
    text = f"The narrow model was trained on blocks {first} to {last} of the same shuffled text"
    if data["fresh"]:
        return text + ": the grown model and the runs from scratch go on with blocks that no model had seen."
    return text + "; some blocks are seen more than once in this comparison."


def _equality(results: dict[str, Any]) -> list[str]:
    report = results["verification"]
    if report["equal"]:
        return [
            "No. On held-out text the narrow and the grown model gave the same logits up to rounding: the "
            f"largest difference was {report['max_abs_diff']:.1e}, where logits vary by "
            f"{report['logits_std']:.2f}."
        ]
    return [
        "The grown model did not start out equal to the narrow one: the largest difference of their "
        f"logits was {report['max_abs_diff']:.1e}, where logits vary by {report['logits_std']:.2f}. Noise "
        "that is not balanced does that."
    ]


def _carried(results: dict[str, Any]) -> str:
    return "carried along" if results["settings"]["optimizer_carried"] else "started afresh"


# ---- parts -------------------------------------------------------------------------------------------------


def _headline(results: dict[str, Any]) -> str:
    saved = results["savings"]
    reach = saved["scratch_steps_to_reach_grown"]
    sign = {"interpolated": "", "more than": "> ", "at most": "≤ "}[reach["bound"]]
    figures = [
        (f"{saved['grown_final_loss']:.3f}", "final loss, grown"),
        (
            f"{sign}{reach['steps'] / results['settings']['training']['steps']:.2f}×",
            "the steps, from scratch, to reach it",
        ),
        (f"{sign}{saved['flops_saved']:.0%}", "of that compute saved"),
    ]
    if saved["flops_saved_counting_narrow"] is not None:
        figures.append(
            (
                f"{sign}{saved['flops_saved_counting_narrow']:.0%}",
                "saved, counting the small model's training",
            )
        )
    return html_figures(figures)


def _runs(results: dict[str, Any]) -> str:
    rows = [
        {
            "run": run["name"],
            "steps": run["steps"],
            "learning rate": f"{run['lr']:g}",
            "FLOPs": f"{run['flops']:.3g}",
            "final held-out loss": f"{run['final_loss']:.4f}",
            "better rate": "" if run["kind"] == "grown" else ("yes" if run["best"] else "no"),
        }
        for run in results["runs"]
    ]
    return html_table(rows)


def _settings(results: dict[str, Any]) -> str:
    groups = {
        "narrow": {k: v for k, v in results["narrow"].items() if k not in ("curve", "settings")},
        "wide": results["wide"],
        "training": results["settings"]["training"],
        "comparison": results["settings"]["compare"],
    }
    return html_table(
        {"": group, "setting": key, "value": value}
        for group, values in groups.items()
        for key, value in values.items()
        if value is not None
    )


def _count(parameters: int) -> str:
    """Parameters in words: 1.05 million."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if parameters >= size / 10:
            return f"{parameters / size:.2f} {word}"
    return f"{parameters:,}"
