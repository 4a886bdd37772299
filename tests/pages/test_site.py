"""The site is built without a warning, and fetches nothing."""

import re
import subprocess
from pathlib import Path

import pytest

from mupscale.cli import COMMANDS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site():
    subprocess.run(["make", "docs"], cwd=ROOT, check=True, capture_output=True)
    return ROOT / "site"


def test_no_page_fetches_anything(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 30
    for page in pages:
        fetched = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert not fetched, page


def test_the_help_of_every_command_is_there(site):
    text = (site / "reference/commands.html").read_text()
    for command in COMMANDS:
        assert f"usage: mupscale {command}" in text
