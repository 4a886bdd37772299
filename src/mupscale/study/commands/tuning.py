"""`mupscale tune`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mupscale.errors import GrowthError
from mupscale.study.commands.shared import need_extras, say, tell


def tune(
    study: Annotated[Positional[Path], arg(metavar="STUDY.toml", help="what is trained, swept and compared")],
    /,
    *,
    out: Annotated[
        Path | None, arg(help="folder for trials, models and the report; default: STUDY, without .toml")
    ] = None,
    storage: Annotated[
        str | None,
        arg(help="Optuna storage URL that many machines share; default: a journal file in the folder"),
    ] = None,
    stages: Annotated[
        tuple[str, ...], arg(help="only some of scratch, base, grow, final; default: all")
    ] = (),
    check_transfer: Annotated[
        bool, arg(help="run the grid of growth at every width of `check`: how far does the optimum move?")
    ] = False,
    jobs: Annotated[
        int | None, arg(help="worker processes; default: one for each CPU core, or one on a GPU")
    ] = None,
    stack: Annotated[
        int | None, arg(help="small runs to train at once in a process; default: 4, on a GPU 16")
    ] = None,
    worker: Annotated[bool, arg(help="be one more worker of a study that runs elsewhere; no report")] = False,
    dry_run: Annotated[bool, arg(help="print the runs and what they would cost, and stop")] = False,
    json: Annotated[bool, arg(help="print the results as one JSON object, without the curves")] = False,
) -> int:
    """Tune growth on a small pair of widths, and use what was found on a large one. Ends in report.html.

    Stages: the learning rate at width n from scratch; base models at n and N; n → k·n over learning rate,
    noise and other knobs; N → k·N with the best, against k·N from scratch. Given again, the command goes on:
    finished trials are never repeated. Exit status 1 where --check-transfer finds that the optimum moves.

    Example: mupscale tune examples/studies/llama_cpu.toml --dry-run
    Example: mupscale tune examples/studies/llama_cpu.toml
    Example: mupscale tune study.toml --storage postgresql+psycopg://host/db --worker
    """
    need_extras("optuna", "psutil")
    import torch

    from mupscale.study.runs.progress import make_progress, quiet
    from mupscale.study.tune.driver import Job, dry, work
    from mupscale.study.tune.driver import tune as run
    from mupscale.study.tune.page import json_safe, write_report
    from mupscale.study.tune.tables import estimate_table, tables

    on_gpu = torch.cuda.is_available()
    cores = os.cpu_count() or 1
    jobs = jobs if jobs is not None else 1 if on_gpu else cores
    if jobs < 1 or (stack is not None and stack < 1):
        raise GrowthError(f"--jobs {jobs}, --stack {stack}: expected at least 1")
    job = Job(
        file=study,
        out=out or study.with_suffix(""),
        storage=storage,
        stages=stages,
        check_transfer=check_transfer,
        stack=stack,
        threads=max(1, cores // jobs),
    )
    if dry_run:
        with quiet():
            rows = dry(job)
        tell(json, {"sweeps": rows, "flops": sum(row["flops"] for row in rows)}, estimate_table(rows))
        return 0
    if worker:
        work(job, say)
        return 0
    with make_progress() as progress, quiet():
        results = run(job, jobs=jobs, progress=progress)
    folder = job.out / "transfer" if check_transfer else job.out
    report = write_report(results, folder)
    brief = {**results, "out": str(folder), "report": str(report)}
    brief["sweeps"] = [
        {**sweep, "points": [{k: v for k, v in row.items() if k != "curve"} for row in sweep["points"]]}
        for sweep in results["sweeps"]
    ]
    tell(json, json_safe(brief), f"{tables(results)}\n\nPictures and all numbers are in {report}.")
    answered = check_transfer and all(sweep["finished"] for sweep in results["sweeps"])
    return 1 if answered and not (results["transfer"] and results["transfer"]["transfers"]) else 0
