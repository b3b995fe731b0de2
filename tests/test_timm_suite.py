"""timm's own test suite, from its source distribution, run on the models of this project."""

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import timm

import dcls_models  # noqa: F401 (registers the models)

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / f"timm-{timm.__version__}"
OFFLINE = re.compile(
    r"NewConnectionError|Max retries exceeded|name resolution|Name or service not known|ConnectTimeout|"
    r"Network is unreachable|No route to host|ProxyError|Connection refused|Read timed out"
)

# timm's tests that take every model
GENERIC = {
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_forward_torchscript",
    "test_model_forward_features",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
}
# and those that take the models of the modules that timm lists; ours are added to that list
LISTED = {
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_prune_intermediate_layers_contract",
}
# timm's tests of some features name a few models: ours of the same family take their place
STAND_INS = {
    "convnext_atto": "test_convnext_dcls",
    "test_convnext": "test_convnext_dcls",
    "resnet18": "test_resnet_dcls",
    "test_resnet": "test_resnet_dcls",
}
STANDING_IN = {
    ("test_reset_classifier_keeps_pool", "test_convnext_dcls"),
    ("test_reset_classifier_keeps_pool", "test_resnet_dcls"),
    ("test_features_only_grad_checkpointing_backward", "test_convnext_dcls"),
    ("test_features_only_grad_checkpointing_backward", "test_resnet_dcls"),
    ("test_model_features_output_stride", "test_convnext_dcls"),
    ("test_catavgmax_unsupported", "test_convnext_dcls"),
}
# a stem of 2 x 16 patches has no single reduction, which these compare the sizes of features with
ONE_REDUCTION = {
    "test_model_forward_features",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
}
# 96 pixels, the longest of timm's tests of features, are one frame before the last stage of this one
TOO_SHORT = ("test_prune_intermediate_layers_contract", "convnext_dcls_audio_tiny")
# they download the weights of every model; tests/test_checkpoint.py loads them from this machine
DOWNLOADS = "test_model_load_pretrained", "test_model_features_pretrained"


def source_distribution() -> Path:
    """timm's source distribution, downloaded once; skips where the package index cannot be reached."""
    found = list(CACHE.glob("timm-*.tar.gz"))
    if found:
        return found[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(CACHE), f"timm=={timm.__version__}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if result.returncode and OFFLINE.search(result.stdout + result.stderr):
        pytest.skip("the package index cannot be reached, so timm's tests are not here")
    assert result.returncode == 0, f"{' '.join(command)} failed:\n{result.stdout}\n{result.stderr}"
    return next(CACHE.glob("timm-*.tar.gz"))


def unpack(folder: Path) -> None:
    """Puts timm's tests, but not timm itself, into ``folder``, made to look at our models as well."""
    with tarfile.open(source_distribution()) as archive:
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2]
            if member.name == "pyproject.toml" or member.name.startswith("tests/"):
                archive.extract(member, folder, filter="data")
    file = folder / "tests" / "test_models.py"
    source = file.read_text()
    ours = sorted(module for module in timm.list_modules() if module.endswith("_dcls"))
    listed = re.sub(r"(?m)^FEAT_INTER_FILTERS = \[", rf"\g<0>*{ours},", source)
    assert listed != source
    for name, stand_in in STAND_INS.items():
        assert f"'{name}'" in listed
        listed = listed.replace(f"'{name}'", f"'{stand_in}'")
    file.write_text(listed)


def run(folder: Path, selection: str, timeout: int) -> tuple[dict[tuple[str, str], str], str]:
    """Runs what ``-k`` selects; the outcome by test and model, and what pytest printed."""
    unpack(folder)
    environment = {
        k: v for k, v in os.environ.items() if k != "GITHUB_ACTIONS"
    }  # there, timm leaves some out
    environment |= {"TORCH_BACKEND": "dcls_models", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TIMEOUT": "900"}  # seconds, for one test
    selection = f"({selection}) and not ({' or '.join(DOWNLOADS)})"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/test_models.py",
        "-k",
        selection,
        "--junitxml=report.xml",
    ]
    command += ["-q", "--tb=short", "-p", "no:cacheprovider"]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )
    report = folder / "report.xml"
    assert report.exists(), result.stdout + result.stderr
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test, _, parameters = case.attrib["name"].partition("[")
        model = re.search(r"\w*dcls\w*", parameters)
        assert model, case.attrib["name"]
        unusual = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[test, model[0]] = unusual[0] if unusual else "passed"
    return outcomes, result.stdout


def assert_passed(outcomes: dict[tuple[str, str], str], expected: set[tuple[str, str]], printed: str) -> None:
    unusual = {key: outcome for key, outcome in outcomes.items() if outcome != "passed"}
    assert not unusual, f"{unusual}\n{printed[-20000:]}"
    assert outcomes.keys() >= expected


@pytest.mark.timeout(900)
def test_tiny_models(tmp_path: Path) -> None:
    models = timm.list_models("test_*dcls*")
    outcomes, printed = run(tmp_path, " or ".join(models), timeout=800)
    expected = {(test, model) for test in GENERIC | LISTED for model in models}
    assert_passed(outcomes, expected | STANDING_IN, printed)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_all_models(tmp_path: Path) -> None:
    models = set(timm.list_models("*dcls*", exclude_filters="test_*"))
    audio = {model for model in models if "audio" in model}
    tiny = " or ".join(timm.list_models("test_*dcls*"))
    selection = f"dcls and not ({tiny}) and not (audio and ({' or '.join(ONE_REDUCTION)}))"
    selection += f" and not ({' and '.join(TOO_SHORT)})"
    outcomes, printed = run(tmp_path, selection, timeout=6 * 3600 - 100)
    expected = {(test, model) for test in GENERIC | LISTED for model in models}
    expected -= {TOO_SHORT, *((test, model) for test in ONE_REDUCTION for model in audio)}
    assert_passed(outcomes, expected, printed)
