"""The README is short, and what it and the pages say of the map is what was measured."""

from pathlib import Path

import pytest

from mupscale.operators.catalogue import DEFAULT
from mupscale.study.growing_pays import packaged

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
