"""Results that a card quotes: which files are such, and whether they are of the weights beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from shlex import quote
from typing import Any

from dcls_models.loading import load_model
from dcls_models.provenance import read_result, state_dict_sha256
from hub import HubError

METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "map": "mean average precision"}  # in percent
MOST = 9  # results of a card, each in a file whose name says its number
TOP = 5  # answers that count for top-5


def read_measured(folder: Path, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Results files with an accuracy of the weights in a folder.

    Raises:
        HubError: If one is none.
    """
    measured = [_read_accuracy(path) for path in paths]
    if not 0 < len(measured) <= MOST:
        raise HubError(
            f"a card needs 1 to {MOST} measured results, got {len(paths)}: python -m eval accuracy --output "
            "FILE, then --results FILE"
        )
    check_weights(folder, dict(zip(paths, measured, strict=True)))
    return measured


def result_of(path: Path) -> dict[str, Any]:
    """A results file; see ``read_result``.

    Raises:
        HubError: If it is none.
    """
    try:
        return read_result(path)
    except OSError as error:
        raise HubError(f"{path} is not a results file, it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise HubError(str(error)) from error


def _read_accuracy(path: Path) -> dict[str, Any]:
    """A results file with an accuracy; without top-5 where that says nothing, as for five classes."""
    result = result_of(path)
    metrics = {key: result[key] for key in METRICS if result.get(key) is not None}
    if type(result.get("classes")) is int and result["classes"] <= TOP:
        metrics.pop("top5", None)
    if result["task"] not in ("accuracy", "audio") or not metrics or "n" not in result:
        raise HubError(f"{path} has no accuracy: give what python -m eval accuracy wrote with --output")
    counts = {key: result[key] for key in ("n", "classes") if key in result}
    wrong = [key for key, value in metrics.items() if not _is_percent(value)]
    wrong += [key for key, value in counts.items() if type(value) is not int or value < 1]
    if wrong:
        raise HubError(f"{path}: {wrong[0]} is {str(result[wrong[0]])[:60]}, which was never measured")
    if result.get("trained_on"):
        raise HubError(
            f"{path} was measured on the images that the model was trained on: measure others, or those that "
            "were held out, with python -m eval accuracy --held-out"
        )
    return {**{key: value for key, value in result.items() if key not in METRICS}, **metrics}


def _is_percent(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100  # so written, NaN is none


def dataset_of(result: dict[str, Any]) -> str:
    """The data set of a result, as the result names it; of a folder only the name."""
    dataset = " ".join(str(result.get("dataset") or "").split())
    name = dataset if dataset.startswith(("hfds/", "wds/")) else PurePath(dataset).name
    if name in ("", ".."):
        raise HubError("the results do not say what was measured on: say it with --dataset")
    return name


def check_weights(folder: Path, measured: Mapping[Path, dict[str, Any]]) -> None:
    """Makes sure that results which say whose they are are of the weights in the folder.

    Raises:
        HubError: If they are not.
    """
    told = {
        path: result["state_dict_sha256"]
        for path, result in measured.items()
        if "state_dict_sha256" in result
    }
    if not told:
        return
    actual = state_dict_sha256(load_model(f"local-dir:{folder}"))
    for path, expected in told.items():
        if expected != actual:
            raise HubError(
                f"{path} was measured with other weights than those in {folder}: run python -m eval accuracy "
                f"--model {quote(f'local-dir:{folder}')}, or drop it"
            )
