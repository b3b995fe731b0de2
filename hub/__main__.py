"""The entry of ``python -m hub``: errors, and interruptions at any moment, are one line."""

import sys

INTERRUPTED = "error: interrupted; run the same command again"

try:
    from dcls_models.options import run_command
    from hub.cli import main
except KeyboardInterrupt:  # importing torch takes seconds
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    run_command(main, INTERRUPTED)
