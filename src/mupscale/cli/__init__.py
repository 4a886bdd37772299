"""The command line: ``mupscale``. Arguments in, text out; all else is the library's.

Exit status: 0 done; 1 it ran and the answer is no; 2 bad usage or input, one line on standard error.

Knows what every command takes and prints. Must not import torch or transformers before a command runs, so
that help and usage errors are quick.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import tyro

import mupscale
from mupscale.cli import comparing, examining, growing, studying, training, verifying
from mupscale.cli.terminal import quiet_libraries
from mupscale.cli.usage import check_command, complaint
from mupscale.errors import GrowthError, Terminated


def _quietly(command: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> int:
        quiet_libraries()
        return command(*args, **options)

    return run


COMMANDS: dict[str, Callable[..., int]] = {
    "plan": growing.plan,
    "grow": growing.grow,
    "verify": verifying.verify,
    "hparams": growing.hparams,
    "doctor": examining.doctor,
    "train": _quietly(training.train),
    "study": _quietly(studying.study),
    "tune": _quietly(studying.tune),
    "compare": _quietly(comparing.compare),
    "coord-check": _quietly(examining.coord_check),
    "advise": studying.advise,
    "demo": _quietly(studying.demo),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    given = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name out of a file may be no text that can be written
            stream.reconfigure(errors="backslashreplace")
    try:
        if given == ["--version"]:
            print(f"mupscale {mupscale.__version__}")
            return 0
        return _parse(given)()
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GrowthError, OSError) as error:
        print(f"mupscale: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        ended = isinstance(stop, Terminated)
        said = ["terminated" if ended else "interrupted", *getattr(stop, "__notes__", ())]
        print(f"mupscale: {'; '.join(said)}", file=sys.stderr)
        return 143 if ended else 130


def _parse(argv: list[str]) -> Callable[[], int]:
    """The command to run, with its arguments bound.

    Raises:
        GrowthError: the arguments are not as they should be.
    """

    def bind(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
        bound = functools.wraps(command)(lambda *args, **kwargs: functools.partial(command, *args, **kwargs))
        # A paragraph each: the lines of one are run together. Beside others a command has its first alone.
        said = str(command.__doc__).replace("\n    Example:", "\n\n    Example:")
        bound.__doc__ = said if {*argv} & COMMANDS.keys() else said.partition("\n\n")[0]
        return bound

    check_command(argv, COMMANDS)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(  # type: ignore[no-any-return]
                {name: bind(command) for name, command in COMMANDS.items()},
                prog="mupscale",
                description="Grow a small trained network into a larger one, with every hyperparameter "
                "scaled; exactly, and with its optimizer, by --operator duplicate.\n\n"
                "mupscale COMMAND --help says more.\n\n"
                "Example: mupscale grow narrow same --width 2 --operator duplicate\n\n"
                "Example: mupscale grow narrow wide --width 2",
                args=argv,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        raise GrowthError(
            complaint(said.getvalue(), next(filter(COMMANDS.__contains__, argv), None))
        ) from None
