"""``python -m train.detection``: see ``train.dense.detection``."""

from train.dense.detection import main
from train.launch import run

if __name__ == "__main__":
    run(command=main)
