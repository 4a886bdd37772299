"""The evidence: it goes on where it was killed, and its pages are made of results alone."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from mupscale.study.files import read_study
from mupscale.study.page import Answer, plots
from mupscale.study.work.storage import open_storage

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(EXAMPLES))

import evidence  # noqa: E402
from claims import (  # noqa: E402
    CLAIMS,
    MA,
    Claim,
    begins_and_ends_lower,
    best_together,
    goes_by_rule,
    pays,
    saves,
    stays_equal,
    transfers,
)
from evidence_pages import GROWING, RESULTS, _better, _told_part  # noqa: E402

HEAD = """\
seeds = 2
[model]
family = "mlp"
layers = 3
[data]
source = "digits"
[training]
batch_size = 32
warmup_steps = 1
max_grad_norm = 0.0
eval_every = 5
eval_blocks = 64
save_every = 1000
"""
# One that asks whether growth stays exact, and one that looks for recipes.
EQUAL = (
    HEAD
    + """
[sweep.narrow]
width = 8
steps = 10
lr = 0.01
[sweep.continued]
begin = "continue"
from = "narrow"
steps = 10
lr = 0.01
keep = true
[sweep.grown]
like = "continued"
begin = "grow"
growth = 2
noise = 0
verify = true
[[question]]
ask = "equality"
of = ["grown"]
against = ["continued"]
"""
)
RECIPES = (
    HEAD
    + """
[sweep.narrow]
width = 8
steps = 10
lr = 0.01
keep = true
[sweep.even]
from = "narrow"
growth = 2
steps = 20
lengths = [0.5, 1]
try = { lr = [0.01], noise = [0.5, 2] }
[sweep.padded]
like = "even"
operator = "zero_pad"
try = { lr = [0.005, 0.01] }
[[question]]
ask = "points"
of = ["even", "padded"]
"""
)
# One that asks when growing pays, of two starts.
MAP = (
    HEAD
    + """
[sweep.narrow]
width = 8
steps = 10
lr = 0.01
[sweep.scratch]
width = 16
steps = 20
lengths = [0.5, 1]
lr = 0.01
[sweep.even-1]
begin = "grow"
from = "narrow"
growth = 2
steps = 20
lengths = [0.5, 1]
lr = 0.01
[sweep.padded-1]
like = "even-1"
operator = "zero_pad"
[[question]]
ask = "map"
of = ["even-1", "padded-1"]
against = "scratch"
"""
)
CLAIM = Claim(
    paper=MA,
    title="Equivalence",
    says="Nothing is lost.",
    study="equal",
    asks=({"ask": "equality"},),
    judge=stays_equal,
    picture="grown_and_continued",
)


def studies_in(folder):
    (folder / "equal.toml").write_text(EQUAL)
    (folder / "recipes.toml").write_text(RECIPES)
    return evidence.Study("recipes", GROWING, folder=folder), evidence.Study("equal", folder=folder)


def run(folder, **more):
    made = studies_in(folder)
    return evidence.evidence(
        jobs=1,
        out=folder / "out",
        docs=folder / "docs",
        table=folder / "table.json",
        studies=made,
        claims=(CLAIM,),
        **more,
    )


def begun(folder):
    """The command in a process of its own."""
    code = f"import sys, pathlib; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]}\n"
    code += f"import test_evidence; test_evidence.run(pathlib.Path({str(folder)!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finished(folder):
    """When each trial of the recipes ended, by sweep and number."""
    journal = folder / "out" / "recipes" / "trials.journal"
    if not journal.exists():
        return {}
    storage = open_storage(journal)
    return {
        (summary.study_name, trial.number): trial.datetime_complete
        for summary in optuna.get_all_study_summaries(storage)
        for trial in storage.get_all_trials(summary._study_id)
        if trial.state.name == "COMPLETE"
    }


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(tmp_path, capsys, monkeypatch):
    process = begun(tmp_path)
    try:
        while len(finished(tmp_path)) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    before = finished(tmp_path)

    assert run(tmp_path, dry_run=True) == 0
    assert not (tmp_path / "docs").exists()
    said = capsys.readouterr()
    assert "hours are left with 1 worker" in said.out
    assert "measuring steps of equal" in said.err

    assert run(tmp_path, pages=True) == 0
    growing, results = ((tmp_path / "docs" / name).read_text() for name in (GROWING, RESULTS))
    done = len(finished(tmp_path))
    assert f"Not finished: {done} of 10 trials; `mupscale study examples/studies/recipes.toml" in growing
    assert "What was tried" not in growing
    assert "Not finished: 0 of 6 trials" in results
    assert "| yes " not in results

    assert run(tmp_path) == 0
    after = finished(tmp_path)
    assert len(after) == 10
    assert before.items() <= after.items(), "a finished trial was repeated"
    growing, results = ((tmp_path / "docs" / name).read_text() for name in (GROWING, RESULTS))
    assert "Not finished" not in growing + results
    assert "### What was tried, and lost" in growing
    assert "| even, noise 0.5 " in growing
    assert "| yes " in results
    assert "](evidence/equal/grown_and_continued.png)" in results

    # From the results alone, read back.
    there = tmp_path / "alone"
    for name in ("equal", "recipes"):
        (there / "out" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "out" / name / "results.json", there / "out" / name)
    assert run(there, pages=True) == 0
    for name in (GROWING, RESULTS, "evidence/equal/grown_and_continued.csv"):
        assert (there / "docs" / name).read_bytes() == (tmp_path / "docs" / name).read_bytes(), name
    assert (there / "docs" / "evidence/equal/grown_and_continued.png").exists()

    # From what is kept beside them, and what was told of a study whose results are lost stays.
    monkeypatch.setattr(plots.FigureCanvasAgg, "print_png", lambda self, path: Path(path).touch())
    for lost in ((), ("recipes",)):
        shutil.rmtree(there / "out", ignore_errors=True)
        for name in lost:
            (there / "docs" / "evidence" / name / "results.json.gz").unlink()
        assert run(there, pages=True) == 0
        assert (there / "docs" / GROWING).read_text() == growing
        if not lost:
            assert (there / "docs" / RESULTS).read_text() == results
    for name in ("equal", "recipes"):
        (there / "out" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "out" / name / "results.json", there / "out" / name)

    # What is done costs nothing more.
    assert evidence._hours(studies_in(there)[0], there / "out", 1)[1] == 0.0


def test_a_map_is_told_as_far_as_it_is_measured(tmp_path):
    """The table of `mupscale advise` is that of the page; what is not finished is in neither."""
    (tmp_path / "growing_pays.toml").write_text(MAP)
    study = evidence.Study("growing_pays", GROWING, folder=tmp_path)
    places = {key: tmp_path / key for key in ("out", "docs", "table")}
    evidence.evidence(jobs=1, **places, studies=(study,), claims=())
    whole = json.loads((tmp_path / "table").read_text())
    assert {cell["start"] for cell in whole["cells"]} == {"even", "padded"}
    assert {*whole} == {"about", "narrow", "model", "command", "best", "cells"}
    assert "What follows is of its sweeps" not in (tmp_path / "docs" / GROWING).read_text()

    results = study.results(tmp_path / "out")
    padded = next(sweep for sweep in results["sweeps"] if sweep["name"] == "padded-1")
    padded |= {"finished": False, "done": 1}
    study.results_at(tmp_path / "out").write_text(json.dumps(results))
    (tmp_path / "out" / "growing_pays" / "trials.journal").unlink()
    study.kept_at(tmp_path / "docs").unlink()
    evidence.evidence(jobs=1, **places, studies=(study,), claims=(), pages=True)
    part = json.loads((tmp_path / "table").read_text())
    assert {cell["start"] for cell in part["cells"]} == {"even"}
    page = (tmp_path / "docs" / GROWING).read_text()
    assert "Not finished: 7 of 8 trials" in page
    assert "What follows is of its sweeps that are finished." in page
    assert "| even " in page
    assert "| padded " not in page


def test_of_papers_claims_nothing_is_told_before_its_study_is_finished(tmp_path):
    """Whatever its questions name, one sweep or a list."""
    study = studies_in(tmp_path)[1]
    sweeps = [{"name": name, "finished": name != "late"} for name in ("grown", "continued", "late")]
    asked = [{"ask": "equality", "of": ["grown"], "against": ["continued"]}, {"ask": "cost"}]
    results = {"sweeps": sweeps, "questions": asked}
    assert _told_part(study, results) is None
    growing = replace(study, page=GROWING)
    assert _told_part(growing, results)["questions"] == asked[:1]
    sweeps[1]["finished"] = False
    assert _told_part(growing, results) is None


def test_what_was_finished_is_not_lost_to_a_run_that_is_not():
    done, begun = ({"sweeps": [{"finished": finished}]} for finished in (True, False))
    assert _better(begun, done) is done
    assert _better(done, begun) is done
    assert _better(begun, None) is begun
    assert _better(None, begun) is begun
    assert _better(None, None) is None


def test_the_pages_are_of_the_results_that_are_kept_beside_them(tmp_path, monkeypatch):
    """Those that are in the repository, with their numbers and the table of `mupscale advise`."""
    monkeypatch.setattr(plots.FigureCanvasAgg, "print_png", lambda self, path: Path(path).touch())
    docs, table = tmp_path / "docs", tmp_path / "table.json"
    shutil.copytree(DOCS, docs)
    shutil.copy(evidence.TABLE, table)
    assert evidence.evidence(pages=True, out=tmp_path / "nothing ran here", docs=docs, table=table) == 0
    written = {path.relative_to(docs) for path in docs.rglob("*.*") if path.suffix in (".md", ".csv")}
    assert written == {path.relative_to(DOCS) for path in DOCS.rglob("*.*") if path.suffix in (".md", ".csv")}
    differing = [path for path in written if (docs / path).read_text() != (DOCS / path).read_text()]
    assert not differing
    assert table.read_text() == evidence.TABLE.read_text()


def test_names_and_failures(tmp_path, capsys):
    with pytest.raises(evidence.GrowthError, match="no study other; expected recipes, equal"):
        run(tmp_path, only=("other",))
    broken = EQUAL.replace('"digits"', '"missing"')
    studies = studies_in(tmp_path)
    (tmp_path / "equal.toml").write_text(broken)
    assert not evidence.run_study(studies[1], tmp_path / "out", 1)
    assert "equal: " in capsys.readouterr().out


@pytest.mark.parametrize("study", evidence.STUDIES, ids=lambda study: study.name)
def test_every_study_is_readable(study):
    assert read_study(study.file, check_transfer=study.check_transfer).questions


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title)
def test_every_claim_names_questions_that_exist(claim):
    study = next(study for study in evidence.STUDIES if study.name == claim.study)
    questions = read_study(study.file, check_transfer=study.check_transfer).questions
    for asked in claim.asks:
        assert any(asked.items() <= question.items() for question in questions), asked


def test_every_study_file_is_listed():
    listed = (EXAMPLES / "studies" / "README.md").read_text()
    missing = [file.stem for file in (EXAMPLES / "studies").glob("*.toml") if f"`{file.stem}`" not in listed]
    assert not missing


# ---- verdicts ----------------------------------------------------------------------------------------------


def cell(start="warm", ratio=20.0, loss=2.0, **more):
    numbers = {"share": 0.8, "share_spread": None, "with_narrow": 0.9, "sign": "", "factor": 2.5}
    place = {"start": start, "tokens_per_parameter": ratio}
    return {**place, "loss": loss, "loss_spread": 0.01, **numbers, **more}


def answer(**data):
    return Answer(title="", parts=(), data=data)


@pytest.mark.parametrize(
    ("cells", "agrees"),
    [
        ([cell()], True),
        ([cell(share=1.1)], False),
        ([cell(share=0.9, sign="> ")], None),
        ([cell(share=1.1, sign="≤ ")], None),
        ([cell(share=0.3, sign="≤ ")], True),
        ([cell(ratio=30.0)], None),
        ([cell(share=None)], None),
    ],
)
def test_whether_it_pays(cells, agrees):
    assert pays("warm", 20)(answer(cells=cells))[1] is agrees
    both = pays("warm", 20)(answer(cells=cells), answer(cells=[cell()]))[1]
    assert both is agrees


@pytest.mark.parametrize(
    ("at_edge", "noise", "agrees"), [([], 1.0, True), (["noise"], 0, True), (["noise"], 4.0, None)]
)
def test_a_transfer_at_the_edge_of_a_grid_is_not_known(at_edge, noise, agrees):
    rows = [{"point": {"lr": 0.1, "noise": noise}, "at_edge": at_edge}]
    found = Answer(title="", parts=(), headline="It transfers.", passed=True, data={"": {"rows": rows}})
    assert transfers(found) == ("It transfers.", agrees)


def test_the_base_model_counted_in():
    judge = pays("warm", 20, "with_narrow")
    assert judge(answer(cells=[cell()])) == (
        "Of the FLOPs from scratch to the same loss it takes, × 2.5 in parameters: 90%.",
        True,
    )
    assert judge(answer(cells=[cell(with_narrow=1.2)]))[1] is False


def test_shares_of_a_saving():
    found = {"ratio": 0.5, "sign": "", "with_before": 0.7}
    said, agrees = saves(answer(transferred=found))
    assert agrees
    assert "50% of the FLOPs" in said
    assert "70% with" in said
    assert saves(answer(tuned=found | {"ratio": 1.5}))[1] is False
    assert saves(answer())[1] is None


def test_one_start_below_the_others():
    judge = best_together("warm", ("shrunk",), 20)
    assert judge(answer(cells=[cell(), cell("shrunk", loss=2.1)]))[1] is True
    assert judge(answer(cells=[cell(), cell("shrunk", loss=1.9)]))[1] is False
    assert judge(answer(cells=[cell(), cell("shrunk", loss=2.005)]))[1] is None  # within a deviation
    assert judge(answer(cells=[cell()]))[1] is None


@pytest.mark.parametrize(
    ("best", "level", "edge", "said", "agrees"),
    [
        (0.008, [0.008], [], "0.008)", True),
        (0.016, [0.008, 0.016], [], "0.008, as good)", True),
        (0.016, [0.016], [], "0.008, worse)", False),
        (0.008, [0.008], ["lr"], "0.008)", None),
    ],
)
def test_rates_by_a_rule(best, level, edge, said, agrees):
    narrow = {"point": {"lr": 0.004}, "level": [{"lr": 0.004}], "at_edge": []}
    wide = {"point": {"lr": best}, "level": [{"lr": lr} for lr in level], "at_edge": edge}
    judge = goes_by_rule("narrow", {"4B": 2.0})
    assert judge(answer(**{"narrow": narrow, "4B": wide})) == (
        f"Best rate, narrow 0.004: 4B {best:g} (by the rule {said}.",
        agrees,
    )
    assert judge(answer(narrow=narrow))[1] is None


def test_initial_and_final_losses():
    rows = [
        {"start": start, "width": width, "initial": initial, "cooldown": final}
        for start, width, initial, final in (("warm", 32, 4.0, 2.0), ("scratch", 32, 6.0, 2.1))
    ]
    assert begins_and_ends_lower("warm")(answer(starts=rows))[1] is True
    rows[0]["initial"] = 7.0
    assert begins_and_ends_lower("warm")(answer(starts=rows))[1] is False
    assert begins_and_ends_lower("warm")(answer(starts=rows[:1]))[1] is None
