"""Study files with anything in them: read, or refused in one line."""

import random
import tomllib
from pathlib import Path

import pytest
import tomli_w

from mupscale.errors import GrowthError
from mupscale.study.files import read_study
from spoiling import ODD, changed, other_bytes

FILES = sorted((Path(__file__).parents[2] / "examples" / "studies").glob("*.toml"))
# What TOML can say.
VALUES = [v for v in ODD if v not in (None, [None]) and not (isinstance(v, str) and "\ud800" in v)]
VALUES = [v for v in VALUES if not (isinstance(v, int) and abs(v) > 2**62)] + [10**18]


def read(path, seeds):
    done = 0
    for seed in seeds:
        rng = random.Random(seed)
        file = rng.choice(FILES)
        if rng.random() < 0.3:
            path.write_bytes(other_bytes(file.read_bytes(), rng))
        else:
            tables = changed(tomllib.loads(file.read_text()), rng, VALUES)
            if not isinstance(tables, dict) or any(not isinstance(key, str) for key in tables):
                continue
            try:
                path.write_text(tomli_w.dumps(tables))
            except (TypeError, AttributeError):  # a key that is a number
                continue
        said = None
        try:
            read_study(path, check_transfer=rng.random() < 0.2)
        except GrowthError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {file.name}") from error
        done += said is None
        assert said is None or (str(path) in said and "\n" not in said), seed
    assert done > len(seeds) / 20


def test_a_spoiled_study_file_is_read_or_refused(tmp_path):
    read(tmp_path / "study.toml", range(300))


@pytest.mark.slow
def test_many_spoiled_study_files_are_read_or_refused(tmp_path):
    read(tmp_path / "study.toml", range(300, 20_000))
