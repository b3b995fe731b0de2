"""``python -m train.audio fit|validate``."""

from train.audio.command import main
from train.launch import run

if __name__ == "__main__":
    run(command=main)
