"""The authors' checkpoints: read exactly, whichever way they come, or refused with one clear error."""

import argparse
import hashlib
import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models import convnext, fastvit, metaformer
from torch import nn

from dcls_models import CheckpointError
from dcls_models.checkpoint import convert

REFERENCE = Path(__file__).parent / "reference"
GOLDENS: dict[str, Any] = json.loads((REFERENCE / "manifest.json").read_text())["goldens"]
NAMES = {
    "convnext_v0": "convnext_dcls_tiny",
    "convnext_gauss": "convnext_dcls_gauss_tiny",
    "convformer_v1": "convformer_dcls_s18",
    "caformer_v1": "caformer_dcls_s18",
    "fastvit_v1": "fastvit_dcls_sa24",
    "resnet50_v0": "resnet50_dcls",
    "audio_convnext_gauss": "convnext_dcls_audio_tiny",
    "audio_convformer_gauss": "convformer_dcls_audio_s18",
    "audio_fastvit_gauss": "fastvit_dcls_audio_sa24",
}
FULL_SIZE = {
    "convnext_dcls_tiny_v0": "convnext_dcls_tiny",
    "convnext_dcls_small_v0": "convnext_dcls_small",
    "convnext_dcls_base_v0": "convnext_dcls_base",
    "convnext_dcls_tiny_gauss": "convnext_dcls_gauss_tiny",
    "convformer_s18_v1": "convformer_dcls_s18",
    "caformer_s18_v1": "caformer_dcls_s18",
    "fastvit_sa24_v1": "fastvit_dcls_sa24",
    "fastvit_sa36_v1": "fastvit_dcls_sa36",
    "resnet50_v0": "resnet50_dcls",
    "audio_convnext_tiny_gauss": "convnext_dcls_audio_tiny",
    "audio_convformer_s18_gauss": "convformer_dcls_audio_s18",
    "audio_fastvit_sa24_gauss": "fastvit_dcls_audio_sa24",
}

every = pytest.mark.parametrize("golden", GOLDENS)
vision = pytest.mark.parametrize("golden", [g for g in GOLDENS if not g.startswith("audio")])
ema = pytest.mark.parametrize(
    "golden", [g for g, v in GOLDENS.items() if v["weights_key"] == "state_dict_ema"]
)
full_size = pytest.mark.parametrize("keys", FULL_SIZE)


def path_of(golden: str) -> Path:
    return REFERENCE / "golden" / f"{golden}.pth"


def classes(golden: str) -> int:
    return GOLDENS[golden]["hyperparameters"]["num_classes"]


def overrides(golden: str) -> dict[str, Any]:
    """The reduced size of a golden, in the words of its timm class."""
    words = {"dims": "embed_dims", "mlp": "mlp_ratios"} if "fastvit" in golden else {}
    sizes = GOLDENS[golden]["hyperparameters"]
    return {words.get(k, k): v for k, v in sizes.items() if k != "num_classes"}


def create(
    golden: str, source: dict[str, Any] | None = None, sizes: dict[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """What a user types, for a checkpoint of another size and number of classes than was released."""
    overlay = {"num_classes": classes(golden), **(source or {"file": str(path_of(golden))})}
    kwargs |= sizes or overrides(golden)
    return timm.create_model(NAMES[golden], pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def recorded(golden: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path_of(golden).with_suffix(".safetensors"))


def features_of(golden: str) -> list[torch.Tensor]:
    return [recorded(golden)[f"features.{i}"] for i in range(4)]


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, over the spread of what was expected."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / (expected.max() - expected.min())).item()


@torch.no_grad()
def logits_differ(model: nn.Module, golden: str) -> float:
    return difference(model(recorded(golden)["input"]), recorded(golden)["logits"])


@torch.no_grad()
def features_differ(model: nn.Module, golden: str) -> float:
    found = model.forward_intermediates(recorded(golden)["input"], intermediates_only=True)[-4:]
    return max(difference(a, e) for a, e in zip(found, features_of(golden), strict=True))


def assert_golden(model: nn.Module, golden: str) -> None:
    assert logits_differ(model, golden) < 2e-5
    assert features_differ(model, golden) < 2e-5


def payload_of(golden: str) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path_of(golden), weights_only=True)


def weights_in(payload: dict[str, Any], golden: str) -> dict[str, torch.Tensor]:
    return payload[GOLDENS[golden]["weights_key"]]


def altered(golden: str, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, Any]:
    """The source for ``create``: a golden checkpoint after ``change`` of its weights."""
    payload = payload_of(golden)
    change(weights_in(payload, golden))
    file = folder / "altered.pth"
    torch.save(payload, file)
    return {"file": str(file)}


def learned(weights: dict[str, torch.Tensor]) -> list[str]:
    return [key for key in weights if key.endswith(".P")]


class Server:
    """Files over HTTP on this machine; counts the requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lengths: dict[str, int] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                body = outer.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(outer.lengths.get(self.path, len(body))))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, name: str, content: bytes, length: int | None = None) -> dict[str, Any]:
        self.files[f"/{name}"] = content
        self.lengths[f"/{name}"] = len(content) if length is None else length
        return self.source(name)

    def source(self, name: str) -> dict[str, Any]:
        return {"url": f"http://127.0.0.1:{self.server.server_port}/{name}"}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


# The weights arrive


@every
def test_from_a_file(golden: str) -> None:
    assert_golden(create(golden), golden)
    assert_golden(create(golden, positions="spread"), golden)


@every
def test_over_http(golden: str, server: Server, tmp_path: Path) -> None:
    source = server.put(f"{golden}.pth.tar", path_of(golden).read_bytes())
    assert_golden(create(golden, source, cache_dir=tmp_path), golden)
    assert_golden(create(golden, source, cache_dir=tmp_path), golden)
    assert len(server.requests) == 1


def test_over_http_into_the_default_cache(server: Server) -> None:
    source = server.put("convnext_default.pth", path_of("convnext_v0").read_bytes())
    assert_golden(create("convnext_v0", source), "convnext_v0")
    assert (Path(torch.hub.get_dir()) / "checkpoints" / "convnext_default.pth.sha256").exists()


@every
def test_features_only(golden: str) -> None:
    backbone = create(golden, features_only=True)
    with torch.no_grad():
        found = backbone(recorded(golden)["input"])[-4:]
    for actual, expected in zip(found, features_of(golden), strict=True):
        assert difference(actual, expected) < 2e-5


@every
def test_features_only_needs_no_number_of_classes(golden: str) -> None:
    source = {"file": str(path_of(golden))}
    size = overrides(golden)
    backbone = timm.create_model(
        NAMES[golden], pretrained=True, pretrained_cfg_overlay=source, features_only=True, **size
    )
    with torch.no_grad():
        found = backbone.eval()(recorded(golden)["input"])[-4:]
    assert difference(found[-1], features_of(golden)[-1]) < 2e-5


@every
def test_the_model_may_say_how_many_classes_the_file_has(golden: str) -> None:
    name, count, file = NAMES[golden], classes(golden), {"file": str(path_of(golden))}
    model = timm.create_model(
        name, pretrained=True, num_classes=count, pretrained_cfg_overlay=file, **overrides(golden)
    )
    assert_golden(model.eval(), golden)


@every
@pytest.mark.parametrize("num_classes", [7, 0])
def test_another_number_of_classes_loads_all_but_the_head(
    golden: str, num_classes: int, tmp_path: Path
) -> None:
    released = 527 if golden.startswith("audio") else 1000

    def widen_head(weights: dict[str, torch.Tensor]) -> None:
        for key, value in weights.items():
            if key.startswith(("head.", "fc.")) and len(value) == classes(golden):
                weights[key] = torch.randn(released, *value.shape[1:])

    source = altered(golden, tmp_path, widen_head)
    size = overrides(golden)
    model = timm.create_model(
        NAMES[golden], pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=source, **size
    ).eval()
    x = recorded(golden)["input"]
    assert features_differ(model, golden) < 2e-5
    if num_classes:
        assert model(x).shape == (2, 7)
    whole = create(golden)
    with torch.no_grad():  # everything up to the last layer, MetaFormer's hidden layer included
        expected = whole.forward_head(whole.forward_features(x), pre_logits=True)
        assert difference(model.forward_head(model.forward_features(x), pre_logits=True), expected) < 2e-5


@vision
def test_one_channel_sums_the_stem(golden: str) -> None:
    model, whole = create(golden, in_chans=1), create(golden)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert difference(model(x), whole(x.expand(-1, 3, -1, -1))) < 2e-5


@vision
def test_more_channels_repeat_the_stem(golden: str) -> None:
    model, whole = create(golden, in_chans=6), create(golden)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert difference(model(torch.cat([x, x], 1)), whole(x)) < 2e-5


@ema
def test_the_averaged_weights_are_taken(golden: str, tmp_path: Path) -> None:
    payload = payload_of(golden)
    assert isinstance(payload["args"], argparse.Namespace)  # its presence must not keep the file from loading
    assert_golden(create(golden), golden)
    del payload["state_dict_ema"]
    torch.save(payload, tmp_path / "last.pth")
    assert logits_differ(create(golden, {"file": str(tmp_path / "last.pth")}), golden) > 1e-2


@every
def test_other_wrappings(golden: str, tmp_path: Path) -> None:
    weights = weights_in(payload_of(golden), golden)
    for name, content in {
        "bare": weights,
        "model": {"model": weights, "args": argparse.Namespace(lr=1.0), "epoch": 3},
        "model_ema": {"model_ema": weights, "model": {}},
        "distributed": {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
    }.items():
        torch.save(content, tmp_path / f"{name}.pth")
        assert_golden(create(golden, {"file": str(tmp_path / f"{name}.pth")}), golden)
    assert_golden(create(golden, {"state_dict": weights}), golden)
    assert_golden(create(golden, {"state_dict": payload_of(golden)}), golden)


@every
def test_without_the_copies(golden: str, tmp_path: Path) -> None:
    def keep_first_copies(weights: dict[str, torch.Tensor]) -> None:
        for group in GOLDENS[golden]["shared_groups"]:
            for key in group[1:]:
                del weights[key]

    assert_golden(create(golden, altered(golden, tmp_path, keep_first_copies)), golden)


@every
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_our_own_state_dict(golden: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"ours.{suffix}"
    save = torch.save if suffix == "pth" else safetensors.torch.save_file
    save(create(golden).state_dict(), file)
    assert_golden(create(golden, {"file": str(file)}), golden)


def test_checkpoint_path_takes_names_that_are_timms(tmp_path: Path) -> None:
    golden = "resnet50_v0"
    size = overrides(golden)
    model = timm.create_model(
        NAMES[golden], num_classes=classes(golden), checkpoint_path=path_of(golden), **size
    )
    assert_golden(model.eval(), golden)


# The cache


def test_the_first_download_is_recorded(server: Server, tmp_path: Path) -> None:
    content = path_of("convnext_v0").read_bytes()
    source = server.put("tiny.pth", content)
    create("convnext_v0", source, cache_dir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.pth", "tiny.pth.sha256"]
    assert (tmp_path / "tiny.pth.sha256").read_text().split() == [hashlib.sha256(content).hexdigest()]


def test_a_changed_file_is_refused(server: Server, tmp_path: Path) -> None:
    source = server.put("tiny.pth", path_of("convnext_v0").read_bytes())
    create("convnext_v0", source, cache_dir=tmp_path)
    payload = payload_of("convnext_v0")
    weights_in(payload, "convnext_v0")["norm.bias"] += 1
    torch.save(payload, tmp_path / "tiny.pth")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"tiny\.pth has changed: its sha256 is .* Delete it"):
            create("convnext_v0", source, cache_dir=tmp_path)
    (tmp_path / "tiny.pth").unlink()
    assert_golden(create("convnext_v0", source, cache_dir=tmp_path), "convnext_v0")


def test_a_replaced_download_is_refused(server: Server, tmp_path: Path) -> None:
    source = server.put("tiny.pth", path_of("convnext_v0").read_bytes())
    create("convnext_v0", source, cache_dir=tmp_path)
    (tmp_path / "tiny.pth").unlink()
    server.put("tiny.pth", path_of("convnext_gauss").read_bytes())
    with pytest.raises(CheckpointError, match=r"tiny\.pth\.sha256 too if the authors have replaced"):
        create("convnext_v0", source, cache_dir=tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("announced", ["its own length", "the whole length"])
def test_a_truncated_download_is_not_kept(
    server: Server, tmp_path: Path, kept: float, announced: str
) -> None:
    content = path_of("convnext_v0").read_bytes()
    part = content[: int(kept * len(content))]
    source = server.put("tiny.pth", part, len(content) if announced == "the whole length" else None)
    with pytest.raises(CheckpointError, match=r"tiny\.pth"):
        create("convnext_v0", source, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.put("tiny.pth", content)
    assert_golden(create("convnext_v0", source, cache_dir=tmp_path), "convnext_v0")


def test_a_page_in_place_of_the_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    source = server.put("tiny.pth", b"<!doctype html><html><body>Please sign in</body></html>")
    with pytest.raises(CheckpointError, match=r"tiny\.pth cannot be read as weights"):
        create("convnext_v0", source, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_download(server: Server, tmp_path: Path) -> None:
    gone = server.source("gone.pth")
    with pytest.raises(CheckpointError, match=r"cannot download http://127.*gone\.pth \(.*404"):
        create("convnext_v0", gone, cache_dir=tmp_path)
    server.close()
    with pytest.raises(CheckpointError, match=r"cannot download http://127.*gone\.pth"):
        create("convnext_v0", gone, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match=r"cannot download somewhere/tiny\.pth"):
        create("convnext_v0", {"url": "somewhere/tiny.pth"}, cache_dir=tmp_path)


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file may become larger than so many bytes, as on a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_said_in_one_line(server: Server, tmp_path: Path) -> None:
    source = server.put("large.pth", path_of("convnext_v0").read_bytes())
    words = r"cannot download http.*large.pth \(.*too large\); set TORCH_HOME to a folder with room, or "
    with pytest.raises(CheckpointError, match=words) as error, no_room(1000):
        create("convnext_v0", source, cache_dir=tmp_path)
    assert "\n" not in str(error.value) and "--model.model_kwargs.pretrained_cfg_overlay" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_made_is_said_in_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = server.put("weights.pth", path_of("convnext_v0").read_bytes())
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"cannot download .*file.*set TORCH_HOME") as error:
        create("convnext_v0", source, cache_dir=tmp_path / "file")
    assert "\n" not in str(error.value)
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(CheckpointError, match=r"cannot download .*set TORCH_HOME"):
        create("convnext_v0", source)
    assert not server.requests


def test_weights_are_used_where_their_sha256_cannot_be_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weights.pth").write_bytes(path_of("convnext_v0").read_bytes())
    source = {"url": "http://127.0.0.1:9/weights.pth"}  # already in the cache
    with no_room(10):
        model = create("convnext_v0", source, cache_dir=tmp_path)
    assert_golden(model, "convnext_v0")
    assert f"later changes of {tmp_path / 'weights.pth'} will not be noticed: " in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]
    (tmp_path / "weights.pth.sha256").mkdir()
    assert_golden(create("convnext_v0", source, cache_dir=tmp_path), "convnext_v0")
    assert "weights.pth is not checked against weights.pth.sha256: " in caplog.text


@pytest.mark.parametrize("where", ["file", "url"])
def test_a_file_is_read_once(
    where: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"file": str(path_of("convnext_v0"))}
    if where == "url":
        source = server.put("once.pth", path_of("convnext_v0").read_bytes())
        create("convnext_v0", source, cache_dir=tmp_path)
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    assert_golden(create("convnext_v0", source, cache_dir=tmp_path), "convnext_v0")
    assert len(loads) == 1


# What is not the model's checkpoint is refused


@every
def test_copies_that_disagree(golden: str, tmp_path: Path) -> None:
    groups = [group for group in GOLDENS[golden]["shared_groups"] if len(group) > 1]
    for group in groups:

        def move_last_copy(weights: dict[str, torch.Tensor], key: str = group[-1]) -> None:
            weights[key] = weights[key] + 1e-4

        with pytest.raises(CheckpointError, match=r"\.(P|SIG) differs from the copy of another layer"):
            create(golden, altered(golden, tmp_path, move_last_copy))


@every
def test_missing_keys(golden: str, tmp_path: Path) -> None:
    weights = weights_in(payload_of(golden), golden)
    shared = [group for group in GOLDENS[golden]["shared_groups"] if group[0].endswith(".P")]
    single = [key for key in weights if not key.endswith((".P", ".SIG"))]
    for keys in [*shared, *([key] for key in single[:: len(single) // 3]), single[-1:]]:

        def drop(weights: dict[str, torch.Tensor], keys: list[str] = keys) -> None:
            for key in keys:
                del weights[key]

        with pytest.raises(
            CheckpointError, match=rf"altered\.pth: .* does not fit {NAMES[golden]}: .*missing"
        ):
            create(golden, altered(golden, tmp_path, drop))


@every
def test_extra_keys(golden: str, tmp_path: Path) -> None:
    positions = learned(weights_in(payload_of(golden), golden))[0]
    base = positions.removesuffix("P")
    for key in (f"{base}Q", f"{base}bias2", "aux_head.weight", f"0.{positions}", "positions"):

        def add(weights: dict[str, torch.Tensor], key: str = key) -> None:
            weights[key] = torch.zeros(3)

        with pytest.raises(CheckpointError, match=r"altered\.pth: .*(not expected|KeyError)"):
            create(golden, altered(golden, tmp_path, add))


RESHAPES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda value: torch.cat([value, value[:1]]),
    lambda value: value[..., :-1],
    lambda value: torch.stack([value, value]),
    lambda value: value.reshape(-1, 2),  # timm would reshape it back, whatever it was
]


@every
def test_wrong_shapes(golden: str, tmp_path: Path) -> None:
    weights = weights_in(payload_of(golden), golden)
    plain = [key for key, value in weights.items() if value.numel() > 1 and not key.endswith((".P", ".SIG"))]
    for key in [learned(weights)[0], plain[len(plain) // 2], plain[-1]]:
        copies = next((group for group in GOLDENS[golden]["shared_groups"] if key in group), [key])
        for reshape in RESHAPES:

            def change(
                weights: dict[str, torch.Tensor], keys: list[str] = copies, reshape: Any = reshape
            ) -> None:
                for key in keys:
                    weights[key] = reshape(weights[key])

            with pytest.raises(CheckpointError, match=r"altered\.pth: .*(Create the model|of 2 rows)"):
                create(golden, altered(golden, tmp_path, change))


@vision
def test_a_stem_of_other_channels(golden: str, tmp_path: Path) -> None:
    def widen_stem(weights: dict[str, torch.Tensor]) -> None:
        key = next(key for key, value in weights.items() if value.ndim == 4)
        weights[key] = torch.cat([weights[key], weights[key]], 1)

    with pytest.raises(CheckpointError, match="of another shape"):
        create(golden, altered(golden, tmp_path, widen_stem))


@every
def test_another_family(golden: str) -> None:
    for other in GOLDENS.keys() - {golden}:
        with pytest.raises(CheckpointError, match=rf"{other}\.pth: .*Create the model that it was made from"):
            create(golden, {"file": str(path_of(other)), "num_classes": classes(other)})


@every
def test_another_size(golden: str) -> None:
    size, count = overrides(golden), GOLDENS[golden]["kernel_count"]
    lengths = next(iter(size))
    changes: list[dict[str, Any]] = [{lengths: [n + 1 for n in size[lengths]]}, {"kernel_count": count + 1}]
    if GOLDENS[golden]["version"] != "gauss":
        changes.append({"version": "gauss"})
    for change in changes:
        with pytest.raises(
            CheckpointError, match=rf"{golden}\.pth: .*Create the model that it was made from"
        ):
            create(golden, sizes={**size, **change})


def test_the_released_size_says_what_to_create() -> None:
    overlay = {"file": str(path_of("convnext_v0"))}
    with pytest.raises(CheckpointError, match=r"convnext_v0\.pth: .*num_classes, depths, dims, kernel_count"):
        timm.create_model("convnext_dcls_atto", pretrained=True, pretrained_cfg_overlay=overlay)


@every
@pytest.mark.parametrize("kept", [0, 4, 1000, 0.5, 0.999])
def test_truncated_files(golden: str, kept: float, tmp_path: Path) -> None:
    content = path_of(golden).read_bytes()
    file = tmp_path / "part.pth"
    file.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(CheckpointError, match=r"part\.pth cannot be read as weights"):
        create(golden, {"file": str(file)})


def test_missing_file(tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(CheckpointError, match=f"there is no checkpoint {missing}"):
            create("convnext_v0", {"file": str(missing)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights\n",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b'{"model": {}}',
        pickle.dumps({"model": {"weight": 1}}, protocol=2),
        [1, 2],
        {},
        {"epoch": 3},
        {"model": {}},
        {"model": None},
        {"model": [torch.zeros(3)]},
        {"state_dict": {"weight": "seven"}},
        {"weight": 1.0},
        torch.zeros(3),
        "a string",
        7,
    ],
    ids=lambda content: repr(content)[:16],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_no_checkpoint_at_all(content: Any, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"strange.{suffix}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match=rf"strange\.{suffix}"):
        create("convnext_v0", {"file": str(file)})


class Code:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return shutil.copyfile, (__file__, str(self.marker))


@pytest.mark.parametrize("way", ["zip", "legacy", "plain", "beside the weights", "in the namespace"])
@pytest.mark.parametrize("transport", ["file", "url"])
def test_code_is_never_run(way: str, transport: str, server: Server, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "code.pth"
    payload: dict[str, Any] = payload_of("convnext_v0")
    if way == "beside the weights":
        payload["optimizer"] = Code(marker)
    elif way == "in the namespace":
        payload["args"] = argparse.Namespace(output=Code(marker))
    else:
        weights_in(payload, "convnext_v0")["norm.weight"] = Code(marker)
    if way == "plain":
        file.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=way != "legacy")
    source = {"file": str(file)} if transport == "file" else server.put("code.pth", file.read_bytes())
    cache = tmp_path / "cache"
    with pytest.raises(CheckpointError, match=r"code\.pth cannot be read as weights"):
        create("convnext_v0", source, cache_dir=cache)
    assert not marker.exists()
    assert not cache.exists() or list(cache.iterdir()) == []

    if way != "plain":  # the file does what it is feared for
        torch.load(file, weights_only=False)
        assert marker.exists()


def test_an_error_leaves_a_given_model_alone() -> None:
    model = create("convnext_v0")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = weights_in(payload_of("convnext_v0"), "convnext_v0")
    del weights["norm.weight"]
    with pytest.raises(CheckpointError):
        convert({k: v + 1 for k, v in weights.items()}, model, convnext.checkpoint_filter_fn, "head.fc")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Key for key at full size


def authors_state_dict(keys: str) -> dict[str, torch.Tensor]:
    """All the keys, shapes and types of a published checkpoint, without memory for its values."""
    entries = json.loads((REFERENCE / "keys" / f"{keys}.json").read_text())["state_dict"]
    return {key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape) for key, shape, dtype in entries}


def conversion(keys: str) -> tuple[nn.Module, Any, str]:
    name = FULL_SIZE[keys]
    with torch.device("meta"):
        model = timm.create_model(name)
    if "resnet" in name:
        return model, lambda state_dict, model: state_dict, "fc"
    families = {"convnext": convnext, "fastvit": fastvit, "former": metaformer}
    family = next(module for word, module in families.items() if word in name)
    return model, family.checkpoint_filter_fn, "head.fc"


@full_size
def test_every_key_at_full_size(keys: str) -> None:
    model, rename, head = conversion(keys)
    converted = convert(authors_state_dict(keys), model, rename, head)
    expected = {key: (tuple(v.shape), v.dtype) for key, v in model.state_dict().items()}
    assert {key: (tuple(v.shape), v.dtype) for key, v in converted.items()} == expected


@full_size
def test_one_wrong_key_at_full_size(keys: str) -> None:
    model, rename, head = conversion(keys)
    whole = authors_state_dict(keys)
    groups = json.loads((REFERENCE / "keys" / f"{keys}.json").read_text())["shared_groups"]
    for lost in (groups[-1], [list(whole)[len(whole) // 2]], [list(whole)[-1]]):
        with pytest.raises(CheckpointError):
            convert({k: v for k, v in whole.items() if k not in lost}, model, rename, head)
    key = groups[0][0].removesuffix("P") + "weight"
    with pytest.raises(CheckpointError):
        convert({**whole, key: torch.cat([whole[key], whole[key][:1]])}, model, rename, head)


@full_size
@pytest.mark.filterwarnings("ignore:.*is a no-op:UserWarning")
def test_the_users_path_at_full_size(keys: str) -> None:
    overlay = {"state_dict": {"state_dict_ema": authors_state_dict(keys)}}
    with torch.device("meta"):
        timm.create_model(FULL_SIZE[keys], pretrained=True, pretrained_cfg_overlay=overlay)
