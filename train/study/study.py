"""Does it learn better? Fixed and learned spacings, and what else one could take, over several seeds.

Run ``python -m train.study``: small networks, of which only the spatial mixing differs, are trained on tasks
where a long reach matters and on others where it does not. A started study goes on where it was.
docs/study.md has the plan and the results.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from dcls_models.files import one_line, write_json
from dcls_models.options import at_least_1
from dcls_models.pictures import write_picture
from dcls_models.provenance import provenance, read_result
from train.study.drawing import draw_curve, draw_variants
from train.study.experiments import EXPERIMENTS, Row, is_done, markdown, order, summary
from train.study.tasks import LARGE, TASKS, Task, baselines
from train.study.training import Run, execute

LINE = "{experiment:8} {task:25} {variant:30} x{rate:<4g} seed {seed:<4} {top1:6.2f} %  {seconds:.0f} s"
WIDTH, LARGE_WIDTH = 32, 96  # of the standard model


def study(runs: Sequence[Run], tasks: dict[str, Task], width: int, workers: int) -> Iterable[list[Row]]:
    """Trains what ``runs`` ask for, ``workers`` at once; gives the rows of each as it ends."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = [pool.submit(execute, run, tasks[run.task], width) for run in runs]
        try:
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def earlier(path: Path) -> list[Row]:
    """The rows that a results file of the study has, if it is there."""
    if not path.exists():
        return []
    try:
        rows = read_result(path)["runs"]
        sorted(rows, key=order)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {path} is not a study's ({one_line(error)}): give another --out, or move it away")
    return list(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what has not run yet; writes ``study.json`` after every training, pictures at the end."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m train.study", description=__doc__.splitlines()[0])
    known = list(EXPERIMENTS)
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"{', '.join(known)} (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder to write to")
    parser.add_argument("--seeds", type=at_least_1, default=5, help="how many, from 0")
    parser.add_argument(
        "--workers", type=at_least_1, default=os.cpu_count(), help="trainings at once, a thread each"
    )
    parser.add_argument("--large", action="store_true", help="larger images, models and trainings, for a GPU")
    options = parser.parse_args(argv)
    if unknown := set(options.experiments) - EXPERIMENTS.keys():
        parser.error(f"there is no experiment {min(unknown)!r}: choose from {', '.join(known)}")
    tasks, width = (LARGE, LARGE_WIDTH) if options.large else (TASKS, WIDTH)
    path = options.out / "study.json"
    rows = earlier(path)
    chosen = options.experiments or known
    runs = [run for name in chosen for run in EXPERIMENTS[name](options.seeds, options.large)]
    left = [run for run in runs if run.task in tasks and not is_done(run, rows)]
    record = provenance("study", ["python", "-m", "train.study", *argv], packages=["pytorch-lightning"])
    simple = {"baselines_on_contours": baselines(next(iter(tasks.values())).side)} if left else {}
    for own in study(left, tasks, width, options.workers):
        rows = sorted([*rows, *own], key=order)
        write_json(path, {**record, "results": summary(rows), **simple, "runs": rows})
        for row in own:
            print(LINE.format(**row), flush=True)
    table = summary(rows)
    for name in chosen:
        print(f"\n{EXPERIMENTS[name].__doc__}\n\n{markdown(table, name)}")
    write_picture(options.out / "study.png", draw_variants, table)
    if any(row["experiment"] == "curve" for row in rows):
        write_picture(options.out / "study_curve.png", draw_curve, rows)
