"""What went wrong, in one line."""

from dcls_models.files import one_line


class DataError(RuntimeError):
    """A data set cannot be used: which file, and why."""


def reason(error: BaseException) -> str:
    """One line, made of the first three of a longer message, as torch's of a state dict that does not fit."""
    if "Traceback (most recent call last)" in str(error):
        return one_line(error)
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return " ".join(lines[:3]) or one_line(error)
