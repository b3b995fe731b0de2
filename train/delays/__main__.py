"""The command line: ``python -m train.delays``."""

from train.delays.command import main
from train.launch import run

if __name__ == "__main__":
    run(command=main)
