"""The page stands alone, and beside it lies everything that it shows."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import (
    Row,
    check,
    comparison,
    demo,
    dynamics,
    ends,
    growing,
    parametrizations,
    procedure,
    pruned,
    rates,
    read_back,
    row,
    study,
    sweep,
    valley,
)

from mupscale.study.page import Answer, Table, markdown, markdown_table, write
from mupscale.study.page.parts import html_table
from mupscale.study.page.plots import Line, Plot, canvas, draw, heat
from mupscale.study.questions import answers
from mupscale.study.questions.knobs import knob_plots


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def written(results: Row, folder: Path) -> str:
    return write(results, answers(results), folder).read_text()


def assert_stands_alone(html: str, pictures: int) -> None:
    page = Page(html)
    assert page.open == []
    assert len(page.links) == pictures
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in html.split("base64,")[0]
    assert "viewport" in html
    assert "prefers-color-scheme" in html
    for word in ("None", "nan", ">inf"):
        assert word not in "".join(part.split('"', 1)[-1] for part in html.split("base64,"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---- tables ------------------------------------------------------------------------------------------------


def test_a_markdown_table_lines_up() -> None:
    lines = markdown_table(Table([{"lr": "0.1", "": "best"}, {"lr": "0.25", "": ""}])).splitlines()
    assert lines == ["|   lr |      |", "| ---: | ---- |", "|  0.1 | best |", "| 0.25 |      |"]


def test_both_tables_hold_the_same_cells_and_numbers_at_the_right() -> None:
    table = Table([{"a < b": "> 12%", "who": "x & y"}, {"a < b": "–", "who": "z"}])
    html = html_table(table)
    assert '<th class="number">a &lt; b</th><th>who</th>' in html
    assert '<td class="number">&gt; 12%</td><td>x &amp; y</td>' in html
    assert markdown_table(table).splitlines()[1] == "| ----: | ----- |"


def test_no_rows_make_no_table() -> None:
    assert markdown_table(Table([])) == html_table(Table([])) == ""


words = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=8)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_every_line_of_a_table_is_as_wide(rows: list[tuple[str, str]]) -> None:
    table = Table([{"first": a, "second": b} for a, b in rows])
    lines = markdown_table(table).splitlines()
    assert len(lines) == len(rows) + 2
    assert len({len(line) for line in lines}) == 1


# ---- plots -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1.0, 9.0), min_size=1, max_size=8), st.floats(0.0, 9.0))
def test_the_lowest_loss_is_always_in_the_picture(losses: list[float], zoom: float) -> None:
    line = Line(name="", curve=[[i, loss, loss - 0.1, loss + 0.1] for i, loss in enumerate(losses)])
    plot = draw("toy", {"": [line]}, columns=("x", "y"), x="x", y="y", caption="", zoom=zoom)
    low, high = plot.figure.axes[0].get_ylim()
    assert low < min(losses) - 0.1 < min(losses) < high
    assert high <= max(losses) + 0.1 + 0.1 * (max(losses) + 0.1 - low) + 0.05
    assert ("cut off" in plot.caption) == (max(losses) > high)


def test_a_picture_writes_what_it_shows(tmp_path: Path) -> None:
    lines = [
        Line(name="a", curve=[[1, 2.0, 1.5, 2.5], [2, 9.0, 9.0, 9.0]], more={"at": ["x", "y"]}),
        Line(name="b", curve=[[2, 3.0, 3.0, 3.0]], label="", more={"at": ["z"]}),
    ]
    plot = draw("toy", {"one": lines}, columns=("step", "loss"), x="x", y="y", caption="Toy.", zoom=0.0)
    assert plot.save(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert rows_of(tmp_path / "toy.csv") == [
        {
            "panel": "one",
            "line": "a",
            "step": "1",
            "loss": "2.0",
            "lowest": "1.5",
            "highest": "2.5",
            "at": "x",
        },
        {
            "panel": "one",
            "line": "a",
            "step": "2",
            "loss": "9.0",
            "lowest": "9.0",
            "highest": "9.0",
            "at": "y",
        },
        {
            "panel": "one",
            "line": "b",
            "step": "2",
            "loss": "3.0",
            "lowest": "3.0",
            "highest": "3.0",
            "at": "z",
        },
    ]
    assert plot.caption == "Toy. What is far above the rest is cut off at the top."
    assert [handle.get_text() for handle in plot.figure.axes[0].get_legend().get_texts()] == ["a"]


def test_cells_have_words_a_frame_and_borders_between_those_that_are_known() -> None:
    figure, (axes, other) = canvas(2, width=4, height=4, columns=1)
    cells = {(1, 1): (0.5, "a"), (2, 1): (1.5, "b"), (1, 2): (None, "c"), (2, 2): (0.7, "d")}
    heat(axes, cells, [1, 2, 3], [1, 2], colours="RdBu", limits=(0.0, 2.0), framed=(2, 1), border=1.0)
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [
        ("a", (0, 0)),
        ("b", (1, 0)),
        ("c", (0, 1)),
        ("d", (1, 1)),
    ]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [([0.5, 0.5], [-0.5, 0.5]), ([0.5, 1.5], [0.5, 0.5])]
    assert [patch.get_xy() for patch in axes.patches] == [(0.5, -0.5)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert figure.axes == [axes, other]
    assert len(canvas(3, width=4, height=4, columns=2)[0].axes) == 3


# ---- the folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "pictures"),
    [
        (procedure({40: 1.75, 80: 1.62, 200: 1.46}), 4),
        (check({32: (0.004, 1.0), 64: (0.002, 1.0)}), 3),
        (demo(), 2),
        (comparison(), 1),
        (dynamics(), 4),
        (growing(), 3),
        (parametrizations(), 1),
    ],
    ids=["procedure", "check", "demo", "comparison", "dynamics", "growing", "parametrizations"],
)
def test_the_page_stands_alone_and_its_pictures_beside_it(
    results: Row, pictures: int, tmp_path: Path
) -> None:
    html = written(results, tmp_path)
    assert_stands_alone(html, pictures)
    found = answers(results)
    plots = [part for answer in found for part in answer.parts if isinstance(part, Plot)]
    for plot in plots:
        assert (tmp_path / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(rows_of(tmp_path / f"{plot.name}.csv")) == len(plot.rows)
    assert (tmp_path / "report.md").read_text() == markdown(results, found)
    assert written(read_back(results), tmp_path / "again") == html


def test_markdown_holds_every_sentence_and_table() -> None:
    results = procedure({40: 1.75, 200: 1.46})
    found = answers(results)
    text = markdown(results, found)
    assert text.startswith("# A toy\n\nBest from scratch at 32: lr 0.004;")
    for answer in found:
        assert f"## {answer.title}" in text
        assert all(markdown_table(part) in text for part in answer.parts if isinstance(part, Table))
    assert "### grow-32: grown, 32 → 64, 20 of 20 trials" in text
    assert "counted by torch on the real model" in text
    assert "optimizer adamw, betas 0.9, 0.95" in text


def test_results_are_read_back_without_infinities(tmp_path: Path) -> None:
    written(procedure({40: 1.75, 200: 1.46}), tmp_path)
    text = (tmp_path / "results.json").read_text()
    assert "Infinity" not in text
    grow = json.loads(text)["sweeps"][3]
    assert [point["loss"] for point in grow["points"] if point["state"] == "diverged"] == [None] * 4


def test_every_point_seed_and_length_is_a_row(tmp_path: Path) -> None:
    results = procedure({40: 1.75, 200: 1.46})
    written(results, tmp_path)
    rows = rows_of(tmp_path / "runs.csv")
    expected = sum(
        len(p["losses"]) * max(1, len(p["lengths"])) for s in results["sweeps"] for p in s["points"]
    )
    assert len(rows) == expected
    grow = [row for row in rows if row["sweep"] == "grow-32"]
    assert grow[1] == {
        "sweep": "grow-32", "begin": "grow", "from_width": "32", "width": "64", "lr": "0.001", "noise": "0.0",
        "seed": "1", "steps": "100", "loss": "1.94", "state": "complete",
    }  # fmt: skip
    burst = [row for row in grow if row["lr"] == "0.016" and row["noise"] == "0.0"]
    assert [row["state"] for row in burst] == ["complete", "diverged", "diverged"]
    assert [bool(row["loss"]) for row in burst] == [True, False, False]
    grown = [(row["seed"], row["steps"], row["loss"]) for row in rows if row["sweep"] == "grown-128"]
    assert grown == [("0", "40", "1.74"), ("1", "40", "1.76"), ("0", "200", "1.45"), ("1", "200", "1.47")]


seeds = st.lists(st.one_of(st.none(), st.floats(1, 2)), min_size=1, max_size=4)


@given(st.lists(seeds, max_size=4), st.integers(0, 3))
def test_no_seed_is_lost(
    tmp_path_factory: pytest.TempPathFactory, points: list[list[float | None]], lengths: int
) -> None:
    made = []
    for number, losses in enumerate(points):
        several = {} if None in losses else ends({100 * n: losses for n in range(1, lengths + 1)})  # type: ignore[misc]
        made.append(row({"lr": float(number)}, losses, number, **several))
    folder, one = tmp_path_factory.mktemp("runs"), sweep("scratch-32", made)
    write(study([one]), [], folder)
    rows = rows_of(folder / "runs.csv")
    for point in made:
        mine = [row for row in rows if float(row["lr"]) == point["point"]["lr"]]
        runs = [(s, end["steps"]) for end in point["lengths"] or [one] for s in point["seeds"]]
        assert [(int(row["seed"]), int(row["steps"])) for row in mine] == runs
        known = sum(loss is not None for loss in point["losses"])
        assert sum(row["loss"] != "" for row in mine) == known * max(1, len(point["lengths"]))


def test_what_is_not_finished_is_said_at_the_top(tmp_path: Path) -> None:
    points = [pruned({"lr": 0.001, "noise": 0.0}, 0), *valley(0.004, 1.0, 1.8)[1:12]]
    grow = sweep("grow-32", points, begin="grow", width=64, total=20)
    results = study([grow], {"ask": "tuned", "of": "grow-32"}, {"ask": "points", "of": "grow-32"})
    html = written(results, tmp_path)
    assert_stands_alone(html, 3)
    assert "<b>Not finished: grow-32 (12 of 20 trials)." in html
    assert "1 of 12 points pruned." in html


def test_a_study_that_has_just_begun(tmp_path: Path) -> None:
    results = study([sweep("scratch-32", [], total=3)], {"ask": "tuned", "of": "scratch-32"}, {"ask": "cost"})
    html = written(results, tmp_path)
    assert_stands_alone(html, 0)
    assert "No values are tuned yet." in html
    assert "scratch-32 (0 of 3 trials)" in html


def test_two_questions_of_a_kind_keep_their_pictures(tmp_path: Path) -> None:
    both = [{"ask": "tuned", "of": name} for name in ("scratch-32", "grow-32")]
    results = procedure({40: 1.75, 200: 1.46}) | {"questions": both}
    written(results, tmp_path)
    lines = [
        {row["line"] for row in rows_of(tmp_path / f"{name}.csv")}
        for name in ("loss_over_lr", "loss_over_lr_2")
    ]
    assert lines == [{"scratch-32"}, {"grow-32"}]


def test_words_of_the_user_are_escaped(tmp_path: Path) -> None:
    html = write(
        study([], title="<b>&"), [Answer(title="<i>", parts=("a < b",), figures=[("<1", "&")])], tmp_path
    ).read_text()
    assert "<h1>&lt;b&gt;&amp;</h1>" in html
    assert "<h2>&lt;i&gt;</h2>\n<p>a &lt; b</p>" in html
    assert "<b>&lt;1</b>&amp;" in html


def test_lines_over_a_knob_are_told_apart_by_width_or_else_by_name():
    by_width = [sweep("mup-32", rates(0.004, 2.0)), sweep("mup-64", rates(0.004, 1.8))]
    by_name = [sweep("B", rates(0.004, 2.0), width=32), sweep("4B", rates(0.008, 1.9), width=32)]
    for sweeps, labels in ((by_width, ["32: 2.000", "64: 1.800"]), (by_name, ["B: 2.000", "4B: 1.900"])):
        axes = knob_plots(study(sweeps), {"from scratch": sweeps})[0].figure.axes[0]
        handles, found = axes.get_legend_handles_labels()
        assert found == labels
        assert len({handle.get_color() for handle in handles}) == 2


def test_noise_in_words_is_laid_along_no_axis():
    """A noise may be said with its kind, ``fresh:2``; beside it others are drawn."""
    sweeps = [
        sweep(name, [row({"lr": lr, "noise": noise}, [2.0]) for lr in (0.004, 0.008) for noise in noises])
        for name, noises in (("words-64", ("fresh:0.5", "fresh:2")), ("numbers-64", (1.0, 2.0)))
    ]
    plots = {plot.name: plot for plot in knob_plots(study(sweeps), {"grown": sweeps})}
    assert {line["line"] for line in plots["loss_over_noise"].rows} == {"numbers-64"}
    assert {line["line"] for line in plots["loss_over_lr"].rows} == {"numbers-64", "words-64"}
    assert {cell["sweep"] for cell in plots["loss_over_lr_and_noise"].rows} == {"numbers-64"}
