"""What went wrong, in one line."""


class DataError(RuntimeError):
    """A data set cannot be used: which file, and why."""


def reason(error: BaseException) -> str:
    """One line; what a worker raised comes with its traceback, of which the last line says what was wrong."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "Traceback" in str(error):
        return lines[-1].partition(": ")[2] or lines[-1]
    return lines[0] if len(lines) == 1 else " ".join(line.strip() for line in lines[:3])
