"""Numbers that pages tell in words of their own are those that were measured; and the README is short."""

import gzip
import json
import re
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import pytest

from mupscale.operators.catalogue import DEFAULT
from mupscale.study.growing_pays import packaged
from mupscale.study.questions.method import method

ROOT = Path(__file__).parents[2]


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_default_is_what_is_best_on_the_map():
    best = next(cell for cell in packaged()["cells"] if cell["start"] == packaged()["best"])
    assert best["recipe"] == "--operator {} --shrink {}".format(*DEFAULT)


@pytest.mark.parametrize(
    ("shown", "start"),
    [
        ("the default: `--operator expand --shrink 0.7`", "expand_shrunk"),
        ("`--operator zero_pad` (λ = 0.4)", "padded"),
        ("`--operator expand` (λ = 1)", "expand"),
        ("`--operator zero_pad --shrink 1`", "padded_whole"),
        ("`--operator duplicate`", "copied"),
        ("the narrow model continued, as many FLOPs", "continued"),
    ],
)
def test_the_shares_that_are_told_are_those_of_the_map(shown, start):
    page = (ROOT / "docs/guide/does-it-pay.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {shown} |"))
    columns = [column.strip() for column in row.replace("*", "").split("|")[2:-2]]
    cells = {
        (cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"]): cell
        for cell in packaged()["cells"]
        if cell["start"] == start
    }
    for narrow, column in zip((5, 20, 80, 320), columns, strict=False):
        cell = cells[narrow, 20]
        spread = "" if cell["share_spread"] is None else f" ± {100 * cell['share_spread']:.0f} %"
        said = f"{cell['sign']}{100 * cell['share']:.0f} %{spread}"
        with_narrow = f" ({cell['sign']}{100 * cell['with_narrow']:.0f} %)"
        assert column == said + (with_narrow if narrow < 320 else "")
    short = cells[320, 5]
    assert columns[4] == f"{short['loss']:.3f} ± {short['loss_spread']:.3f}"
    assert f"(from scratch {short['scratch_loss']:.3f})" in page


def measured(study):
    kept = ROOT / f"docs/evidence/{study}/results.json.gz"
    return {sweep["name"]: sweep for sweep in json.loads(gzip.decompress(kept.read_bytes()))["sweeps"]}


def deviating(losses):
    return f"{fmean(losses):.3f} ± {stdev(losses):.3f}"


def cells_of(table):
    return {
        (cell["start"], cell["narrow_tokens_per_parameter"], cell["tokens_per_parameter"]): cell
        for cell in table["cells"]
    }


LARGER, BY4 = (cells_of(packaged()[name]) for name in ("larger", "by4"))


@pytest.mark.parametrize(
    ("heading", "cells", "columns"),
    [
        ("**At the next size", LARGER, [*product((20, 320), (5, 10, 20))]),
        ("**By 4 at once", BY4, [*product((20, 320), (5, 10))]),
    ],
    ids=["larger", "by 4"],
)
@pytest.mark.parametrize(
    ("shown", "start", "losses"),
    [
        ("the default: `--operator expand --shrink 0.7`", "expand_shrunk", "loss"),
        ("`--operator zero_pad` (λ = 0.4)", "padded", "loss"),
        ("the narrow model continued, as many FLOPs", "continued", "loss"),
        ("from scratch", "padded", "scratch"),
    ],
)
def test_the_losses_that_are_told_are_those_that_were_measured(shown, start, losses, heading, cells, columns):
    table = (ROOT / "docs/guide/does-it-pay.md").read_text().partition(heading)[2]
    table = table.partition("\n\n**")[0]  # to the next heading
    if not any(key[0] == start for key in cells):
        assert f"| {shown} |" not in table
        return
    row = next(line for line in table.splitlines() if line.startswith(f"| {shown} |"))
    measured_at = [cells.get((start, *column)) for column in columns]
    keys = (losses, "loss_spread") if losses == "loss" else ("scratch_loss", "scratch_spread")
    expected = [cell and "{:.3f} ± {:.3f}".format(*(cell[key] for key in keys)) for cell in measured_at]
    assert [column.strip() or None for column in row.split("|")[2:-1]] == expected
    assert not any(cell["at_edge"] for cell in measured_at if cell)


def test_what_is_told_of_the_next_size_was_measured():
    page = said("docs/guide/does-it-pay.md")
    low = measured("growing_pays_128")["padded_low-20"]["best_ends"][-1]
    assert not low["at_edge"]
    assert f"at λ = 0.2, tried when all of this had been read, it is at {deviating(low['losses'])}" in page
    short, long = LARGER["padded", 20, 20], LARGER["expand_shrunk", 320, 20]
    assert f"takes more than {100 * short['share']:.0f} % of the FLOPs from scratch" in page
    assert f"more than {100 * short['with_narrow']:.0f} % with the narrow model's training" in page
    assert f"takes {100 * long['share']:.0f} % ± {100 * long['share_spread']:.0f} % of the FLOPs" in page
    assert f"({long['with_narrow']:.1f} times with the narrow model's training)" in page


def test_what_is_told_of_growing_by_4_was_measured():
    page = said("docs/guide/does-it-pay.md")
    shares = [
        f"{100 * BY4['padded', narrow, 5]['share']:.0f} % ± "
        f"{100 * BY4['padded', narrow, 5]['share_spread']:.0f} %"
        for narrow in (20, 320)
    ]
    assert f"At 5 `zero_pad` takes {shares[0]} and {shares[1]} of the FLOPs from scratch" in page
    short = BY4["padded", 320, 2.5]
    pair = (
        f"{short[k]:.3f} ± {short[s]:.3f}"
        for k, s in (("loss", "loss_spread"), ("scratch_loss", "scratch_spread"))
    )
    assert "it is ahead: {}, and {} from scratch".format(*pair) in page
    assert "The narrow model, simply continued, is behind all of these by 0.24 and more" in page
    for narrow in (20, 320):
        others = [
            BY4[start, narrow, 5][key]
            for start in ("expand_shrunk", "padded")
            for key in ("loss", "scratch_loss")
        ]
        assert BY4["continued", narrow, 5]["loss"] - max(others) > 0.24
    for narrow in (20, 320):
        default, padded = (BY4[start, narrow, 10] for start in ("expand_shrunk", "padded"))
        assert default["loss"] - default["loss_spread"] > default["scratch_loss"]
        assert abs(padded["loss"] - padded["scratch_loss"]) < padded["loss_spread"]


def test_the_rates_that_are_told_to_be_best_after_growing_were():
    """Half the narrow model's from one at 20 tokens per parameter, a quarter from one at 320, at every length."""
    sweeps = measured("growing_pays_128")
    rates = {name: {end["point"]["lr"] for end in sweep["best_ends"]} for name, sweep in sweeps.items()}
    assert not any(end["at_edge"] for sweep in sweeps.values() for end in sweep["best_ends"])
    assert rates["narrow-20"] == rates["narrow-320"] == {0.008}
    for start in ("expand_shrunk", "padded"):
        assert (rates[f"{start}-20"], rates[f"{start}-320"]) == ({0.004}, {0.002})
    page = said("docs/guide/training.md")
    assert (
        "the narrow model's rate was 0.008, and the best one after growing half of that from a narrow model at 20"
        in page
    )
    assert (
        "a quarter from one at 320, at every length, for `expand` at λ = 0.7 and `zero_pad` at 0.4 alike"
        in page
    )
    depth = measured("depth_growing_pays")
    assert {end["point"]["lr"] for end in depth["narrow"]["best_ends"]} == {0.016}
    grown = {
        name: {e["point"]["lr"] for e in s["best_ends"]} for name, s in depth.items() if s["begin"] == "grow"
    }
    assert [name for name, found in grown.items() if found != {0.008}] == ["identity"]


@pytest.mark.parametrize("study", ["mlp_adamw_cpu", "mlp_sgd_cpu"])
def test_the_losses_of_growth_that_was_tuned_small_are_those_that_were_measured(study):
    page = (ROOT / "docs/tuning.md").read_text().partition(f"examples/studies/{study}.toml`")[2]
    shown = next(row for row in page.splitlines() if row.startswith("| loss |"))
    best = [measured(f"{study}/transfer")[f"grow-{width}"]["best"] for width in (64, 128, 256)]
    assert (
        shown == "| loss | " + " | ".join(f"{one['loss']:.4f} ± {one['spread']:.4f}" for one in best) + " |"
    )


# ---- what was proved ---------------------------------------------------------------------------------------


def counted(page):
    """The table at the head of a page: its rows by their names, each with its columns by theirs."""
    head = (ROOT / f"docs/{page}.md").read_text().partition("\n| |")[2].partition("\n\n")[0]
    names, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in head.splitlines())
    return {name: dict(zip(names, cells, strict=True)) for name, *cells in rows}


def said(page):
    return " ".join((ROOT / page).read_text().split())


def test_the_families_that_are_told_to_be_proved_were_counted():
    rows = {
        name: {outcome: int(count) for outcome, count in row.items()}
        for name, row in counted("families").items()
    }
    assert len(rows) == 5
    assert not any(row["failed"] or row["WRONG"] for row in rows.values())  # none comes out wrong
    causal, other = (
        min((rows[f"{kind} × {factor}"] for factor in (2, 3)), key=lambda row: row["proved"])
        for kind in ("causal", "other")
    )
    types, others = sum(causal.values()), sum(other.values())
    assert f"| {causal['proved']} causal ones of transformers proved, and modules of your own |" in said(
        "README.md"
    )
    assert (
        f"proves {causal['proved']} of the {types} causal language model types, and {other['proved']} of {others} "
        "encoders, sequence-to-sequence, vision, speech and vision-language models"
    ) in said("docs/proved.md")
    text = (ROOT / "docs/families.md").read_text()
    proved = {
        growth: set(re.findall(rf"^\| `(\S+)` \| {growth} \| proved", text, re.MULTILINE))
        for growth in ("× 2", "layers × 2")
    }
    wide, both = proved["× 2"], proved["× 2"] & proved["layers × 2"]
    deeper = len(proved["layers × 2"] - wide)
    assert len(both) + deeper == rows["causal layers × 2"]["proved"]
    assert (
        f"the {causal['proved']} causal types of transformers that are proved for width, {len(both)} grow in depth and "
        f"{causal['proved'] - len(both)} are refused; of the others {deeper} grow in depth alone"
    ) in said("docs/depth.md")


def test_the_foreign_models_that_are_told_to_be_proved_were_counted():
    rows = counted("foreign")
    assert not any(int(row["WRONG"]) for row in rows.values())
    exact, proved = rows["all"]["exact"], rows["all"]["proved"]
    assert f"of {exact} models of timm" in said("docs/proved.md")
    assert f"whose growth even copies can express {proved} (" in said("docs/proved.md")
    assert f"Of {exact} models of timm" in said("docs/guide/module.md")
    assert f"can express, {proved} are proved, two refused and two left unproved" in said(
        "docs/guide/module.md"
    )
    assert (int(exact) - int(proved), int(rows["all"]["unproved"])) == (4, 2)


# ---- depth -------------------------------------------------------------------------------------------------

DEPTH = (ROOT / "docs/depth.md").read_text()


def columns(start):
    """Of the row of depth.md that begins so."""
    row = next(line for line in DEPTH.splitlines() if line.startswith(f"| {start} |"))
    return [column.strip() for column in row.replace("*", "").split("|")[2:-1]]


@pytest.mark.parametrize(
    ("start", "sweep"),
    [
        ("eight layers from scratch, depth-μP", "scratch"),
        ("repeated, half each, optimizer carried", "repeated"),
        ("the same, optimizer fresh", "repeated_fresh"),
        ("the same, with noise between the repeats (`between:1`)", "repeated_noise"),
        ("the same, half of that (`between:0.5`)", "repeated_half_noise"),
        ("the whole stack again (`stack`)", "stacked"),
        ("new layers that are the identity (`stack_identity`)", "identity"),
        ("the four layers, continued", "continued"),
    ],
)
def test_what_growing_in_depth_came_to(start, sweep):
    ends = measured("depth_growing_pays")[sweep]["best_ends"]
    assert columns(start) == [deviating(end["losses"]) for end in ends]
    assert not any(end["at_edge"] for end in ends)


def test_every_depth_is_told_with_its_own_number_of_parameters():
    results = json.loads(
        gzip.decompress((ROOT / "docs/evidence/depth_growing_pays/results.json.gz").read_bytes())
    )
    shapes = "d_model 32 with 4 layers (76.1K parameters) and 32 with 8 layers (119K parameters)"
    assert method(results).parts[0] == f"Model: llama; {shapes}."
    assert "four to eight layers (76K to 119K parameters)" in said("docs/guide/does-it-pay.md")


@pytest.mark.parametrize(("start", "sweep"), [("2 → 4 layers", "grown_4"), ("8 → 16 layers", "grown_16")])
def test_the_rates_after_growing(start, sweep):
    found = measured("depth_growth_transfer")[sweep]
    losses = {point["point"]["lr"]: point["loss"] for point in found["points"]}
    assert columns(start) == [f"{losses[rate]:.3f}" for rate in sorted(losses)]
    assert found["best"]["point"]["lr"] == 0.004


def test_the_rates_over_depth():
    sweeps = measured("depth_transfer")
    for start, name in (("μP for widths alone", "width-alone"), ("depth as one more axis", "depth")):
        best = [sweeps[f"{name}-{layers}"]["best"] for layers in (2, 4, 8, 16, 32)]
        assert columns(f"{start}: best rate") == [f"{one['point']['lr']:g}" for one in best]
        losses = next(line for line in DEPTH[DEPTH.index(f"| {start}: best rate") :].splitlines()[1:])
        told = [column.strip() for column in losses.replace("*", "").split("|")[2:-1]]
        assert told == [f"{one['loss']:.3f}" for one in best]


def test_what_the_default_is_told_to_save_is_what_the_map_says():
    page = (ROOT / "docs/guide/does-it-pay.md").read_text()
    best = {
        cell["narrow_tokens_per_parameter"]: cell
        for cell in packaged()["cells"]
        if cell["start"] == packaged()["best"] and cell["tokens_per_parameter"] == 20
    }
    rows = {
        line.split(" | ")[0]: line.strip("| ").split(" | ")[1:]
        for line in page.splitlines()
        if "| saved" in line
    }
    already, counted = (
        rows["| saved, if the narrow model is there already"],
        rows["| saved, its training counted in"],
    )
    assert already == [f"{100 - 100 * best[narrow]['share']:.0f} %" for narrow in (5, 20, 80, 320)]
    assert counted[:2] == [f"{100 - 100 * best[narrow]['with_narrow']:.0f} %" for narrow in (5, 20)]
    assert counted[2] == f"none (costs {100 * best[80]['with_narrow'] - 100:.0f} % more)"
    assert counted[3] == f"none ({best[320]['with_narrow']:.1f} times)"


def test_faster_new_weights_did_what_is_told():
    rows = json.loads((ROOT / "docs/evidence/faster_new_units/results.json").read_text())["rows"]
    lowest: dict[str, float] = {}
    for row in rows:
        lowest[row["start"]] = min(row["loss"]["20"], lowest.get(row["start"], 9))
    page = (ROOT / "docs/guide/does-it-pay.md").read_text()
    for line, start, told in (
        ("`expand`, λ = 0.7, fresh optimizer", "expand", ("", ", new × 1.3", ", new × 2")),
        ("`expand`, λ = 0.7, padded optimizer", "expand, carried", ("", ", new × 1.3")),
        ("pure copies, asymmetric optimizer", "copies, asymmetric", ("", ", new × 1.3")),
    ):
        shown = next(text for text in page.splitlines() if text.startswith(f"| {line} |")).replace("*", "")
        values = [f"{lowest[start + how]:.3f}" for how in told]
        assert [cell.strip() for cell in shown.split("|")[2 : 2 + len(values)]] == values
