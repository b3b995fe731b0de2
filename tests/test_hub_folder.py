"""Folders of weights: what is exported, what a card says, and what is refused before it is loaded."""

import copy
import html
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from markdown import markdown
from PIL import Image
from test_checkpoint import NAMES, classes, difference, overrides, path_of, payload_of
from torch import nn

import dcls_models
from dcls_models import CheckpointError
from dcls_models.files import sha256_of
from dcls_models.layers import DclsNd
from dcls_models.provenance import state_dict_sha256
from hub import INSTALL, HubError
from hub.cli import _say_how_to_load
from hub.cli import main as hub_main
from hub.convert import convert, key_values
from hub.export import export
from hub.folder import check_folder, config_sha256

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "digits_results.json"
TINY = timm.list_models("test_*_dcls")  # one of each family


def make(name: str = "test_convnext_dcls", **arguments: Any) -> nn.Module:
    """A model whose logits depend on everything in it."""
    model = timm.create_model(name, num_classes=6, **arguments).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if not key.endswith(("positions", "sigma")):
                p.add_(0.05 * torch.randn_like(p))
            elif key.endswith("positions"):
                p.uniform_(-3, 3)
    return model


def layers_of(model: nn.Module) -> list[DclsNd]:
    return [m for m in model.modules() if isinstance(m, DclsNd)]


def images_for(model: nn.Module) -> torch.Tensor:
    return torch.randn(2, *model.pretrained_cfg["input_size"])


def assert_same(folder: Path, model: nn.Module, tolerance: float = 1e-6) -> nn.Module:
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images_for(model)
    with torch.inference_mode():
        assert difference(again(x), model(x)) < tolerance
    return again


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("folder") / "out"
    export(make(), out)
    return out


# Export


@pytest.mark.parametrize("name", TINY)
def test_every_family_is_exported_with_every_choice(name: str, tmp_path: Path) -> None:
    chosen = {"kernel_count": 7, "dilated_kernel_size": 9, "version": "gauss"}
    model = make(name, **chosen)
    metadata = export(model, tmp_path / "out", source="me", source_sha256="abc")
    assert_same(tmp_path / "out", model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert chosen.items() <= config["model_args"].items()
    assert "num_classes" not in config["model_args"]  # transformers gives it as well
    assert config["weights_sha256"] == sha256_of(tmp_path / "out" / "model.safetensors")
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == metadata
    assert metadata["architecture"] == name and metadata["config_sha256"] == config_sha256(config)
    assert (metadata["source"], metadata["source_sha256"]) == ("me", "abc")
    assert metadata["dcls_models"] == dcls_models.__version__ and metadata["torch"] == torch.__version__
    assert metadata["git_commit"]


def test_defaults_are_written_down_too(folder: Path) -> None:
    arguments = json.loads((folder / "config.json").read_text())["model_args"]
    assert (arguments["kernel_count"], arguments["dilated_kernel_size"], arguments["version"]) == (
        34,
        17,
        "v0",
    )


def test_the_number_of_classes_is_said_once(folder: Path) -> None:
    """transformers passes model_args beside it, and would pass it twice."""
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 6
    assert "num_classes" not in config["model_args"]


def test_layout_and_shared_tensors_do_not_matter(tmp_path: Path) -> None:
    model = make("test_resnet_dcls").to(memory_format=torch.channels_last)
    model.layer2[1].bn1.weight = model.layer2[1].bn2.weight
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export(model, tmp_path / "out")
    assert_same(tmp_path / "out", model, 1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the model stays as it is"
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_positions_from_outside_are_exported_as_they_are(tmp_path: Path) -> None:
    model = make()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["stages.0.positions"][0, 0, 0, 0] = 8.75
    model.load_state_dict(state)
    model.double().float()  # where the library forgets that they came from a checkpoint
    export(model, tmp_path / "out")
    assert assert_same(tmp_path / "out", model).stages[0].positions[0, 0, 0, 0] == 8.75


def test_fused_is_loaded_by_timm_alone(tmp_path: Path) -> None:
    model = make(version="gauss", dilated_kernel_size=11)
    export(model, tmp_path / "out", fused=True)
    images, expected = tmp_path / "images.pt", tmp_path / "logits.pt"
    x = images_for(model)
    torch.save(x, images)
    code = (
        "import sys, timm, torch\n"
        f"model = timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True).eval()\n"
        f"torch.save(model(torch.load({str(images)!r})).detach(), {str(expected)!r})\n"
        "assert 'dcls_models' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with torch.inference_mode():
        assert difference(torch.load(expected), model(x)) < 1e-4
    assert "import dcls_models" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in TINY if name != "test_convnext_dcls"])
def test_fused_is_refused_where_timm_has_no_place(name: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="cannot be exported fused: timm's"):
        export(make(name), tmp_path / "out", fused=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(HubError, match="no DCLS layer to fuse"):
        export(timm.create_model("test_convnext"), tmp_path / "out", fused=True)


def test_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make()
    export(model, tmp_path / "out", half=True)
    again = assert_same(tmp_path / "out", model, 0.02)
    assert "float16 changes the logits by at most" in capsys.readouterr().out
    stored = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    kinds = {k.rpartition(".")[2]: v.dtype for k, v in stored.items()}
    assert kinds["weight"] == torch.float16 and kinds["positions"] == torch.float32
    assert torch.equal(again.stages[1].positions, model.stages[1].positions)
    with torch.no_grad():
        for layer in layers_of(model):  # large enough to see that all that is compared was rounded
            layer.weight.mul_(10)
        model.head.fc.weight.mul_(10)
    export(model, tmp_path / "large", half=True)
    with torch.no_grad():
        model.head.fc.weight[0, 0] = 1e6
    with pytest.raises(HubError, match=r"head\.fc\.weight has values that float16 cannot hold"):
        export(model, tmp_path / "inf", half=True)
    assert not (tmp_path / "inf").exists()


def test_onnx(tmp_path: Path) -> None:
    model = make("test_resnet_dcls")
    export(model, tmp_path / "out", onnx=True)
    x = torch.randn(3, *model.pretrained_cfg["input_size"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (found,) = session.run(None, {"images": x.numpy()})
    with torch.inference_mode():
        assert difference(torch.from_numpy(found), model(x)) < 1e-4
    export(model, tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists(), "it would be of other weights"


def test_what_does_not_come_back_is_not_written(tmp_path: Path) -> None:
    broken = make()
    with torch.no_grad():
        broken.head.fc.weight[0, 0] = float("nan")
    with pytest.raises(dcls_models.CheckpointError, match=r"a live model: head.fc.weight has NaN"):
        export(broken, tmp_path / "out")
    swapped = timm.create_model("test_resnet", num_classes=3)
    dcls_models.dclsify(swapped, "*.conv2", kernel_count=3, dilated_kernel_size=5)
    with pytest.raises(HubError, match="timm cannot build"):
        export(swapped, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HubError, match="is a file"):
        export(make(), tmp_path / "file")
    (tmp_path / "README.md").write_text("of something else")
    with pytest.raises(HubError, match="choose another folder"):
        export(make(), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "README.md"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    model = make()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(HubError, match="the weights cannot be written"):
            export(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.iterdir())


def test_what_tells_of_other_weights_goes(tmp_path: Path) -> None:
    export(make(), tmp_path / "out", files={"conversion.json": "{}"})
    hub_main(card(tmp_path / "out", dataset_id="ada/digits"))
    assert (tmp_path / "out" / ".eval_results" / "results.yaml").exists()
    export(make(), tmp_path / "out", files={"training.json": "{}"})
    hub_main(card(tmp_path / "out"))
    left = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert left == {"README.md", "config.json", "model.safetensors", "results.json", "training.json"}


def test_other_files_stay(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model = make()
    export(model, tmp_path)
    assert_same(tmp_path, model)
    assert {p.name for p in tmp_path.iterdir()} == {
        "notes.txt",
        "README.md",
        "config.json",
        "model.safetensors",
    }


# Convert


def test_convert_refuses_with_one_line(tmp_path: Path) -> None:
    golden, out = "convnext_v0", tmp_path / "out"
    sizes = {**overrides(golden), "num_classes": classes(golden)}
    with pytest.raises(HubError, match="there is no DCLS model 'resnet50'"):
        convert(path_of(golden), "resnet50", out, {})
    with pytest.raises(dcls_models.CheckpointError, match="num_classes"):
        convert(path_of(golden), NAMES[golden], out, {**sizes, "num_classes": 11})
    with pytest.raises(dcls_models.CheckpointError, match="there is no checkpoint"):
        convert(tmp_path / "nothing.pth", NAMES[golden], out, sizes)
    with pytest.raises(HubError, match="cannot be built with"):
        convert(path_of(golden), NAMES[golden], out, {**sizes, "nonsense": 1})
    weights = {f"backbone.{k}": v for k, v in payload_of(golden)["model"].items()}
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "cascade.pth")
    with pytest.raises(HubError, match="holds a detector or a segmentation model"):
        convert(tmp_path / "cascade.pth", NAMES[golden], out, sizes)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Path))
    with pytest.raises(dcls_models.CheckpointError, match="code is never run"):
        convert(tmp_path / "evil.pth", NAMES[golden], out, sizes)
    assert not out.exists()


def test_convert_counts_positions_outside(tmp_path: Path) -> None:
    golden = "convnext_gauss"
    payload = payload_of(golden)
    for key, value in payload["model"].items():
        if key.endswith(".P") and key.startswith("stages.1."):
            value[0, 0, 0, :3] = 13.0
    torch.save(payload, tmp_path / "outside.pth")
    sizes = {**overrides(golden), "num_classes": classes(golden)}
    report = convert(tmp_path / "outside.pth", NAMES[golden], tmp_path / "out", sizes)
    assert report["positions_outside_the_kernel"] == 3
    assert report["positions"] == sum(2 * d * 26 for d in sizes["dims"])


def test_imagenet_models_know_the_names_of_their_classes(tmp_path: Path) -> None:
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
    torch.save({"model": timm.create_model("convnext_dcls_tiny", **sizes).state_dict()}, tmp_path / "m.pth")
    convert(tmp_path / "m.pth", "convnext_dcls_tiny", tmp_path / "out", sizes)
    cfg = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).pretrained_cfg
    assert len(cfg["label_names"]) == 1000 and cfg["label_names"][0] == "n01440764"
    assert "tench" in cfg["label_descriptions"]["n01440764"]


def test_key_values() -> None:
    assert key_values(["depths=(2, 1)", "version=gauss", "conv_mlp=True"]) == {
        "depths": (2, 1),
        "version": "gauss",
        "conv_mlp": True,
    }
    with pytest.raises(HubError, match="takes KEY=VALUE, got 'depths'"):
        key_values(["depths"])


# Card


def card(folder: Path, **changes: Any) -> list[str]:
    given = {
        "repo": "ada/zoo",
        "results": RESULTS,
        "dataset": "Digits of UCI",
        "license": "cc-by-4.0",
        **changes,
    }
    return ["card", str(folder), *(str(x) for k, v in given.items() for x in (f"--{k.replace('_', '-')}", v))]


def test_a_card_says_what_was_measured(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    Image.new("RGB", (9, 9)).save(tmp_path / "k.png")
    hub_main(card(tmp_path / "out", dataset_id="ada/digits", picture=tmp_path / "k.png"))
    measured, text = json.loads(RESULTS.read_text()), (tmp_path / "out" / "README.md").read_text()
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "cc-by-4.0",
        "timm",
        "image-classification",
    )
    assert {"dcls", "timm", "image-classification", "large-kernel"} <= set(data.tags)
    values = {r.metric_name: (r.metric_value, r.dataset_name, r.dataset_type) for r in data.eval_results}
    assert values["top-1 accuracy"] == (measured["top1"], "Digits of UCI", "ada/digits")
    assert f"| {measured['top1']} % | {measured['n']} | `{measured['command']}` |" in text
    assert measured["date"] in text and measured["machine"] in text
    assert text.index("import dcls_models") < text.index("timm.create_model")
    assert INSTALL in text and '"hf-hub:ada/zoo"' in text and "![Learned kernels](kernels.png)" in text
    assert "arXiv:2112.03740" in text and sha256_of(folder / "model.safetensors") in text
    entries = yaml.safe_load((tmp_path / "out" / ".eval_results" / "results.yaml").read_text())
    assert (
        entries[0]["dataset"] == {"id": "ada/digits", "task_id": "top1"}
        and entries[0]["value"] == measured["top1"]
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == measured
    check_folder(tmp_path / "out")


def test_the_code_of_a_card_runs(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    hub_main(card(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("hf-hub:ada/zoo", f"local-dir:{folder}"), names)
    assert names["logits"].shape == (1, 6)
    assert not (tmp_path / "out" / ".eval_results").exists(), "it needs the id of a data set on the Hub"


def test_a_card_assumes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("license", "results", "repo"):
        arguments = card(folder)
        at = arguments.index(f"--{option}")
        with pytest.raises(SystemExit):
            hub_main([*arguments[:at], *arguments[at + 2 :]])
        assert f"--{option}" in capsys.readouterr().err
    with pytest.raises(HubError, match="--license-link"):
        hub_main(card(folder, license="other"))
    (tmp_path / "typed.json").write_text('{"top1": 99.9}')
    with pytest.raises(HubError, match=r"not a results file, it lacks task, command"):
        hub_main(card(folder, results=tmp_path / "typed.json"))
    with pytest.raises(HubError, match="not a results file"):
        hub_main(card(folder, results=tmp_path / "nothing.json"))
    (tmp_path / "nameless.json").write_text(json.dumps(json.loads(RESULTS.read_text()) | {"dataset": ""}))
    nameless = card(folder, results=tmp_path / "nameless.json")
    at = nameless.index("--dataset")
    with pytest.raises(HubError, match="what was measured on: say it with --dataset"):
        hub_main([*nameless[:at], *nameless[at + 2 :]])
    with pytest.raises(HubError, match="not a PNG picture"):
        hub_main(card(folder, picture=RESULTS))
    with pytest.raises(HubError, match="USER/NAME"):
        hub_main(card(folder, repo="zoo"))
    assert "Nothing was measured yet" in (folder / "README.md").read_text()
    with pytest.raises(HubError, match="says nothing of a licence"):
        hub_main(["publish", str(folder), "ada/zoo"])


@pytest.mark.parametrize(
    ("dataset", "name"), [("/home/ada/my photos/", "my photos"), ("hfds/ada/digits", "hfds/ada/digits")]
)
def test_a_card_names_the_data_as_the_results_do(
    folder: Path, tmp_path: Path, dataset: str, name: str
) -> None:
    shutil.copytree(folder, tmp_path / "out")
    measured = json.loads(RESULTS.read_text()) | {"dataset": dataset, "classes": 5, "command": "measure a|b"}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    arguments = card(tmp_path / "out", results=tmp_path / "measured.json")
    at = arguments.index("--dataset")
    hub_main([*arguments[:at], *arguments[at + 2 :]])
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| {name} | top-1 accuracy | {measured['top1']} % |" in text and "/home" not in text
    assert "`measure a\\|b`" in text and "top-5" not in text, "of five classes the best five are all"


@pytest.mark.parametrize(
    "name", ["$5_$10", "a|b", "<b>bold</b>", "*_x_*", "100 %", "été_夏", "`code`", "[x](y)"]
)
def test_a_card_shows_any_name_as_it_is(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "out")
    hub_main(card(tmp_path / "out", dataset=name))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[-1]
    page = markdown(text, extensions=["tables"])
    assert f"<td>{html.escape(name, quote=False)}</td>" in html_with_letters(page)
    assert ModelCard.load(tmp_path / "out" / "README.md").data.eval_results[0].dataset_name == name


def html_with_letters(page: str) -> str:
    """HTML with numbered entities as the letters they are."""
    return re.sub(r"&#(\d+);", lambda match: chr(int(match[1])), page)


def test_results_of_other_weights_make_no_card(folder: Path, tmp_path: Path) -> None:
    measured = json.loads(RESULTS.read_text())
    found = tmp_path / "measured.json"
    found.write_text(json.dumps({**measured, "state_dict_sha256": 64 * "0"}))
    with pytest.raises(HubError, match=r"measured\.json was measured with other weights.*eval accuracy"):
        hub_main(card(folder, results=found))
    assert "Nothing was measured yet" in (folder / "README.md").read_text()
    own = state_dict_sha256(timm.create_model(f"local-dir:{folder}", pretrained=True))
    found.write_text(json.dumps({**measured, "state_dict_sha256": own}))
    hub_main(card(folder, results=found))
    assert str(measured["top1"]) in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top1": float("nan")}, "top1 is nan, which was never measured"),
        ({"top1": 120}, "top1 is 120, which was never"),
        ({"top5": "99"}, "top5 is 99, which was never"),
        ({"top1": None, "top5": 100.0, "classes": 3}, "has no accuracy"),
        ({"n": 0}, "n is 0, which was never"),
        ({"task": "robustness"}, "has no accuracy"),
        ({"command": ["rm"]}, "it lacks command"),
        ({"versions": []}, "it lacks versions"),
    ],
)
def test_a_card_quotes_measured_numbers_only(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    found = tmp_path / "measured.json"
    found.write_text(json.dumps({**json.loads(RESULTS.read_text()), **changes}))
    with pytest.raises(HubError, match=rf"measured\.json.* {words}"):
        hub_main(card(folder, results=found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"license": "MIT License"}, "a licence is named as on the Hub, .*; got 'MIT License'"),
        ({"license": ""}, "a licence is named as on the Hub"),
        ({"license_link": ") [x](y"}, "--license-link is an address or a file"),
        ({"license_link": "javascript:x"}, "--license-link is an address or a file"),
        ({"dataset_id": "x: y\n"}, "Repo id must use"),
        ({"picture": RESULTS}, "is not a PNG picture"),
        ({"picture": "nowhere.png"}, "is not a PNG picture"),
    ],
)
def test_what_a_card_cannot_say(folder: Path, changes: dict[str, Any], words: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(HubError, match=words):
        hub_main(card(folder, **changes))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a\n---\nlicense: evil", "' \" : { [ #", "<b> | `x` $y$", "夏"])
def test_a_data_set_of_any_name_leaves_the_card_whole(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "out")
    hub_main(card(tmp_path / "out", dataset=name))
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.license == "cc-by-4.0" and data.eval_results[0].dataset_name == " ".join(name.split())


def test_results_of_earlier_weights_are_not_published(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    hub_main(card(tmp_path / "out"))
    stale = {**json.loads(RESULTS.read_text()), "state_dict_sha256": 64 * "0"}
    (tmp_path / "out" / "results2.json").write_text(json.dumps(stale))
    with pytest.raises(HubError, match=r"results2\.json was measured with other weights"):
        hub_main(["publish", str(tmp_path / "out"), "ada/zoo"])


@pytest.mark.parametrize("tag", ["v 1", "v1..2", "v1.lock", "v1.", "HEAD", "-x", "refs/heads/x", "x" * 101])
def test_a_tag_that_git_does_not_take(folder: Path, tmp_path: Path, tag: str) -> None:
    shutil.copytree(folder, tmp_path / "out")
    hub_main(card(tmp_path / "out"))
    with pytest.raises(HubError, match=r"a tag is made of .*; got '"):
        hub_main(["publish", str(tmp_path / "out"), "ada/zoo", f"--tag={tag}"])


def test_a_card_that_is_no_yaml_is_not_published(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(HubError, match=r"README\.md cannot be read as a model card: while parsing"):
        hub_main(["publish", str(tmp_path / "out"), "ada/zoo"])


# What is written


@pytest.mark.parametrize("name", ['it\'s "mine"', "a b", "new\nline", "back\\slash", "$HOME", "夏"])
def test_what_is_printed_can_be_pasted(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / name)
    _say_how_to_load(tmp_path / name)
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = {}
    exec(line.strip().replace("; timm.create_model", "; model = timm.create_model"), found)
    assert isinstance(found["model"], nn.Module)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    model = make()
    (tmp_path / "out" / "model.safetensors").mkdir(parents=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("in the way")
    for out, words in {
        "out": r"model\.safetensors is a folder, where a file is to be written",
        "dangling": "dangling is a file; give a folder",
        "file/below": r"file/below cannot be written .*: make room there, or give another folder",
    }.items():
        with pytest.raises(HubError, match=words):
            export(model, tmp_path / out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "dangling",
        "file",
        "model.safetensors",
        "out",
    ]


def test_a_full_disk_leaves_no_half_of_a_card(tmp_path: Path) -> None:
    script = f"ulimit -f 1; {sys.executable} -m hub cards {tmp_path / 'cards'}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'cards'} cannot be written")
    assert list(tmp_path.iterdir()) == [] and len(done.stderr.splitlines()) == 1


# What is refused before it is loaded


def config_with(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            part = config[key.partition("__")[0]] if "__" in key else config
            part[key.rpartition("__")[2]] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


def linked(folder: Path) -> None:
    (folder / "secret.json").symlink_to("/etc/hostname")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


REFUSED: dict[str, Callable[[Path], object]] = {
    "is not the file that config.json was written for": weights(lambda b: b[:-4] + b"evil"),
    "is truncated, damaged": weights(lambda b: b[:-9]),
    "truncated, damaged or no safetensors": weights(lambda b: pickle.dumps(list(b[:99]))),
    "damaged or no safetensors file": weights(lambda b: (2**62).to_bytes(8, "little") + b[8:]),
    "has pytorch_model.bin and no model.safetensors; a pickle can run code": pickled,
    "there is no .*model.safetensors": lambda folder: (folder / "model.safetensors").unlink(),
    "there is no .*config.json": lambda folder: (folder / "config.json").unlink(),
    "config.json is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "which no config needs": lambda folder: (folder / "config.json").write_bytes(b" " * 2**23),
    "outside the folder": linked,
    "architecture 'evilnet', which timm and dcls_models lack": config_with(architecture="evilnet"),
    "sends timm elsewhere for the weights: url": config_with(pretrained_cfg__url="http://evil"),
    "sends timm elsewhere for the weights: hf_hub_filename": config_with(
        pretrained_cfg__hf_hub_filename="x.bin"
    ),
    "sends timm elsewhere for the weights: custom_load": config_with(pretrained_cfg__custom_load=True),
    "would tell timm how to load, not what: checkpoint_path": config_with(
        model_args__checkpoint_path="x.pth"
    ),
    "would tell timm how to load, not what: pretrained": config_with(model_args__pretrained=True),
    "wants dilated_kernel_size=99999": config_with(model_args__dilated_kernel_size=99999),
    "wants dims=": config_with(model_args__dims=[10**12] * 4),
    "wants depths=": config_with(model_args__depths=[10**9] * 4),
    "wants depth=": config_with(model_args__depth=3000),
    "wants num_classes=": config_with(model_args__num_classes=10**13),
    "says 5 classes, of a model with 6": config_with(num_classes=5, model_args__num_classes=6),
    "wants num_classes=1000000000000, which": config_with(num_classes=10**12),
    "wants input_size=": config_with(pretrained_cfg__input_size=[3, 10**6, 10**6]),
    "input_size must be three whole numbers, got None": config_with(pretrained_cfg__input_size=None),
    "input_size must be three whole numbers, got .3, -64, 64": config_with(
        pretrained_cfg__input_size=[3, -64, 64]
    ),
    "is not the config of a model: expected .* model_args": config_with(model_args=[1]),
    "expected .* model_args .dictionaries.": config_with(model_args=None),
    "expected a dictionary with architecture": lambda folder: (folder / "config.json").write_text("[]"),
    r"timm cannot build test_convnext_dcls as config.json says \(TypeError: .*nonsense": config_with(
        model_args__nonsense=1
    ),
    "does not fit config.json in": config_with(model_args__dims=[24, 32, 48, 65]),
    "was changed after model.safetensors was written": config_with(pretrained_cfg__crop_pct=0.5),
    "would tell timm how to load, not what: features_only": config_with(model_args__features_only=True),
    "mean must be numbers, got x": config_with(pretrained_cfg__mean="x"),
    "std must be numbers above 0, got .0.5, -1": config_with(pretrained_cfg__std=[0.5, -1, 1]),
    "crop_pct must be a number above 0, got nan": config_with(pretrained_cfg__crop_pct=float("nan")),
    "interpolation must be one of .*, got .'bicubic'": config_with(pretrained_cfg__interpolation=["bicubic"]),
    "test_input_size must be three whole numbers": config_with(pretrained_cfg__test_input_size=-1),
    "has 2 label_names for 6 classes": config_with(pretrained_cfg__label_names=["a", "b"]),
    "front_end makes no spectrograms .sample_rate, ": config_with(
        model_args={}, front_end={"sample_rate": -1}
    ),
}


@pytest.mark.parametrize("kind", [torch.int8, torch.bool])
def test_weights_in_whole_numbers_are_not_sound(kind: torch.dtype, tmp_path: Path) -> None:
    export(make(), tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    stored["head.fc.weight"] = stored["head.fc.weight"].to(kind)
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("weights_sha256")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(HubError, match=r"has head\.fc\.weight as .*, which holds no weights"):
        hub_main(["verify", str(tmp_path)])


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    check_folder(tmp_path / "bad")
    REFUSED[message](tmp_path / "bad")
    allocated: list[Any] = []
    original = nn.Module.register_parameter

    def watch(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is not None and parameter.device.type != "meta":
            allocated.append(name)
        original(module, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", watch)
    with pytest.raises(HubError, match=message):
        hub_main(["verify", str(tmp_path / "bad")])
    with pytest.raises(HubError, match=message):
        hub_main(["publish", str(tmp_path / "bad"), "ada/bad"])
    assert not allocated, "no parameter is made of what it says"


def test_verify_says_what_it_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub_main(["verify", str(folder)])
    said = capsys.readouterr().out
    model = timm.create_model("test_convnext_dcls", num_classes=6)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in said
    assert sha256_of(folder / "model.safetensors") in said


def test_the_command_ends_with_one_line_and_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub", "verify", str(tmp_path / "nothing")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=dict(os.environ)
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: there is no folder {tmp_path / 'nothing'}\n"


def test_timm_cannot_save_what_we_can(tmp_path: Path) -> None:
    from dcls_models._timm import save_for_hf

    model = copy.deepcopy(make("test_resnet_dcls")).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="non contiguous"):
        save_for_hf(model, tmp_path, safe_serialization=True)
    assert any(isinstance(m, DclsNd) for m in model.modules())


def test_weights_that_are_no_numbers_are_not_sound(tmp_path: Path) -> None:
    model = make()
    export(model, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["stem.0.weight"][0, 0, 0, 0] = float("nan")
    safetensors.torch.save_file(weights, path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("weights_sha256")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"stem\.0\.weight"):
        hub_main(["verify", str(tmp_path)])
