"""The study side of the command line: one typed function per command, each returning its exit status.

Knows what the commands take and print. Heavy imports wait until a command runs, so that `mupscale --help` is
quick. With `json`, exactly one object goes to standard output; progress and words go to standard error.
"""

from mupscale.study.commands.comparing import advise, compare, coord_check
from mupscale.study.commands.shared import parse_axes
from mupscale.study.commands.training import demo, train
from mupscale.study.commands.tuning import tune

__all__ = ["advise", "compare", "coord_check", "demo", "parse_axes", "train", "tune"]
