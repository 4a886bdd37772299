"""What a page says that mupscale says, it says."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def messages():
    """The source, its string literals put together as Python does; by a trace's rules, positions are a kind of dims."""
    source = "\n".join(path.read_text() for path in sorted((ROOT / "src/mupscale").rglob("*.py")))
    return re.sub(r'"\s*f?"', "", source).replace("{what}", "positions")


def test_the_refusals_that_are_explained_are_those_of_the_source():
    page = (ROOT / "docs/guide/refused.md").read_text().partition("| it says |")[2].partition("\n\n")[0]
    quoted = [row.split("|")[1] for row in page.splitlines()[2:]]
    parts = [part.strip(" :,") for cell in quoted for part in re.split("[…;]", cell)]
    said = messages()
    assert len(quoted) >= 10
    assert [part for part in parts if part and part not in said] == []
