"""The page that compares results."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from eval.cli import main

DOCS = Path(__file__).parent.parent / "docs"
SHARED = {
    "command": "python -m eval accuracy --data 'a|b' --model '<script>alert(1)</script>'",
    "date": "2026-11-21",
    "machine": "a <fast> one",
    "versions": {"torch": "2.15.0"},
}


@pytest.fixture
def folder(tmp_path):
    def write(name, **content):
        (tmp_path / f"{name}.json").write_text(json.dumps({**SHARED, **content}))

    for model, top1, score in (("convnext_tiny.fb_in1k", 70.25, 0.4), ("convnext_dcls_tiny", 71.5, 0.45)):
        short = model.partition(".")[0]
        write(f"a_{short}", task="accuracy", model=model, top1=top1, top5=90.0, loss=1.25, n=50000)
        write(f"c_{short}", task="robustness", model=model, benchmark="c", top1=40.0, mce=60.5, n=7)
        shares = {"0.2": 0.015, "0.3": 0.025, "0.5": 0.0925, "0.99": 0.7}
        write(f"e_{short}", task="erf", model=model, share_of_area=shares, pictures=["seen.png"])
        span = {"low": score - 0.01, "high": score + 0.01}
        row = {"model": model, "method": "grad-cam", "score": score, "flat": 3, **span}
        write(f"g_{short}", task="gradcam", rows=[row, {**row, "method": "threshold-grad-cam"}], **row)
    rows = [{"model": "resnet50", "mode": "train", "ms": {"median": 1234.5}, "speed": 1.0}]
    write("t", task="throughput", rows=rows)
    stages = [{"name": "stages.0", "size": [17, 17], "radius": 1.5, "sigma": {"mean": 0.5}}]
    write("k", task="kernels", model="m", stages=stages, rows=[{"model": "m", "stages": stages}])
    write("n", task="new", model="m", measure=1.5)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "seen.png")
    return tmp_path


def report(folder, name, *more):
    files = sorted(str(f) for f in folder.glob("*.json"))
    main(["report", *files, "--output", str(folder / name), *more])
    return (folder / name).read_text()


def rows_of(text, heading):
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_hold_what_the_files_hold(folder):
    text = report(folder, "out.md")
    header, _, *rows = rows_of(text, "Accuracy")
    assert header == ["model", "top-1, %", "top-5, %", "NLL", "images"], "a column without values is left out"
    assert ["convnext_dcls_tiny", "71.50", "90.00", "1.250", "50,000"] in rows
    assert ["convnext_dcls_tiny", "c", "40.00", "60.50", "7"] in rows_of(text, "Robustness")
    erf = rows_of(text, "Effective receptive field")
    assert erf[0] == ["model", "20 %", "30 %", "50 %", "99 %"] and erf[2][1:] == [
        "0.015",
        "0.025",
        "0.092",
        "0.700",
    ]
    cams = rows_of(text, "Where it looks")[2:]
    assert ["convnext_dcls_tiny", "threshold-grad-cam", "0.450", "0.440", "0.460", "3"] in cams
    assert len(cams) == 4
    assert ["resnet50", "train", "1,234.5", "1.00"] in rows_of(text, "Speed")
    assert rows_of(text, "Kernels")[2] == ["m", "stages.0", "17 x 17", "1.50", "0.50"]
    assert rows_of(text, "new")[2] == ["m", "1.500"]
    assert (folder / "out_models.png").is_file() and "](out_models.png)" in text
    assert text.count("](seen.png)") == 2


def test_what_others_reported_is_marked_and_only_of_these_models(folder):
    text = report(folder, "out.md")
    rows = rows_of(text, "Accuracy")
    published = [row for row in rows if len(row) > 1 and "ConvNeXt-dcls" in row[1]]
    assert {row[0]: row[2] for row in published} == {"convnext_tiny": "82.1", "convnext_dcls_tiny": "82.5"}
    assert "**not measured here**" in text
    assert "convnext_base" not in text and "resnet50.a1_in1k" not in text


def test_the_page_needs_no_other_file_and_runs_nothing(folder):
    text = report(folder, "out.html", "--title", "Ours & theirs")
    assert "<h1>Ours &amp; theirs</h1>" in text
    assert "<script" not in text and "a &lt;fast&gt; one" in text
    assert text.count("<table>") == 9 and not re.search(r'(src|href)="(?!data:image/png;base64,)', text)
    assert sorted(f.name for f in folder.iterdir() if f.suffix != ".json") == ["out.html", "seen.png"]


def test_a_picture_that_is_gone_is_said(folder):
    (folder / "seen.png").unlink()
    assert "seen.png is not there" in report(folder, "out.md")


def test_names_with_spaces_and_accents_are_links(folder):
    shutil.move(folder / "seen.png", folder / "vu à côté.png")
    result = json.loads((folder / "e_convnext_tiny.json").read_text())
    (folder / "e_convnext_tiny.json").write_text(json.dumps({**result, "pictures": ["vu à côté.png"]}))
    text = report(folder, "the page.md")
    assert "](the%20page_models.png)" in text and "](vu%20%C3%A0%20c%C3%B4t%C3%A9.png)" in text


def test_it_reads_what_is_in_docs(tmp_path):
    files = [str(f) for f in sorted(DOCS.rglob("*.json")) if f.name != "study.json"]
    main(["report", *files, "--output", str(tmp_path / "out.md")])
    text = (tmp_path / "out.md").read_text()
    segmentation, detection = (rows_of(text, name) for name in ("Segmentation", "Detection"))
    assert segmentation[0][1:3] == ["mIoU before", "mIoU"] and segmentation[2][1:3] == ["0.1", "76.6"]
    assert detection[0][1:3] == ["box AP before", "box AP"] and detection[2][1:3] == ["0.0", "74.8"]
    first = json.loads((DOCS / "benchmarks" / "layers.json").read_text())["construction"][0]
    ms = [f"{first['ms'][whose]['median']:.2f}" for whose in ("ours", "authors")]
    assert ["v0, 96 channels, 34 in 17x17", *ms] in [row[:3] for row in rows_of(text, "Layers")]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"task": "accuracy", "top1": 1}'])
def test_what_is_no_result_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is not a results file"):
        report(tmp_path, "out.md")
    assert not (tmp_path / "out.md").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": "x"}, "rows is not what a command wrote"),
        ({"rows": [None]}, "rows is not what a command wrote"),
        ({"rows": [{"model": "x", "stages": [3]}]}, "stages is not what a command wrote"),
        ({"pictures": [3]}, "pictures is not what a command wrote"),
        ({"task": "layers", "rows": []}, r"is no whole result of layers \(KeyError"),
        ({"versions": ["torch"]}, "is not a results file, it lacks versions"),
    ],
)
def test_a_result_that_was_changed_is_named(tmp_path, changes, words):
    (tmp_path / "r.json").write_text(json.dumps({**SHARED, "task": "accuracy", "model": "m", **changes}))
    with pytest.raises(ValueError, match=rf"r\.json:? {words}"):
        report(tmp_path, "page.md")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("top1", ["<b>", [1, "a"], {"a": 1}, float("nan"), 10**400, None])
def test_what_is_no_number_has_no_bar(tmp_path, top1):
    (tmp_path / "r.json").write_text(json.dumps({**SHARED, "task": "accuracy", "model": "m", "top1": top1}))
    assert "All models" not in report(tmp_path, "page.md") and not (tmp_path / "page_models.png").exists()


def test_another_kind_of_page_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        report(folder, "out.pdf")
    assert "must end in .html or .md" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_it(folder, tmp_path):
    report(folder, "out.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,2000"]
    shot = tmp_path / "shot.png"
    subprocess.run(
        ["chromium", *flags, f"--screenshot={shot}", (folder / "out.html").as_uri()], check=True, timeout=120
    )
    with Image.open(shot) as image:
        colours = image.convert("RGB").getcolors(2**24)
        assert image.size == (1100, 2000) and len(colours) > 100
        bars = sum(n for n, (r, g, b) in colours if abs(r - 31) + abs(g - 119) + abs(b - 180) < 12)
        assert bars > 500, "the bars of the picture"
