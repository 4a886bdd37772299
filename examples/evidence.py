"""The evidence: all studies behind docs/growing-pays.md and docs/results.md, one after the other.

    python examples/evidence.py --dry-run                  # what each costs in hours, less what is done
    python examples/evidence.py                            # all of it; given again, it goes on
    python examples/evidence.py --only warmstart dynamics  # some of it
    python examples/evidence.py --pages                    # write the pages anew, from what is there

The hours come from a few steps of every study, on its text. The first time all texts have to be read for it,
which takes a quarter of an hour; they are kept for the runs.

Every study runs in evidence/NAME and ends in its results.json; the pages, their pictures and CSV, and the
table that `mupscale advise` goes by are made of these files alone. They are kept packed in docs/evidence, so
that the pages can be written anew where nothing was run. A study that is not finished is said to be so, and
claims nothing; of one on when growing pays, the sweeps that are finished are shown.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from claims import CLAIMS, Claim
from evidence_pages import GROWING, RESULTS, is_finished, write_pages
from tyro.conf import FlagCreatePairsOff, arg

from mupscale.errors import GrowthError
from mupscale.study.files import locating
from mupscale.study.page import json_safe, markdown_table, write
from mupscale.study.page.parts import table_of
from mupscale.study.questions import answers
from mupscale.study.runs.progress import make_progress, quiet
from mupscale.study.work.driver import Job, estimate, run
from mupscale.study.work.results import collect

ROOT = Path(__file__).resolve().parents[1]
STUDIES_AT = ROOT / "examples" / "studies"
TABLE = ROOT / "src" / "mupscale" / "study" / "growing_pays.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One of the evidence's.

    Attributes:
        name: of its file; with ``/transfer``, the transfer check of a file that `mupscale tune` takes.
        page: that it feeds.
        gpu: whether it is left out where there is none.
        folder: where its file lies.
    """

    name: str
    page: str = RESULTS
    gpu: bool = False
    folder: Path = STUDIES_AT

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name.partition('/')[0]}.toml"

    @property
    def check_transfer(self) -> bool:
        return "/" in self.name

    @property
    def command(self) -> str:
        """By which it runs alone."""
        stem = self.file.stem
        check = " --check-transfer" * self.check_transfer
        verb = "tune" if check else "study"
        return f"mupscale {verb} examples/studies/{stem}.toml --out evidence/{stem}{check}"

    def job(self, out: Path) -> Job:
        return Job(file=self.file, out=out / self.file.stem, check_transfer=self.check_transfer)

    def results_at(self, out: Path) -> Path:
        return out / self.name / "results.json"

    def results(self, out: Path) -> Row | None:
        """What is known of it where it ran; None where nothing is."""
        place = self.results_at(out)
        return json.loads(place.read_text(encoding="utf-8")) if place.exists() else None

    def kept_at(self, docs: Path) -> Path:
        return docs / "evidence" / self.name / "results.json.gz"

    def kept(self, docs: Path) -> Row | None:
        """What the pages are made of where it did not run; None where nothing is."""
        place = self.kept_at(docs)
        return json.loads(gzip.decompress(place.read_bytes())) if place.exists() else None

    def keep(self, results: Row, docs: Path) -> None:
        """Put its results beside the pages, packed."""
        place = self.kept_at(docs)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, separators=(",", ":"), allow_nan=False)
        place.write_bytes(gzip.compress(text.encode(), mtime=0))


# In the order in which they run: the short ones first.
STUDIES = (
    Study("equivalence_mlp"),
    Study("equivalence_resnet"),
    Study("equivalence_gpt2"),
    Study("dynamics"),
    Study("budget"),
    Study("depth_transfer"),
    Study("depth_growth_transfer"),
    Study("mlp_adamw_cpu/transfer"),
    Study("mlp_adamw_cpu"),
    Study("mlp_sgd_cpu/transfer"),
    Study("resnet_cpu/transfer"),
    Study("resnet_cpu"),
    Study("gpt2_cpu/transfer"),
    Study("gpt2_cpu"),
    Study("warmstart"),
    Study("recipes", GROWING),
    Study("depth_growing_pays", GROWING),
    Study("growing_pays", GROWING),
    Study("growing_pays_by4", GROWING),
    Study("growing_pays_128", GROWING),
    Study("gpt2_paper/transfer", gpu=True),
    Study("growing_pays_512", GROWING, gpu=True),
)


def evidence(
    *,
    only: Annotated[tuple[str, ...], arg(help="names of studies; default: all")] = (),
    jobs: Annotated[int, arg(help="worker processes")] = 2,
    out: Annotated[Path, arg(help="folder for models and results")] = ROOT / "evidence",
    docs: Annotated[Path, arg(help="folder for the pages")] = ROOT / "docs",
    table: Annotated[Path, arg(help="file for what `mupscale advise` goes by")] = TABLE,
    dry_run: Annotated[bool, arg(help="say what it would cost, and stop")] = False,
    pages: Annotated[bool, arg(help="write the pages from what is there; run nothing")] = False,
    studies: Annotated[tuple[Study, ...], tyro.conf.Suppress] = STUDIES,
    claims: Annotated[tuple[Claim, ...], tyro.conf.Suppress] = CLAIMS,
) -> int:
    """Run the studies behind the evidence, and write its pages.

    Exit status 1 where a study could not be run: the others are run all the same.
    """
    if unknown := set(only) - {study.name for study in studies}:
        raise GrowthError(f"no study {', '.join(unknown)}; expected {', '.join(s.name for s in studies)}")
    chosen = [study for study in studies if not only or study.name in only]
    failed: list[str] = []
    if not pages:
        print(costs(chosen, out, jobs), flush=True)
        runnable = [] if dry_run else [study for study in chosen if not _left_out(study)]
        failed = [study.name for study in runnable if not run_study(study, out, jobs)]
    if not dry_run:
        for study in studies:
            look(study, out)
        write_pages(studies, claims, out, docs, table)
        print(f"Written: {docs / GROWING} and {docs / RESULTS}.")
    return 1 if failed else 0


def _left_out(study: Study) -> bool:
    return study.gpu and not torch.cuda.is_available()


# ---- running -----------------------------------------------------------------------------------------------


def costs(studies: Sequence[Study], out: Path, jobs: int) -> str:
    """Hours of each study, by a few steps measured here, in all and as far as they are not done."""
    hours, rows = [0.0, 0.0], []
    with make_progress() as progress:
        measuring = progress.add_task("measuring steps", total=len(studies), note="")
        for study in studies:
            progress.update(measuring, note=study.name)
            if not progress.console.is_terminal:
                progress.console.print(f"measuring steps of {study.name}")
            cells = ["–", "–", "needs a GPU"]
            if not _left_out(study):
                try:
                    whole, left = _hours(study, out, jobs)
                    hours = [hours[0] + whole, hours[1] + left]
                    cells = [f"{whole:.2f}", f"{left:.2f}", "" if left else "done"]
                except GrowthError as error:
                    cells[2] = str(error)
            rows.append((study.name, *cells))
            progress.advance(measuring)
    rows.append(("all", f"{hours[0]:.2f}", f"{hours[1]:.2f}", ""))
    table = markdown_table(table_of(("study", "hours", "left", ""), rows))
    return f"{table}\n\nAbout {hours[1]:.1f} hours are left with {jobs} worker{'s' * (jobs > 1)}."


def _hours(study: Study, out: Path, jobs: int) -> tuple[float, float]:
    """Of all of it, and of what is left; what is finished is not measured again."""
    known = study.results(out)
    if known and is_finished(known):
        return known["seconds"] / jobs / 3600, 0.0
    with quiet():
        rows = estimate(study.job(out), jobs=jobs)
    left = sum(row["seconds"] * max(0.0, 1 - row["done"] / row["trials"]) for row in rows)
    return sum(row["seconds"] for row in rows) / 3600, left / 3600


def run_study(study: Study, out: Path, jobs: int) -> bool:
    """Run what is left of a study; say whether that was possible."""
    print(f"\n{study.name}: {study.command}", flush=True)
    try:
        with make_progress() as progress:
            results = run(study.job(out), jobs=jobs, progress=progress)
    except GrowthError as error:
        print(f"{study.name}: {error}", flush=True)
        return False
    write(results, answers(results), study.results_at(out).parent)
    return True


def look(study: Study, out: Path) -> None:
    """Bring the results of a study that was stopped up to date with its trials."""
    job, place, known = study.job(out), study.results_at(out), study.results(out)
    if not job.journal.exists() or (known and is_finished(known)):
        return
    if known is None or job.journal.stat().st_mtime > place.stat().st_mtime:
        with locating(job.file):
            found = json_safe(collect(job.open()))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        raise SystemExit(tyro.cli(evidence, config=(FlagCreatePairsOff,)))
    except GrowthError as error:
        raise SystemExit(f"error: {error}") from None
