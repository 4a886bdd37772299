"""What is wrong with a command line, in one line: the parser's own words, made ours.

Knows how tyro complains; of commands their names alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from mupscale.errors import GrowthError

# Colours, and the box that it is drawn in with its title, in ASCII, too.
_STYLE = re.compile(r"\x1b\[[0-9;]*m|\[/?bold\]|\u256d.*|[\u2500-\u257f]|\A [^\n]*\n -{4,}|-{4,}")


def check_command(argv: Sequence[str], commands: Collection[str]) -> None:
    """See that the first word is a command, or an option.

    Raises:
        GrowthError: it is neither; names the command that is spelled most alike.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        near = get_close_matches(argv[0], commands, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(commands)}"
        raise GrowthError(f"unknown command {argv[0]!r}; {meant}")


def complaint(said: str, command: str | None) -> str:
    """What the parser says, in one line, with the command whose help says more.

    >>> complaint("Unrecognized options: c For full helptext, run mupscale --help", "grow")
    'Unrecognized options: c; mupscale grow --help says more'
    """
    more = f"mupscale {command} --help says more" if command else "see mupscale --help"
    text = " ".join(_STYLE.sub(" ", said).split())
    text = re.sub(r"\.? (Available subcommands: .*|For full helptext, .*)", "", text)
    if wrong := re.match(r"Error parsing (--[\w-]+): (.*?) Argument helptext: (.*)", text):
        text = f"{wrong[1]}: {_value(wrong[2], wrong[3])}"
    elif other := re.match(r"(Unrecognized options: .*?) Perhaps you meant: (--[\w-]+)", text):
        return f"{other[1]}; did you mean {other[2]}? {more}"
    return f"{text}; {more}"


def _value(error: str, option: str) -> str:
    """What is wrong with an option's value, of the parser's words about that and about the option."""
    if counts := re.search(r"input length (\d+) did not match expected argument count (\d+)", error):
        return f"expected {counts[2]} values, found {counts[1]}"
    kind = re.search(r"\b(INT|FLOAT)\b", f"{option} {error}")
    found = re.findall(r"'([^']*)'", error)
    if kind is None or not found:
        return error
    return f"expected {'a whole number' if kind[1] == 'INT' else 'a number'}, found {found[-1]!r}"
