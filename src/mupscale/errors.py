"""The one exception that mupscale raises at its users."""


class GrowthError(ValueError):
    """Something cannot be grown as asked.

    The message is one line that names the file, parameter or field, says what was expected, and what to do.
    """


def one_line(error: BaseException) -> str:
    """What an error of other code says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
