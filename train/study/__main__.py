"""``python -m train.study``: see ``train.study.study``."""

from train.study.study import main

if __name__ == "__main__":
    main()
