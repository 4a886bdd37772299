"""`mupscale study`, `tune` and `demo`, with what the other commands that run a study share; and `advise`.

Knows what they take and print. What is heavy is imported when a command runs. With `json`, exactly one object
goes to standard output; progress and words go to standard error. A worker, which finds nothing out by itself,
has none to print, and refuses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from mupscale.cli.factors import parse_count
from mupscale.cli.tables import check_folder
from mupscale.cli.terminal import (
    Json,
    on_terminal,
    say,
    tell,
    unset,
)
from mupscale.errors import GrowthError

StudyFile = Annotated[Positional[Path], arg(metavar="STUDY.toml", help="what is trained, swept and asked")]
Out = Annotated[Path | None, unset(help="folder for models and results; default: STUDY, without .toml")]
Storage = Annotated[
    str | None,
    unset(help="Optuna storage URL that many machines share; default: a journal file in the folder"),
]
Jobs = Annotated[int | None, unset(help="worker processes; default: one for each CPU core, or one on a GPU")]
Stack = Annotated[int | None, unset(help="small runs to train at once in a process; default: 4, on a GPU 16")]
OneWorker = Annotated[bool, arg(help="be one more worker of a study that runs elsewhere; no report")]
DryRun = Annotated[bool, arg(help="print the runs and what they would cost, and stop")]
Text = Annotated[
    str,
    arg(help="text file or folder, stdlib (Python's own source) or site-packages (all packages' with it)"),
]
HeldOut = Annotated[float, arg(help="share of the text kept for evaluation")]


# ---- studies -----------------------------------------------------------------------------------------------


def study(
    file: StudyFile,
    /,
    *,
    out: Out = None,
    storage: Storage = None,
    sweeps: Annotated[
        tuple[str, ...], unset(help="only these, with their further seeds (NAME+); default: all")
    ] = (),
    jobs: Jobs = None,
    stack: Stack = None,
    worker: OneWorker = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> int:
    """Run a study: sweeps of runs, and questions about them. Ends in report.html, with all numbers beside it.

    Given again, the command goes on: finished trials are never repeated. Exit status 1 where a question that
    has a yes or no is answered with no.

    Example: mupscale study examples/studies/lr_transfer.toml --dry-run
    Example: mupscale study examples/studies/lr_transfer.toml
    Example: mupscale study study.toml --storage postgresql+psycopg://host/db --worker
    """
    return run_study(
        file, out, sweeps, storage=storage, jobs=jobs, stack=stack, worker=worker, dry=dry_run, as_json=json
    )


def tune(
    study: StudyFile,
    /,
    *,
    out: Out = None,
    storage: Storage = None,
    stages: Annotated[
        tuple[str, ...], unset(help="only some of scratch, base, grow, final; default: all")
    ] = (),
    check_transfer: Annotated[
        bool, arg(help="run the grid of growth at every width of `check`: how far does the optimum move?")
    ] = False,
    jobs: Jobs = None,
    stack: Stack = None,
    worker: OneWorker = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> int:
    """Tune growth on a small pair of widths, and use what was found on a large one. Ends in report.html.

    Stages: the learning rate at width n from scratch; base models at n and N; n → k·n over learning rate,
    noise and other knobs; N → k·N with the best, against k·N from scratch. Given again, the command goes on:
    finished trials are never repeated. Exit status 1 where --check-transfer finds that the optimum moves.

    Example: mupscale tune examples/studies/llama_cpu.toml --dry-run
    Example: mupscale tune examples/studies/llama_cpu.toml
    Example: mupscale tune study.toml --storage postgresql+psycopg://host/db --worker
    """
    need_extras()
    from mupscale.study.files import read_study
    from mupscale.study.files.tuning import STAGES

    for stage in stages:
        if stage not in STAGES:
            raise GrowthError(f"stage {stage!r}: expected some of {', '.join(STAGES)}")
    found = read_study(study, check_transfer=check_transfer).sweeps.values() if stages else ()
    there = [stage for stage in STAGES if any(sweep.table == stage for sweep in found)]
    if missing := [stage for stage in stages if stage not in there]:
        said = f"expected some of {', '.join(there)}" if there else "a file of sweeps has none; give --sweeps"
        raise GrowthError(f"--stages {missing[0]}: no such stage in {study} here; {said}")
    return run_study(
        study,
        out,
        tuple(sweep.name for sweep in found if sweep.table in stages),
        storage=storage,
        jobs=jobs,
        stack=stack,
        worker=worker,
        dry=dry_run,
        as_json=json,
        check_transfer=check_transfer,
    )


def demo(
    *,
    out: Annotated[Path, arg(help="folder for everything that it makes")] = Path("demo"),
    along: Annotated[str, arg(help="what grows: width or layers")] = "width",
    threads: Annotated[int | None, unset(help="CPU threads; default: half of torch's choice")] = None,
    json: Json = False,
) -> int:
    """Train a small language model, grow it to twice the width (or depth), and show what that saved.

    About four minutes.

    Needs no network: the text is the source of Python's standard library. Stopped, it goes on when given
    again. The study that it runs is copied to OUT/study.toml.

    Example: mupscale demo --out demo
    Example: mupscale demo --out deeper --along layers
    """
    need_extras()
    import torch

    from mupscale.study.files import DEMOS
    from mupscale.study.files.toml import read_toml
    from mupscale.study.writing import write_whole

    if along not in DEMOS:
        raise GrowthError(f"--along {along}: expected {' or '.join(DEMOS)}")
    check_folder(read_toml(DEMOS[along]), out)
    write_whole(out / "study.toml", DEMOS[along].read_text(encoding="utf-8"))
    # With small matrices and anything else running, more threads mostly wait for each other.
    threads = threads or max(1, torch.get_num_threads() // 2)
    return run_study(out / "study.toml", out, jobs=1, threads=threads, as_json=json)


def run_study(
    file: Path,
    out: Path | None,
    sweeps: tuple[str, ...] = (),
    *,
    storage: str | None = None,
    jobs: int | None = None,
    stack: int | None = None,
    threads: int | None = None,
    worker: bool = False,
    dry: bool = False,
    as_json: bool = False,
    check_transfer: bool = False,
) -> int:
    """Run a study file, be a worker of it, or say what it would cost; print what was found."""
    need_extras()
    import torch

    from mupscale.study.files import read_study
    from mupscale.study.page import markdown, write
    from mupscale.study.questions import answers
    from mupscale.study.runs.progress import make_progress, quiet
    from mupscale.study.work.driver import Job, estimate, run, work

    on_gpu, cores = torch.cuda.is_available(), os.cpu_count() or 1
    jobs = jobs if jobs is not None else 1 if on_gpu else cores
    if jobs < 1 or (stack is not None and stack < 1):
        raise GrowthError(f"--jobs {jobs}, --stack {stack}: expected at least 1")
    if worker and as_json:
        raise GrowthError("--worker --json: a worker reports nothing; leave one of them out")
    known = read_study(file, check_transfer=check_transfer).sweeps if sweeps else {}
    if unknown := [name for name in sweeps if name not in known]:
        raise GrowthError(f"--sweeps {unknown[0]}: no such sweep; expected some of {', '.join(known)}")
    job = Job(
        file=file,
        out=out or file.with_suffix(""),
        storage=storage,
        sweeps=sweeps,
        check_transfer=check_transfer,
        stack=stack,
        threads=threads or max(1, torch.get_num_threads() // jobs),
    )
    if dry:
        with quiet(), on_terminal(make_progress()) as progress:
            rows = estimate(job, jobs=jobs, progress=progress)
        totals = {key: sum(row[key] for row in rows) for key in ("runs", "flops", "seconds")}
        tell(as_json, {"sweeps": rows, **totals}, _estimate(rows, totals, jobs))
        return 0
    if worker:
        work(job, say)
        return 0
    with on_terminal(make_progress()) as progress:
        results = run(job, jobs=jobs, progress=progress)
    folder = job.out / "transfer" if check_transfer else job.out
    found = answers(results)
    report = write(results, found, folder)
    told = {
        **{key: value for key, value in results.items() if key not in ("sweeps", "plans", "questions")},
        "answers": [{"title": answer.title, "passed": answer.passed, **answer.data} for answer in found],
        "out": str(folder),
        "report": str(report),
    }
    # How it was measured, the last of the answers, is for the page.
    words = f"{markdown(results, found[:-1])}\nPictures, settings and all numbers are in {report}."
    tell(as_json, told, words)
    return 1 if any(answer.passed is False for answer in found) else 0


def _estimate(rows: Sequence[Mapping[str, Any]], totals: Mapping[str, float], jobs: int) -> str:
    """What would be run, as a table, and how long it would take."""
    from mupscale.study.page import Table, markdown_table

    cells = [
        {
            **{key: str(value) for key, value in row.items()},
            "flops": f"{row['flops']:.2e}",
            "seconds": f"{row['seconds']:.1f}",
        }
        for row in rows
    ]
    total = {"sweep": "all", "width": "", "trials": "", "done": "", "runs": f"{totals['runs']}", "steps": ""}
    cells.append({**total, "flops": f"{totals['flops']:.2e}", "seconds": f"{totals['seconds']:.0f}"})
    seconds = totals["seconds"]
    time = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    return (
        f"{markdown_table(Table(cells))}\n\nAbout {time} with {jobs} "
        f"worker{'s' * (jobs > 1)}, by a few steps measured here; growing, saving and starting come on top, "
        "and stacking saves some. A rate that a sweep takes over is tried beside those listed."
    )


# ---- others ------------------------------------------------------------------------------------------------


def advise(
    *,
    params: Annotated[str, arg(metavar="N", help="parameters of the narrow model, such as 5M")],
    to: Annotated[str, arg(metavar="N", help="parameters of the wide model")],
    tokens: Annotated[str, arg(metavar="D", help="tokens to train the wide model on, such as 1.4B")],
    narrow_tokens: Annotated[
        str | None, unset(metavar="D", help="what the narrow model saw; default: as many a parameter")
    ] = None,
    along: Annotated[str, arg(help="what is to grow: width or layers")] = "width",
    compare: Annotated[
        Path | None, unset(help="results.json that `mupscale compare` wrote, to go by your own runs")
    ] = None,
    json: Json = False,
) -> int:
    """Say whether to grow, in how many stages and by how much, with reasons, sources and what is not known.

    It goes by what was measured where that holds the case, else by a published law, and says which.

    Example: mupscale advise --params 5M --to 70M --tokens 1.4B
    Example: mupscale advise --params 76K --to 119K --tokens 2.4M --along layers
    """
    if compare is not None:  # its answers come with pictures
        need_extras()
    from mupscale.study.advice import advise as judge

    advice = judge(
        parse_count("--params", params),
        parse_count("--to", to),
        parse_count("--tokens", tokens),
        narrow_tokens=None if narrow_tokens is None else parse_count("--narrow-tokens", narrow_tokens),
        along=along,
        comparison=compare,
    )
    tell(json, advice.to_dict(), str(advice))
    return 0


# ---- shared ------------------------------------------------------------------------------------------------


def need_extras() -> None:
    """Raise `GrowthError` where what studies need is not installed."""
    missing = [
        name
        for name in ("accelerate", "matplotlib", "optuna", "psutil", "tomli_w")
        if find_spec(name) is None
    ]
    if missing:
        raise GrowthError(
            f"{' and '.join(missing)} not installed; this command needs: pip install 'mupscale[study]'"
        )
