"""Options of the commands: numbers that say what they may be, errors in one line, the end of a command."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

LARGEST = 2**31 - 1  # what the libraries below count with


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the options, without all of them."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(2, f"error: {message}; {self.prog} --help explains every option\n")


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """The type of a whole number within limits, for argparse."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            limits = f"of at least {least}" if most == LARGEST else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text!r}")
        return value

    return number


at_least_1 = whole(1)


def run_command(main: Callable[[], None], interrupted: str) -> None:
    """Runs a command and ends the process; errors, and interruptions at any moment, are one line.

    Args:
        main: The command.
        interrupted: What is said after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):  # a console may lack the letters of a name; None: it is closed
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads what is printed (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)  # as the shell says of a process that SIGPIPE has ended
    # timm: RuntimeError for an unknown model, AssertionError for an image size that does not fit it
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        sys.exit("error: " + " ".join(line.strip() for line in lines))
