"""``python -m train``: see ``train.command``."""

from train.launch import run

if __name__ == "__main__":
    from train.command import main

    run(command=main)
