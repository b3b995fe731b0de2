"""What went wrong, in one line."""

import re

from dcls_models.files import one_line

# jsonargparse's, where a value is none of several types: all types, what each says, and the value
_UNION = re.compile(
    r"Does not validate against any of the Union.*?Errors:\s+- (.+?)(?=\n\s+- |\Z)", re.DOTALL
)


# jsonargparse's, where an option is given that follows from another
_LINKED = re.compile(r"argument (?:<lambda>\()?([\w.]+)\)? --> ([\w.]+): .*", re.DOTALL)


class DataError(RuntimeError):
    """A data set cannot be used: which file, and why."""


def first_cause(message: str) -> str:
    """A message without what jsonargparse says of the types that a value was not meant to have."""
    message = _LINKED.sub(r"\2 follows from \1 and cannot be given", message)
    found = _UNION.search(message)
    return message[: found.start()] + " ".join(found[1].split()) if found else message


def reason(error: BaseException) -> str:
    """One line, made of the first three of a longer message, as torch's of a state dict that does not fit."""
    if "Traceback (most recent call last)" in str(error):
        return one_line(error)
    lines = [line.strip() for line in first_cause(str(error)).strip().splitlines()]
    return " ".join(lines[:3]) or one_line(error)
