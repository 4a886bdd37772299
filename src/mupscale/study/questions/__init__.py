"""."""
from collections.abc import Collection, Mapping
from typing import Any


def check(question: Mapping[str, Any], sweeps: Collection[str]) -> None: ...
