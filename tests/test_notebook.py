"""The notebook: its commands are known, its pictures are small, and its cells run as they stand there."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
CELLS: list[dict[str, Any]] = [
    cell | {"source": "".join(cell["source"])}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_shows_what_it_gave() -> None:
    outputs = [output for cell in CODE for output in cell["outputs"]]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert sum(len(base64.b64decode("".join(picture))) for picture in pictures) < 300_000
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "val/top1" in json.dumps(outputs) and str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    text = "".join(cell["source"] for cell in CELLS if cell["cell_type"] == "markdown")
    pages = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert pages and all((NOTEBOOK.parent / page).is_file() for page in pages)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in an empty folder; lines with ``!`` in a shell, with one epoch of training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names: dict[str, Any] = {}
    for cell in CODE:
        if not cell["source"].startswith("!"):
            exec(compile(cell["source"], str(NOTEBOOK), "exec"), names)
            continue
        script = cell["source"].replace("\n!", "\n")[1:].replace("max_epochs 6", "max_epochs 1")
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert Path("runs/model.pt2").stat().st_size > 1e6
    assert names["fast"].deployment["fused"] == 12
