"""The entry of ``python -m eval``: errors, and interruptions at any moment, are one line."""

import os
import sys

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would report on itself
INTERRUPTED = "interrupted; the same command with --output goes on where that takes long"

try:
    from eval.cli import main
except KeyboardInterrupt:  # importing torch takes seconds
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a console may lack the letters of a name
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        main()
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    # timm: RuntimeError for an unknown model, AssertionError for an image size that does not fit it
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        sys.exit(f"error: {error}")
