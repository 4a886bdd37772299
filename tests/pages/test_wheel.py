"""The package as others install it: its wheel, in an empty environment, without the extras."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from models import build

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def said(*command, status=0, cwd=None):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The command, in an environment that holds the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    said(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    constraints = ["-c", ROOT / "constraints.txt"]
    said(folder / "env/bin/pip", "install", "-q", *constraints, wheel)
    return folder / "env/bin/mupscale"


def test_it_grows_and_verifies_without_the_extras(installed, tmp_path):
    build("llama").float().save_pretrained(tmp_path / "narrow")
    assert "grow" in said(installed, "--help")
    assert "d_model" in said(installed, "plan", "narrow", "--width", "2", cwd=tmp_path)
    said(installed, "grow", "narrow", "wide", "--width", "2", "--operator", "duplicate", cwd=tmp_path)
    assert json.loads(said(installed, "verify", "narrow", "wide", "--json", cwd=tmp_path))["equal"]
    assert "d_ff" in said(installed, "doctor", "narrow", cwd=tmp_path)


def test_what_needs_an_extra_names_it_in_one_line(installed, tmp_path):
    for command in (["train", "out"], ["demo"], ["study", "study.toml"]):
        line = said(installed, *command, status=2, cwd=tmp_path)
        assert line.count("\n") == 1
        assert line.rstrip().endswith("pip install 'mupscale[study]'")


def test_its_data_comes_along(installed, tmp_path):
    assert "By what was measured" not in said(
        installed, "advise", "--params", "1M", "--to", "99M", "--tokens", "1M"
    )
    told = json.loads(
        said(installed, "advise", "--params", "65K", "--to", "195K", "--tokens", "3.9M", "--json")
    )
    assert told["went_by"] == "map"
