"""Files that appear as a whole or not at all, locks, hashes, and an error in one line."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

HOME = re.compile(r"(local-dir:|hfds/|)~")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def expand_home(options: Any) -> None:
    """Puts the home folder in the place of ``~`` where an option's value begins with it, or its folder does.

    Also in ``local-dir:~/FOLDER`` and ``hfds/~/FOLDER``, and in lists of files.
    """
    for key, value in vars(options).items():
        setattr(options, key, [_in_home(v) for v in value] if isinstance(value, list) else _in_home(value))


def _in_home(value: Any) -> Any:
    kind = HOME.match(str(value)) if isinstance(value, str | Path) else None
    if not kind:
        return value
    rest = str(value)[kind.end(1) :]
    return type(value)(kind[1] + os.path.expanduser(rest))  # noqa: PTH111, leaves ~unknown


def check_writable(path: Path, name: str) -> None:
    """Makes the folder of a file to write, and proves that a file can be written there, before any work.

    Args:
        path: The file.
        name: Of the option that gives it.

    Raises:
        ValueError: If it cannot, in one line.
    """
    if path.is_dir():
        raise ValueError(f"{name} must be a file, got the folder {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _beside(path).write_bytes(bytes(4096))
        _beside(path).unlink()
    except OSError as error:
        raise ValueError(
            f"{name} {path} cannot be written ({error.strerror}): make room there, or give another place"
        ) from error


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write a file to, and moves the file to ``path`` at the end.

    So ``path`` is always the whole old file or the whole new one. After an error or an interruption the old
    one is still there and nothing lies beside it.
    """
    part = _beside(path)
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename is None and error.errno:  # a full disk does not say where it is
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, in UTF-8 whatever the locale is, as ``replaced`` does."""
    with replaced(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Holds the lock file ``path``; it is free again when the process ends, however it ends.

    Raises:
        ValueError: With the message ``taken``, if another process holds it.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(taken) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        lock.release()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it has none.

    What a worker of a loader raised comes with its traceback, of which the last line says what was wrong.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "Traceback (most recent call last)" in str(error):
        return lines[-1].partition(": ")[2] or lines[-1]
    return lines[0]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of a list of names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def printable(text: str, encoding: str | None = None) -> str:
    """A text that a console can show: with backslash escapes where it has no letters for it.

    Args:
        text: A name of any script, or one that is not UTF-8 (which Python keeps as surrogates).
        encoding: Of the console; by default of ``sys.stdout``.
    """
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
