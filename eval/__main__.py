"""The entry of ``python -m eval``: errors, and interruptions at any moment, are one line."""

import os
import sys

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would report on itself
INTERRUPTED = "interrupted; the same command with --output goes on where that takes long"

try:
    from dcls_models.options import run_command
    from eval.cli import main
except KeyboardInterrupt:  # importing torch takes seconds
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    run_command(main, INTERRUPTED)
