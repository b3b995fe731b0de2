"""The way to the Hub and back, by the real client against a server on this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import timm
import torch
from hub_server import Fault, HubServer, Repo
from PIL import Image
from test_checkpoint import GOLDENS, NAMES, classes, difference, overrides, path_of, recorded

from dcls_models import CheckpointError
from dcls_models.files import sha256_of
from dcls_models.loading import load_model
from hub.cli import main as hub_main
from hub.export import export
from train.command import main as train_main
from train.digits import write_digits

ROOT = Path(__file__).parent.parent
WRITE, READ, OTHER = "hf_ada_write", "hf_ada_read", "hf_bob_write"

# Runs commands one after the other: importing torch for each would take most of the time.
WORKER = """
import contextlib, io, json, os, sys, time, traceback
import huggingface_hub, timm, torch
import dcls_models
from hub.cli import main

answers = sys.stdout
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096  # small pieces for small files
if "127.0.0.1" in huggingface_hub.constants.ENDPOINT:
    time.sleep = lambda seconds: None  # the client waits before it tries again; only the waiting is left out
for line in sys.stdin:
    ask, said = json.loads(line), io.StringIO()
    os.environ["HF_TOKEN"], error, result = ask["token"], "", None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if "model" in ask:
                images = torch.randn(ask["shape"], generator=torch.Generator().manual_seed(0))
                with torch.inference_mode():
                    result = timm.create_model(ask["model"], pretrained=True).eval()(images).tolist()
            else:
                main(ask["argv"])
        except (OSError, ValueError, RuntimeError) as caught:
            error = str(caught)
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps([error, said.getvalue(), result]), file=answers, flush=True)
"""


class Said(NamedTuple):
    error: str
    output: str
    result: Any


class Client:
    """A process with the real client; a new cache, and never a token but the one that is given."""

    def __init__(self, url: str, home: Path, xet: bool = False) -> None:
        self.env = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": str(1 - xet),
        }
        self.env |= {
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
        }
        self.home = home
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], env=self.env, text=True, **pipes)

    def ask(self, token: str = "", **what: Any) -> Said:
        self.process.stdin.write(json.dumps({"token": token, **what}) + "\n")
        self.process.stdin.flush()
        said = Said(*json.loads(self.process.stdout.readline()))
        assert "Traceback" not in said.error, said.error
        assert "\n" not in said.error
        assert not any(t in said.error + said.output for t in (WRITE, READ, OTHER, token or WRITE)), (
            "tokens are never printed"
        )
        return said

    def run(self, *argv: object, token: str = WRITE) -> str:
        said = self.ask(token, argv=[str(a) for a in argv])
        assert not said.error, said.error
        return said.output

    def fails(self, *argv: object, token: str = WRITE) -> str:
        said = self.ask(token, argv=[str(a) for a in argv])
        assert said.error, said.output
        return said.error

    def logits(self, model: str, shape: tuple[int, ...]) -> torch.Tensor:
        said = self.ask(model=model, shape=shape)
        assert not said.error, said.error
        return torch.tensor(said.result)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(server.url, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture(autouse=True)
def no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").faults.clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the trainer: a few steps on digits."""
    folder = tmp_path_factory.mktemp("run")
    write_digits(folder / "digits")
    arguments = ["--data.root", str(folder / "digits"), "--trainer.default_root_dir", str(folder)]
    arguments += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"]
    arguments += ["--trainer.check_val_every_n_epoch", "9", "--trainer.enable_progress_bar", "false"]
    train_main(["fit", "--config", str(ROOT / "configs" / "digits.yaml"), *arguments])
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m eval accuracy --output`` writes."""
    return ROOT / "docs" / "digits_results.json"


@pytest.fixture(scope="module")
def exported(trained: Path, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as a folder with a card, ready to be published."""
    folder = tmp_path_factory.mktemp("exported") / "digits"
    checkpoint = trained / "checkpoints" / "last.ckpt"
    hub_main(["export", "--checkpoint", str(checkpoint), "--out", str(folder), "--results", str(results)])
    Image.new("RGB", (8, 8)).save(folder.parent / "k.png")
    card = ["card", str(folder), "--repo", "ada/digits", "--results", str(results), "--license", "mit"]
    card += ["--dataset", "Handwritten digits of UCI", "--picture", str(folder.parent / "k.png")]
    hub_main([*card, "--dataset-id", "ada/uci-digits"])
    return folder


def tiny(folder: Path, **arguments: Any) -> torch.nn.Module:
    """Exports a tiny model with random weights."""
    model = timm.create_model("test_resnet_dcls", num_classes=5, **arguments).eval()
    export(model, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "small"
    torch.manual_seed(0)
    tiny(folder)
    return folder


# The whole way


def test_the_whole_way(
    trained: Path, exported: Path, server: HubServer, client: Client, tmp_path: Path
) -> None:
    said = client.run("publish", exported, "ada/digits")
    assert "dry run" in said and "model.safetensors" in said and "## How to use it" in said
    assert "ada/digits" not in server.repos, "a dry run sends nothing"
    said = client.run("publish", exported, "ada/digits", "--push", "--direct")
    sent = server.files("ada/digits")
    assert sent == {
        p.relative_to(exported).as_posix(): p.read_bytes() for p in exported.rglob("*") if p.is_file()
    }
    assert {
        "README.md",
        "training.json",
        "results.json",
        "kernels.png",
        ".eval_results/results.yaml",
    } < sent.keys()
    assert b"zenodo" not in b"".join(sent.values()), "it was trained from scratch"
    tag = f"weights-{sha256_of(exported / 'model.safetensors')[:8]}"
    assert server.repos["ada/digits"].refs[tag] == server.repos["ada/digits"].refs["main"]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_model(checkpoint=trained / "checkpoints" / "last.ckpt")(images)
    assert difference(client.logits("hf-hub:ada/digits", (2, 3, 32, 32)), expected) < 1e-5
    assert difference(client.logits(f"hf-hub:ada/digits@{tag}", (2, 3, 32, 32)), expected) < 1e-5
    client.run("download", "ada/digits", "--revision", tag, "--out", tmp_path / "copy")
    copy = timm.create_model(f"local-dir:{tmp_path / 'copy'}", pretrained=True).eval()
    assert difference(copy(images), expected) < 1e-5
    assert copy.pretrained_cfg["label_names"] == [str(d) for d in range(10)]
    client.run("verify", tmp_path / "copy", "--repo", "ada/digits")


def test_averaged_weights_or_raw_ones(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    export = ["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "none")]
    with pytest.raises(CheckpointError, match="has no averaged weights"):
        hub_main([*export, "--weights", "ema"])
    stored = torch.load(checkpoint, weights_only=True)
    raw = {k: v for k, v in stored["state_dict"].items() if k.startswith("model.")}
    averaged = {k.replace("model.", "ema.module.", 1): 0.9 * v for k, v in raw.items()}
    torch.save({**stored, "state_dict": {**raw, **averaged}}, tmp_path / "both.ckpt")
    for chosen, factor in (([], 0.9), (["--weights", "ema"], 0.9), (["--weights", "raw"], 1.0)):
        out = tmp_path / f"out{len(chosen)}{factor}"
        hub_main(["export", "--checkpoint", str(tmp_path / "both.ckpt"), "--out", str(out), *chosen])
        found = safetensors.torch.load_file(out / "model.safetensors")["head.fc.weight"]
        assert torch.equal(found, factor * raw["model.head.fc.weight"])
        said = json.loads((out / "training.json").read_text())
        assert said["weights"] == ("raw" if factor == 1.0 else "averaged (EMA)")
        assert "root" not in said["data"]


@pytest.mark.parametrize("golden", GOLDENS)
def test_a_golden_of_every_family_goes_the_same_way(
    golden: str, server: HubServer, client: Client, tmp_path: Path
) -> None:
    sizes = {**overrides(golden), "num_classes": classes(golden)}
    kwargs = [f"{key}={value!r}" for key, value in sizes.items()]
    out, repo = tmp_path / "out", f"ada/{golden}"
    said = client.run(
        "convert", path_of(golden), "--model", NAMES[golden], "--out", out, "--model-kwargs", *kwargs
    )
    facts, report = GOLDENS[golden], json.loads((out / "conversion.json").read_text())
    assert report["parameters"] == facts["parameters_shared_once"]
    assert report["tensors_in_source"] == facts["state_dict_entries"]
    assert report["copies_of_positions_checked"] == sum(map(len, facts["shared_groups"]))
    assert report["positions_kept"] == len(facts["shared_groups"])
    assert report["source_sha256"] == sha256_of(path_of(golden)) and report["source_sha256"] in said
    assert sha256_of(out / "model.safetensors") in said
    assert "https://zenodo.org/record" in (out / "config.json").read_text(), "where the terms stand"
    with safetensors.safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata()["source_sha256"] == report["source_sha256"]
    (out / "README.md").write_text(f"---\nlicense: other\n---\n# {golden}\n")
    client.run("publish", out, repo, "--push", "--direct")
    found = [f"local-dir:{out}", f"hf-hub:{repo}"]
    expected = recorded(golden)
    local, remote = (client.logits(name, tuple(expected["input"].shape)) for name in found)
    assert torch.equal(local, remote)
    model = timm.create_model(found[0], pretrained=True).eval()
    with torch.inference_mode():
        assert difference(model(expected["input"]), expected["logits"]) < 2e-5
        images = torch.randn(expected["input"].shape, generator=torch.Generator().manual_seed(0))
        assert difference(remote, model(images)) < 1e-5


# Faults: one clear line each, and nothing half-published

PUBLISHING = {
    "the token is not valid": Fault("GET /api/whoami", 401),
    "needs the right to write": Fault("POST .*/preupload", 403),
    "it does not exist, or the token may not see it": Fault("POST .*/commit", 404),
    "something else is being done to the repository": Fault("POST .*/commit", 409),
    "somebody has changed the repository": Fault("POST .*/commit", 412),
    "more than the quota": Fault("POST .*/objects/batch", 413, message="storage limit reached"),
    "too many requests": Fault("POST .*/commit", 429),
    "a problem of its own": Fault("POST .*/commit", 500),
    "a problem of its own: wait a while": Fault("PUT /upload", 500, times=9),
    "the storage of the account is full": Fault("PUT /upload", 507),
    "cannot be reached": Fault("PUT /upload", 0, times=9),
    "cannot be reached (": Fault("POST .*/commit", 0),
}


@pytest.mark.parametrize("message", PUBLISHING)
@pytest.mark.parametrize("way", [["--direct"], []], ids=["direct", "pull request"])
def test_a_fault_leaves_the_old_state_and_a_second_try_publishes(
    message: str, way: list[str], server: HubServer, client: Client, small: Path
) -> None:
    repo = "ada/faulty"
    server.large.clear()
    server.repos[repo] = Repo()
    before = dict(server.repos[repo].refs)
    fault = PUBLISHING[message]
    server.faults.append(Fault(fault.request, fault.status, fault.times, fault.message))
    error = client.fails("publish", small, repo, "--push", *way)
    assert message in error and repo in error
    assert fault.message in error or fault.status in (0, 401)
    assert server.repos[repo].refs == before, "nothing is half-published"
    assert server.files(repo) == {} and not server.repos[repo].pulls
    server.faults.clear()
    client.run("publish", small, repo, "--push", *way)
    where = "main" if way else "refs/pr/1"
    assert set(server.files(repo, where)) == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("way", [["--direct"], []], ids=["direct", "pull request"])
def test_an_answer_that_is_lost_leaves_the_new_state_which_a_second_try_finds(
    way: list[str], server: HubServer, client: Client, small: Path
) -> None:
    repo = f"ada/lost{len(way)}"
    server.faults.append(Fault("POST .*/commit", -1))
    assert "cannot be reached" in client.fails("publish", small, repo, "--push", *way)
    commits = len(server.repos[repo].commits)
    client.run("publish", small, repo, "--push", *way)
    assert len(server.repos[repo].commits) == commits, "it is not committed twice"
    assert len(server.repos[repo].pulls) == (0 if way else 1)
    client.run("publish", small, repo, "--push", *way)
    assert len(server.repos[repo].commits) == commits


@pytest.mark.parametrize("request_", ["POST .*/tag/", "GET .*/tree/[0-9a-f]{40}"])
def test_what_fails_after_the_commit_is_made_up_for(
    request_: str, server: HubServer, client: Client, tmp_path: Path
) -> None:
    tiny(tmp_path / "out")
    repo = f"ada/after{len(request_)}"
    server.put(repo, **{"README.md": b"old"})
    before = server.repos[repo].refs["main"]
    server.faults.append(Fault(request_, 500, times=6))
    if "tree" in request_:  # only of the new commit
        server.faults[0].request = f"{request_}(?<!{before})$"
    assert "error 500" in client.fails("publish", tmp_path / "out", repo, "--push", "--direct", "--tag", "v1")
    server.faults.clear()
    commits = len(server.repos[repo].commits)
    client.run("publish", tmp_path / "out", repo, "--push", "--direct", "--tag", "v1")
    refs = server.repos[repo].refs
    assert len(server.repos[repo].commits) == commits and refs["v1"] == refs["main"] != before


def test_an_upload_that_is_cut_once_is_taken_up(server: HubServer, client: Client, small: Path) -> None:
    server.large.clear()
    server.faults += [Fault("PUT /upload", 0), Fault("PUT /upload", 500), Fault("POST .*/preupload", 429)]
    client.run("publish", small, "ada/bumpy", "--push", "--direct")
    assert server.files("ada/bumpy")["model.safetensors"] == (small / "model.safetensors").read_bytes()


def test_an_interruption_leaves_the_old_state(server: HubServer, client: Client, small: Path) -> None:
    hold = threading.Event()
    server.large.clear()
    server.faults.append(Fault("PUT /upload", 0, hold=hold))
    server.log.clear()
    command = [sys.executable, "-m", "hub", "publish", str(small), "ada/interrupted", "--push"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(
        command, env={**client.env, "HF_TOKEN": WRITE}, cwd=ROOT, preexec_fn=heard, **pipes
    )
    while not any(line.startswith("PUT") for line in server.log):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(0.5)  # until it only waits; an interruption in a destructor would be ignored by Python
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    hold.set()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "error: interrupted; run the same command again"
    assert server.files("ada/interrupted") == {} and not server.repos["ada/interrupted"].pulls
    client.run("publish", small, "ada/interrupted", "--push")
    assert set(server.files("ada/interrupted", "refs/pr/1")) == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def test_what_is_uploaded_already_is_not_sent_twice(server: HubServer, client: Client, small: Path) -> None:
    server.large.clear()
    server.faults.append(Fault("POST .*/commit", 500))
    client.fails("publish", small, "ada/twice", "--push")
    server.log.clear()
    client.run("publish", small, "ada/twice", "--push")
    assert not [line for line in server.log if line.startswith("PUT")]


def test_a_pull_request_leaves_main_alone(server: HubServer, client: Client, small: Path) -> None:
    said = client.run("publish", small, "ada/pull", "--push", "--tag", "v1")
    assert "discussions/1" in said
    assert server.files("ada/pull") == {}
    refs = server.repos["ada/pull"].refs
    assert refs["v1"] == refs["refs/pr/1"] != refs["main"]
    assert client.logits("hf-hub:ada/pull@v1", (1, 3, 64, 64)).shape == (1, 5)


def test_tokens_and_names(server: HubServer, client: Client, small: Path) -> None:
    def error(repo: str, token: str) -> str:
        return client.fails("publish", small, repo, "--push", token=token)

    assert "there is no token: run hf auth login" in error("ada/tokens", "")
    assert "not valid" in error("ada/tokens", "hf_nobody")
    assert "may only read" in error("ada/tokens", READ)
    assert "ada/tokens is not yours: the token is for bob" in error("ada/tokens", OTHER)
    assert "USER/NAME" in error("tokens", WRITE)
    assert "ada/tokens" not in server.repos
    client.run("publish", small, "zoo/tokens", "--push")  # an organisation that ada is in
    assert "zoo/tokens" in server.repos


def test_a_repository_with_other_content(server: HubServer, client: Client, small: Path) -> None:
    server.put("ada/other", **{"weights.bin": b"theirs", "README.md": b"theirs"})
    before = server.files("ada/other")
    error = client.fails("publish", small, "ada/other", "--push", "--direct")
    assert "holds something else already (weights.bin)" in error and "--overwrite" in error
    assert server.files("ada/other") == before
    client.run("publish", small, "ada/other", "--push", "--direct", "--overwrite")
    assert server.files("ada/other")["weights.bin"] == b"theirs"
    server.put("ada/another", **{"config.json": b'{"architecture": "resnet18"}'})
    assert "config.json of a resnet18" in client.fails("publish", small, "ada/another", "--push")
    for config in (b"[]", b"\xff"):
        server.put("ada/another", **{"config.json": config})
        assert "config.json of a None" in client.fails("publish", small, "ada/another", "--push")


def test_a_new_version_replaces_the_old_one_as_a_whole(
    server: HubServer, client: Client, small: Path, exported: Path, tmp_path: Path
) -> None:
    server.put("ada/versions", **{"config.json": (small / "config.json").read_bytes(), "model.onnx": b"old"})
    client.run("publish", small, "ada/versions", "--push", "--direct")
    assert "model.onnx" not in server.files("ada/versions"), "it was of other weights"
    client.run("publish", small, "ada/versions", "--push", "--direct", "--tag", "v1")
    tiny(tmp_path / "new")
    again = ["publish", tmp_path / "new", "ada/versions", "--push", "--direct", "--tag"]
    assert "has a tag v1 already, of other files" in client.fails(*again, "v1")
    assert "a tag is made of letters" in client.fails(*again, "my tag")
    assert "has a branch main" in client.fails(*again, "main")
    assert server.files("ada/versions") == server.files("ada/versions", "v1"), "nothing was sent"
    assert (
        server.files("ada/versions", "v1")["model.safetensors"] == (small / "model.safetensors").read_bytes()
    )


def test_no_network(small: Path, tmp_path: Path) -> None:
    client = Client("http://127.0.0.1:9", tmp_path)
    assert "cannot be reached" in client.fails("publish", small, "ada/nowhere", "--push")
    assert "cannot be reached" in client.fails("download", "ada/nowhere")
    assert "dry run" in client.run("publish", small, "ada/nowhere"), "which needs no network"
    assert "named USER/NAME, got 'nowhere'" in client.fails("publish", small, "nowhere")
    assert "Repo id must use alphanumeric chars" in client.fails("publish", small, "ada/no where")
    client.close()


# Downloading


def test_a_download_that_is_cut_goes_on_where_it_was(server: HubServer, client: Client, small: Path) -> None:
    client.run("publish", small, "ada/cut", "--push", "--direct")
    server.faults.append(Fault("GET /cdn/", 0))
    server.log.clear()
    said = client.run("download", "ada/cut")
    asked = [line for line in server.log if line.startswith("GET /cdn/")]
    pieces = (small / "model.safetensors").stat().st_size // 2 // 4096 * 4096
    assert [line.partition(" bytes=")[2] for line in asked] == ["", f"{pieces}-"]
    assert "every hash as published" in said
    server.log.clear()
    client.run("download", "ada/cut")
    assert not [line for line in server.log if "/cdn/" in line or "/resolve/" in line], "it is in the cache"


DOWNLOADING = {
    "the token is not valid": Fault("GET /api/models", 401),
    "may not do that": Fault("GET /api/models", 403),
    "it does not exist": Fault("GET /api/models", 404),
    "too many requests": Fault("GET /api/models", 429, times=9),
    "a problem of its own": Fault("GET /cdn/", 500),
    "cannot be reached": Fault("GET /cdn/", 0, times=99),
}


@pytest.mark.parametrize("message", DOWNLOADING)
def test_a_fault_leaves_no_folder_and_a_second_try_downloads(
    message: str, server: HubServer, client: Client, tmp_path: Path
) -> None:
    repo, out = f"ada/down{list(DOWNLOADING).index(message)}", tmp_path / "out"
    tiny(tmp_path / "source")
    client.run("publish", tmp_path / "source", repo, "--push", "--direct")
    server.faults.append(DOWNLOADING[message])
    assert message in client.fails("download", repo, "--out", out)
    assert not out.exists()
    server.faults.clear()
    client.run("download", repo, "--out", out)
    assert sha256_of(out / "model.safetensors") == sha256_of(tmp_path / "source" / "model.safetensors")


def test_pinned_and_offline(server: HubServer, client: Client, tmp_path: Path) -> None:
    models = [tiny(tmp_path / str(i)) for i in range(2)]
    for i in range(2):
        client.run("publish", tmp_path / str(i), "ada/pinned", "--push", "--direct", "--tag", f"v{i}")
    client.run("download", "ada/pinned", "--revision", "v0", "--out", tmp_path / "first")
    assert sha256_of(tmp_path / "first" / "model.safetensors") == sha256_of(
        tmp_path / "0" / "model.safetensors"
    )
    assert "there is no such revision" in client.fails("download", "ada/pinned", "--revision", "v9")
    assert "there is no such repository" in client.fails("download", "ada/nothing")
    server.log.clear()
    client.run("download", "ada/pinned", "--revision", "v0", "--offline", "--out", tmp_path / "again")
    assert not server.log
    images = torch.randn(1, 3, 64, 64)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    assert torch.equal(again(images), models[0](images))
    error = client.fails("download", "ada/pinned", "--revision", "v1", "--offline")
    assert error == "ada/pinned at v1 is not in the cache: leave out --offline"


def test_what_was_changed_on_the_way_or_in_the_cache_is_refused(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    tiny(tmp_path / "good")
    client.run("publish", tmp_path / "good", "ada/changed", "--push", "--direct")
    digest = sha256_of(tmp_path / "good" / "model.safetensors")
    good = server.large[digest]
    server.large[digest] = good[:-4] + b"evil"
    error = client.fails("download", "ada/changed")
    assert "model.safetensors of ada/changed is not what was published" in error
    server.large[digest] = good
    client.run("download", "ada/changed")
    (cached,) = client.home.glob("hub/models--ada--changed/snapshots/*/model.safetensors")
    cached.resolve().write_bytes(good[:-4] + b"evil")
    assert "is not what was published" in client.fails("download", "ada/changed", "--offline")
    client.run("download", "ada/changed", "--out", tmp_path / "out")
    (tmp_path / "out" / "model.onnx").write_bytes(b"of other weights")
    for again in (["verify", tmp_path / "out", "--repo", "ada/changed"], ["download", "ada/changed"]):
        out = [] if again[0] == "verify" else ["--out", tmp_path / "out"]
        assert "has model.onnx, which ada/changed has not" in client.fails(*again, *out)
    (tmp_path / "out" / "model.onnx").unlink()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    client.run("verify", tmp_path / "out")
    assert "README.md is not what ada/changed has" in client.fails(
        "verify", tmp_path / "out", "--repo", "ada/changed"
    )


def test_what_a_repository_must_not_have(server: HubServer, client: Client, small: Path) -> None:
    def error(**files: bytes) -> str:
        server.repos.pop("ada/bad", None)
        server.put("ada/bad", **files)
        return client.fails("download", "ada/bad")

    good = {p.name: p.read_bytes() for p in small.iterdir()}
    assert "only pytorch_model.bin; a pickle can run code" in error(
        **{"pytorch_model.bin": b"", "config.json": b""}
    )
    assert "no weights" in error(**{"config.json": b"{}"})
    assert "it is not a timm model" in error(**{"model.safetensors": b""})
    assert "would leave the folder" in error(**good, **{"../../evil.txt": b"evil"})
    assert "would leave the folder" in error(**good, **{"/evil.txt": b"evil"})
    assert "truncated" in error(**{**good, "model.safetensors": good["model.safetensors"][:-9]})
    config = json.loads(good["config.json"])
    config["architecture"] = "evilnet"
    assert "the architecture 'evilnet', which timm and dcls_models lack" in error(
        **{**good, "config.json": json.dumps(config).encode()}
    )


# The real Hub, on request


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_hub(tmp_path: Path) -> None:
    """``DCLS_HUB_REPO=USER/NAME DCLS_HUB_TOKEN=... pytest -m slow tests/test_hub.py -k real_hub``."""
    repo, token = os.environ.get("DCLS_HUB_REPO"), os.environ.get("DCLS_HUB_TOKEN")
    if not repo or not token:
        pytest.skip("set DCLS_HUB_REPO (USER/NAME, made if it is not there) and DCLS_HUB_TOKEN")
    model = tiny(tmp_path / "out")
    client = Client("https://huggingface.co", tmp_path / "home", xet=True)
    tag = f"test-{sha256_of(tmp_path / 'out' / 'model.safetensors')[:12]}"
    client.run("publish", tmp_path / "out", repo, "--push", "--private", "--tag", tag, token=token)
    client.run("publish", tmp_path / "out", repo, "--push", "--private", "--tag", tag, token=token)
    client.run("download", repo, "--revision", tag, "--out", tmp_path / "copy", token=token)
    client.close()
    again = timm.create_model(f"local-dir:{tmp_path / 'copy'}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), model(images))
