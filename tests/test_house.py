"""The shape of the house: arrows of imports point one way, names tell modules apart, help needs no torch."""

import ast
import itertools
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mupscale

SRC = Path(mupscale.__file__).parents[1]

# From the top down: a package imports from those below it only. `mupscale` stands for what lies at the top of
# the package, the public verbs.
ORDER = (
    *("cli", "study", "mupscale", "proof", "checkpoint", "optim", "operators"),
    *("theory", "layout", "models", "notation", "errors"),
)
SUFFIXES = ("", "s", "es", "e", "ed", "er", "ers", "or", "ors", "ing", "ings", "th", "ion", "ions", "ation")


def dotted(path):
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(SRC.glob("mupscale/**/*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def imported(name):
    """The modules of mupscale that one imports: wherever the statement stands, and for types only, too."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            assert not node.level, f"{name}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


GRAPH = {name: {*imported(name)} - {name} for name in MODULES}


def room(name):
    """The package at the top that a module belongs to."""
    parts = name.split(".")
    if name == "mupscale.__main__":
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else "mupscale"


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_packages_import_downwards_only():
    assert {room(name) for name in MODULES} == {*ORDER}
    wrong = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if ORDER.index(room(name)) > ORDER.index(room(other))
    ]
    assert not wrong


def test_the_top_holds_the_public_verbs_alone():
    top = {name.partition(".")[2] for name in MODULES if room(name) == "mupscale"} - {""}
    assert top == {"distributed", "growth", "initialization", "integrations", "planner", "verification"}


def test_the_check_of_arrows_sees_those_that_are_hidden():
    assert "mupscale.checkpoint.reader" in GRAPH["mupscale.growth"]  # inside of a function
    assert "mupscale.planner" in GRAPH["mupscale"]  # for types


@pytest.mark.parametrize("package", [p for p in PACKAGES if "study" not in p and p != "mupscale"])
def test_a_package_says_what_it_knows_and_what_it_must_not(package):
    said = " ".join((ast.get_docstring(TREES[package]) or "").split())
    assert "Knows " in said
    assert re.search("[Mm]ust not ", said)


def test_every_package_and_module_says_what_it_is():
    assert not [name for name, tree in TREES.items() if not ast.get_docstring(tree)]


def test_rooms_and_files_can_be_taken_in_at_once():
    """At most 12 entries in a folder, but for the top, which has the public verbs and the rooms; 400 lines."""
    folders = [path.parent for name, path in MODULES.items() if name in PACKAGES and "study" not in name]
    full = [f for f in folders if len([p for p in f.iterdir() if p.name != "__pycache__"]) > 12]
    assert full == [SRC / "mupscale"]
    assert not [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 400]


def test_names_tell_modules_apart():
    """None is a public function's; no two are the same or differ by a suffix, as planner and planning do.

    The modules of the command line are called after those whose commands they hold.
    """
    functions = {name for name in mupscale.__all__ if not name[0].isupper()}
    assert not functions & {name.rpartition(".")[2] for name in MODULES}
    core = [n for n in MODULES if not n.startswith(("mupscale.study", "mupscale.cli")) and "__" not in n]
    for one, other in itertools.combinations(core, 2):
        alike = stems(one) & stems(other)
        assert not alike or other.startswith(f"{one}."), f"{one} and {other}"
    assert stems("planner") & stems("planning") & stems("plan")
    assert stems("grower") & stems("growth")


def stems(name):
    """What is left of a module's name without one of the suffixes, and without a doubled last letter."""
    name = name.rpartition(".")[2]
    return {re.sub(r"(.)\1$", r"\1", name.removesuffix(suffix)) for suffix in SUFFIXES}


def test_every_public_name_is_found_when_it_is_asked_for():
    block = next(node for node in TREES["mupscale"].body if isinstance(node, ast.If))
    for_types = {(node.module, alias.name) for node in block.body for alias in node.names}
    homes = {(f"mupscale.{home}", name) for name, home in mupscale._HOMES.items()}
    assert homes == for_types
    assert {name for _, name in homes} | {"GrowthError"} == {*mupscale.__all__} <= {*dir(mupscale)}
    assert all(callable(getattr(mupscale, name)) for name in mupscale.__all__)
    with pytest.raises(AttributeError, match="no attribute 'plans'"):
        mupscale.plans  # noqa: B018


def loaded_by(program):
    """Which of the heavy libraries a process of its own has imported in the end."""
    script = (
        f"import sys\ntry:\n    {program}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {"torch", "transformers"} & {*done.stderr.split()}


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "--nope", "", "grow", "grow --help", "grow a b --dtype int3", "plan a --axes d_ff",
     "hparams a --lr 1 --optimizer lbfgs", "hparams a --lr -1", "train --help", "tune"],
)  # fmt: skip
def test_help_and_usage_errors_import_no_torch(words):
    program = (
        f"import runpy; sys.argv[1:] = {words.split()}; runpy.run_module('mupscale', run_name='__main__')"
    )
    assert loaded_by(program) == set()


def test_the_package_by_itself_imports_no_torch():
    assert loaded_by("import mupscale; dir(mupscale)") == set()


def test_growing_a_plain_module_imports_no_transformers():
    program = """
    import mupscale, torch
    make = lambda width: torch.nn.Sequential(torch.nn.Linear(4, 8 * width), torch.nn.Linear(8 * width, 2))
    narrow, inputs = make(1), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(narrow.parameters())
    for plan in (mupscale.plan(make, width=2, inputs=inputs), mupscale.plan(narrow, to=make(2))):
        wide = mupscale.grow(narrow, plan, operator="duplicate")
        mupscale.carry_optimizer(optimizer, narrow, wide, plan)
        mupscale.param_groups(wide, plan, torch.optim.AdamW, lr=1e-3)
        mupscale.clip_grad_norm_(wide, plan, 1.0)
        mupscale.verify(narrow, wide, plan, inputs, steps=1)
        mupscale.grow(narrow, plan)
        mupscale.init_(wide, plan)
        mupscale.Plan.from_json(plan.to_json())
    """
    assert loaded_by(program) == {"torch"}
