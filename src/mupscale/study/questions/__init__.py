"""What can be asked of a study: each question is a pure function from its results to an `Answer`.

A question may use the names of sweeps and the plain data of the results; it knows nothing of how they came
to be, of files, or of the page on which it is put.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

from mupscale.errors import GrowthError
from mupscale.study.page.parts import Answer
from mupscale.study.questions.growing import map_
from mupscale.study.questions.history import equality, line, plan
from mupscale.study.questions.method import method
from mupscale.study.questions.norms import norms
from mupscale.study.questions.saving import saving
from mupscale.study.questions.starts import starts
from mupscale.study.questions.transfer import transfer
from mupscale.study.questions.tuned import cost, points, tuned

_ALL = (tuned, cost, saving, map_, transfer, starts, norms, equality, line, points, plan)
QUESTIONS: dict[str, Callable[..., Answer]] = {question.__name__.rstrip("_"): question for question in _ALL}


def answers(results: dict[str, Any]) -> list[Answer]:
    """The answers to all that the study asks, and how it was measured."""
    return [*(ask(results, question) for question in results["questions"]), method(results)]


def ask(results: dict[str, Any], question: Mapping[str, Any]) -> Answer:
    """The answer to one question.

    Args:
        results: of a study in any state, or `results.json` read back.
        question: ``ask``, and what it takes.

    Raises:
        GrowthError: as `check`.
    """
    check(question, [sweep["name"] for sweep in results["sweeps"]])
    return QUESTIONS[question["ask"]](results, **{k: v for k, v in question.items() if k != "ask"})


def check(question: Mapping[str, Any], sweeps: Collection[str]) -> None:
    """See that there is such a question, that it has all that it takes, and that its sweeps exist.

    Raises:
        GrowthError: says what was expected.

    >>> check({"ask": "saving", "of": "grown", "against": "scratch"}, ["scratch", "grown"])
    """
    name = question.get("ask")
    if not isinstance(name, str) or name not in QUESTIONS:
        raise GrowthError(f"question {name!r}: {_expected(name, QUESTIONS)}")
    takes = dict(list(inspect.signature(QUESTIONS[name]).parameters.items())[1:])
    for key in question.keys() - takes.keys() - {"ask"}:
        raise GrowthError(f"question {name}: unknown key {key!r}; {_expected(key, takes)}")
    for key, parameter in takes.items():
        if key not in question and parameter.default is inspect.Parameter.empty:
            raise GrowthError(f"question {name}: {key} is missing")
        if parameter.annotation == "str" and not isinstance(question.get(key, ""), str):
            raise GrowthError(f"question {name}: {key} is {question[key]!r}, expected one name")
    for key in question.keys() & {"of", "against"}:
        named = list(_flat(question[key]))
        for sweep in named or [""]:
            if not isinstance(sweep, str) or sweep not in sweeps:
                raise GrowthError(f"question {name}: {key}: no sweep {sweep!r}; {_expected(sweep, sweeps)}")
        listed = [isinstance(one, list | tuple) for one in question[key]]
        if any(listed) and not (takes[key].annotation.startswith("Sequence") and all(listed)):
            nested = ", or lists of them alone" * takes[key].annotation.startswith("Sequence")
            raise GrowthError(f"question {name}: {key}: expected names of sweeps{nested}")
        if "names" in question and not any(listed):
            raise GrowthError(f"question {name}: names are of lists in of, which has none; leave them out")
    if not isinstance(names := question.get("names", []), list):
        raise GrowthError(f"question {name}: names is {names!r}, expected a list of names")
    if len(question.get("names", question.get("of", ()))) != len(question.get("of", ())):
        raise GrowthError(f"question {name}: expected as many names as lists in of")


def _flat(names: Any) -> list[Any]:
    return [inner for name in names for inner in _flat(name)] if isinstance(names, list | tuple) else [names]


def _expected(word: Any, known: Collection[str]) -> str:
    close = get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]}?" if close else f"expected {', '.join(sorted(known)) or 'none'}"
