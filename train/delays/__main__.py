"""``python -m train.delays``."""

import sys

from train.delays import study
from train.launch import run

if __name__ == "__main__":
    if sys.argv[1:2] == ["study"]:
        run(sys.argv[2:], command=study.main)
