"""``python -m train.segmentation``: see ``train.dense.segmentation``."""

from train.dense.segmentation import main
from train.launch import run

if __name__ == "__main__":
    run(command=main)
