"""``python -m eval.roofline``: see ``eval/speed/roofline.py``."""

from eval.speed.roofline import table

if __name__ == "__main__":
    print(*table(), sep="\n")
