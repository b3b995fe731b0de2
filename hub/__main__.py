"""The entry of ``python -m hub``: errors, and interruptions at any moment, are one line."""

import sys

INTERRUPTED = "error: interrupted; run the same command again"

try:
    from hub.cli import main
except KeyboardInterrupt:  # importing torch takes seconds
    sys.exit(INTERRUPTED)

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a console may lack the letters of a name
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        main()
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
