"""What building the site adds: files of the repository that pages link to, CONTRIBUTING.md as a page, and the
help of every command."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = "<!-- CONTRIBUTING.md -->"
HELP = "<!-- the help of every command: written when the site is built -->"
OUTSIDE = re.compile(r"\]\((?:\.\./)+((?:examples|src|benchmarks|tests)/[^)#\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Put what pages link to outside of docs/ into the site, as text."""
    for name in {
        name for page in files.documentation_pages() for name in OUTSIDE.findall(page.content_string)
    }:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"source/{name}.txt", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point these links there, and put in what a page asks for."""
    up = "../" * page.file.src_uri.count("/")
    markdown = OUTSIDE.sub(rf"]({up}source/\1.txt)", markdown)
    if CONTRIBUTING in markdown:
        return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    return markdown.replace(HELP, _commands()) if HELP in markdown else markdown


def _commands() -> str:
    """What `--help` prints, of every command."""
    from mupscale.cli import COMMANDS, main

    blocks = []
    for name in COMMANDS:
        said = io.StringIO()
        plain = patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
        with plain, redirect_stdout(said), suppress(SystemExit):
            main([name, "--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue()).strip()
        blocks.append(f"## {name}\n\n```text\n{text}\n```")
    return "\n\n".join(blocks)
