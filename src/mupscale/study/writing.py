"""Files that are there whole or not at all: readers, and who goes on after a kill, never see half of one.

Knows text and JSON; nothing of studies.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write text under a temporary name and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole."""
    write_whole(path, json.dumps(data, indent=1) + "\n")
