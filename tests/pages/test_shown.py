"""Everything that README and documentation show runs: blocks of Python, commands, study files.

A page's blocks run in their order, in one folder that holds ``narrow``, a small checkpoint with its optimizer, and
``texts``. What stands behind ``<!-- slow -->`` takes minutes. Blocks of `text` are output, or no command of ours.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.example import SybilFailure
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

import mupscale
from mupscale.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = "<!-- slow -->"
KNOWN = {"python", "bash", "toml", "text"}


def run_commands(example: Example) -> str | None:
    """Each has to end well; the first word is ours."""
    for line in example.parsed.splitlines():
        name, *words = shlex.split(line, comments=True) or ["mupscale", "--version"]
        if name != "mupscale":
            return f"{line}: no command of ours; show it as text"
        if main(words) != 0:
            return f"{line}: did not end well"
    return None


def write_study(example: Example) -> None:
    Path("study.toml").write_text(example.parsed)


PARSERS = [
    PythonCodeBlockParser(),
    CodeBlockParser(language="bash", evaluator=run_commands),
    CodeBlockParser(language="toml", evaluator=write_study),
]


def shown(page: Path) -> list[Example]:
    return list(Sybil(parsers=PARSERS, path=str(page.parent)).parse(page).examples())


def is_slow(example: Example) -> bool:
    return example.document.text[: example.start].rstrip().endswith(SLOW)


SHOWN = {page: shown(page) for page in PAGES}
WITH_BLOCKS = [page for page in PAGES if SHOWN[page]]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    (folder / "texts").mkdir()
    for name in ("planner", "growth", "verification"):
        shutil.copy(ROOT / f"src/mupscale/{name}.py", folder / f"texts/{name}.txt")
    words = "--config llama-tiny --steps 6 --batch-size 4 --block-size 32 --eval-blocks 4 --warmup-steps 1"
    assert main(["train", str(folder / "narrow"), "--data", str(folder / "texts"), *words.split()]) == 0
    return folder


@pytest.fixture
def run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a page's blocks, without the slow ones or with them."""

    def run(page: Path, *, slow: bool = False) -> None:
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        for example in shown(page):
            if slow or not is_slow(example):
                example.evaluate()

    return run


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_everything_shown_runs(page, run):
    run(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [p for p in WITH_BLOCKS if any(map(is_slow, SHOWN[p]))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_what_takes_minutes_runs(page, run):
    run(page, slow=True)


def test_how_much_is_shown(capsys):
    blocks = [example for page in PAGES for example in SHOWN[page]]
    python = [
        b for b in blocks if isinstance(b.parsed, str) and b.document.text[b.start :].startswith("```python")
    ]
    commands = [
        line
        for block in blocks
        if block.document.text[block.start :].startswith("```bash")
        for line in block.parsed.splitlines()
        if line.strip()
    ]
    with capsys.disabled():
        print(f"\n{len(WITH_BLOCKS)} pages show {len(python)} blocks of Python and {len(commands)} commands.")
    assert len(python) >= 15
    assert len(commands) >= 30


def test_the_reference_has_every_public_name():
    named = re.findall(
        r"^::: mupscale\.(\w+)$", (ROOT / "docs/reference/python.md").read_text(), re.MULTILINE
    )
    assert {*mupscale.__all__} == {*named}


def test_no_block_is_of_a_kind_that_does_not_run():
    for page in PAGES:
        kinds = {
            line[3:] for line in page.read_text().splitlines() if line.startswith("```") and line != "```"
        }
        assert kinds <= KNOWN, page


@pytest.mark.parametrize(
    ("old", "new"),
    [("mupscale.grow(model, plan)", "mupscale.grown(model, plan)"), ("--axes layers=2", "--axes depths=2")],
)
def test_a_block_that_is_broken_is_seen(old, new, run, tmp_path):
    text = (ROOT / "docs/depth.md").read_text()
    assert old in text
    (tmp_path / "broken.md").write_text(text.replace(old, new))
    with pytest.raises((SybilFailure, AttributeError)):
        run(tmp_path / "broken.md")
