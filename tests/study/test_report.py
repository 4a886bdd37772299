"""The page stands alone, and every figure on it is one of results.json."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mupscale.study.report import summary, write_report


@pytest.fixture(scope="module")
def results(comparison: Path) -> dict[str, Any]:
    return json.loads((comparison / "results.json").read_text())


@pytest.fixture(scope="module")
def folder(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(results, folder)
    return folder


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.cells = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.cells += tag == "td"
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_no_other_file(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert len(page.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in html.split("base64,")[0]
    assert "viewport" in html
    assert "prefers-color-scheme" in html
    assert page.cells > 100


def test_numbers_behind_the_pictures_are_beside_them(folder: Path, results: dict[str, Any]) -> None:
    for name in ("loss_over_steps", "loss_over_flops", "loss_by_length"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.csv").is_file()
    rows = list(csv.DictReader((folder / "loss_over_flops.csv").open()))
    grown = [row for row in rows if row["run"] == "grown"]
    last = results["runs"][0]
    assert float(grown[-1]["held_out_loss"]) == last["final_loss"]
    assert float(grown[0]["flops"]) == results["narrow"]["flops"]
    assert float(grown[-1]["flops"]) == results["narrow"]["flops"] + last["flops"]


def test_summary_tells_the_figures(results: dict[str, Any]) -> None:
    text = " ".join(summary(results))
    saved = results["savings"]
    assert f"{saved['grown_final_loss']:.3f}" in text
    assert f"{saved['scratch_final_loss_at_equal_steps']:.3f}" in text
    assert "gave the same answers" in text
    assert "carried along" in text


def test_summary_admits_that_growing_did_not_pay(results: dict[str, Any]) -> None:
    worse = json.loads(json.dumps(results))
    worse["savings"] |= {
        "scratch_steps_to_reach_grown": {"steps": 10.0, "bound": "at most"},
        "scratch_final_loss_at_equal_steps": worse["savings"]["grown_final_loss"] - 1,
        "flops_saved": -1.0,
        "flops_saved_counting_narrow": -2.5,
    }
    worse["verification"]["equal"] = False
    text = " ".join(summary(worse))
    assert "cost at least 100% more" in text
    assert "cost at least 250% more" in text
    assert "already reached it" in text
    assert "not give quite the same" in text


def test_report_works_where_the_narrow_cost_is_unknown(results: dict[str, Any], tmp_path: Path) -> None:
    unknown = json.loads(json.dumps(results))
    unknown["narrow"] |= {"steps": None, "flops": None, "final_loss": None, "curve": []}
    unknown["savings"] |= {"narrow_flops": None, "flops_saved_counting_narrow": None}
    unknown["savings"] |= {
        "scratch_final_loss_at_equal_compute": None,
        "scratch_steps_at_equal_compute": None,
    }
    unknown["data"] |= {"narrow_saw_blocks": None, "fresh": False}
    html = write_report(unknown, tmp_path).read_text()
    assert "is not known" in html
    assert "None" not in html
