"""What was measured of a family once is not measured again: small JSON files, kept by what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch


def cache_folder() -> Path:
    """Where findings are kept: ``$MUPSCALE_CACHE``, or else ``mupscale`` in the user's cache folder."""
    own = os.environ.get("MUPSCALE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "mupscale"


@cache
def _measured_by() -> str:
    """The code that measures and proves, and the libraries that the models come from."""
    import transformers

    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in ("cli", "study", "checkpoint"):
            digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {transformers.__version__} {torch.__version__}"


def remembered(
    kind: str, key: Any, make: Callable[[], Mapping[str, Any]], *, keep: bool = True
) -> dict[str, Any]:
    """What ``make`` gave for this key before, with the same code and libraries; or what it gives now.

    Not kept is what depends on other code, too: on a model class that is not transformers' own.

    A folder that cannot be written costs time, not the result; a file that cannot be read is made anew.
    """
    if not keep:
        return dict(make())
    text = json.dumps([_measured_by(), key], sort_keys=True, default=str)
    path = cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        return dict(json.loads(path.read_text())["found"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    made = dict(make())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False) as file:
            json.dump({"found": made}, file)
        os.replace(file.name, path)
    except OSError:
        pass
    return made
