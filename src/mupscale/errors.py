"""The one exception that mupscale raises at its users."""

from collections.abc import Iterator
from contextlib import contextmanager


class GrowthError(ValueError):
    """Something cannot be grown as asked.

    The message is one line that names the file, parameter or field, says what was expected, and what to do.
    """


def one_line(error: BaseException, *, limit: int | None = None) -> str:
    """What an error of other code says, on one line, of at most so many characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


@contextmanager
def said_as(what: str, mend: str = "") -> Iterator[None]:
    """Let whatever the code of others raises inside be a `GrowthError`; our own goes through as it is.

    Args:
        what, mend: what the message says before the reason, and after it.
    """
    try:
        yield
    except GrowthError:
        raise
    except Exception as error:
        raise GrowthError(f"{what}: {one_line(error)}{mend}") from error


class Terminated(KeyboardInterrupt):
    """The process was asked to end, by SIGTERM."""
