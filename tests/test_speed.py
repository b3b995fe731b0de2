"""What measures speed: that it measures the right things in the right way, never how fast they are."""

import json
import time
from functools import partial

import pytest
import timm
import torch
from PIL import Image

from dcls_models.layers import Dcls1d, Dcls2d, linear
from eval import cli as command_line
from eval.section import markdown_table
from eval.speed import engines, growth, layer_times, long_kernels, passes, peers, steps, throughput, timing
from eval.speed.engines import ENGINES

MINE = """
from timm.models import generate_default_cfgs, register_model
from timm.models.convnext import test_convnext

default_cfgs = generate_default_cfgs({"mine_for_a_test": {"input_size": (3, 32, 32)}})


@register_model
def mine_for_a_test(pretrained=False, **kwargs):
    return test_convnext(**kwargs)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "WARMUP", 0.0)
    monkeypatch.setattr(timing, "SETTLED", 1e-3)
    monkeypatch.setattr(timing, "FLUSHED", 2**10)


def run(*arguments):
    command_line.main([str(a) for a in arguments])


class TestTiming:
    def test_calls_take_turns_and_the_order_turns_around(self):
        order = []

        def call(name):
            order.append(name)
            time.sleep(timing.SETTLED)

        found = timing.time_in_turns({name: partial(call, name) for name in "ab"}, rounds=4)
        assert "".join(order) == "aabb" + "aabbbbaaaabbbbaa"
        assert {t.runs for t in found.values()} == {4}

    def test_milliseconds_of_a_call(self):
        found = timing.time_in_turns({"sleep": lambda: time.sleep(0.02)}, rounds=5)["sleep"]
        assert 20 <= found.low <= found.median <= found.high < 200

    def test_what_takes_long_runs_three_times(self):
        found = timing.time_in_turns(
            {"slow": lambda: time.sleep(0.02), "fast": lambda: None}, rounds=8, seconds=0.05
        )
        assert (found["slow"].runs, found["fast"].runs) == (3, 8)

    def test_a_table(self):
        assert markdown_table(["name", "ms"], [["a", "1.5"], ["long name", "10"]]).splitlines() == [
            "| name      |  ms |",
            "| --------- | --: |",
            "| a         | 1.5 |",
            "| long name |  10 |",
        ]


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_the_layers_of_the_authors_compute_the_same(version):
    layer = Dcls2d(4, 4, 5, padding=4, dilated_kernel_size=9, groups=4, version=version)
    with torch.no_grad():
        layer.positions.uniform_(-4, 4)
        if layer.sigma is not None:
            layer.sigma.uniform_(0, 1)
    theirs = peers.authors_layer(layer)
    x = torch.randn(2, 4, 12, 12, requires_grad=True)
    ours, expected = layer(x), theirs(x)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(ours)
    (a,), (b,) = (torch.autograd.grad(y, x, cotangent, retain_graph=True) for y in (ours, expected))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_the_package_of_the_authors(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "DCLS.construct.modules", None)
    with pytest.raises(ValueError, match="pip install DCLS"):
        run("throughput", "--models", "authors:test_convnext_dcls")


class TestThroughput:
    NAMES = ("test_convnext", "test_convnext_dcls", "authors:test_convnext_dcls")

    def test_models_side_by_side(self, tmp_path, capsys):
        output, picture = tmp_path / "made" / "speed.json", tmp_path / "speed.png"
        modes = list(throughput.MODES)
        options = ["--batch-size", 2, "--rounds", 3, "--output", output, "--picture", picture]
        run("throughput", "--models", *self.NAMES, "--modes", *modes, *options)
        result = json.loads(output.read_text())
        assert result["command"].startswith("python -m eval throughput --models test_convnext ")
        assert result["versions"]["torch"] == torch.__version__ and "threads" in result["machine"]
        assert [(r["mode"], r["model"]) for r in result["rows"]] == [
            (m, n) for m in modes for n in self.NAMES
        ]
        for row in result["rows"]:
            first = next(r for r in result["rows"] if r["mode"] == row["mode"])
            assert row["speed"] == pytest.approx(first["ms"]["median"] / row["ms"]["median"], rel=1e-3)
            assert row["images_per_second"] == pytest.approx(2000 / row["ms"]["median"], rel=1e-2)
            assert row["layout"] in throughput.LAYOUTS and row["ms"]["runs"] == 3
        peak = {mode: [r["peak_bytes"] for r in result["rows"] if r["mode"] == mode] for mode in modes}
        assert all(t > 2 * i for t, i in zip(peak["train"], peak["inference"], strict=True))
        plain, ours, theirs = (result["costs"][name] for name in self.NAMES)
        assert plain["parameters"] < ours["deployed_parameters"]
        assert plain["macs"] < ours["macs"] == theirs["macs"]
        table = capsys.readouterr().out
        assert table.count("authors:test_convnext_dcls") == len(modes)
        assert min(Image.open(picture).size) > 100

    def test_models_of_ones_own(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "mine_for_a_test.py").write_text(MINE)
        (tmp_path / "broken_for_a_test.py").write_text("raise KeyError('x')")
        monkeypatch.syspath_prepend(tmp_path)
        options = ["--modes", "inference", "--rounds", 1, "--img-size", 32, "--batch-size", 1]
        run("throughput", "--import", "mine_for_a_test", "--models", "mine_for_a_test", *options)
        assert "| mine_for_a_test | inference |" in capsys.readouterr().out
        for name, why in {
            "nowhere.at_all": "No module named 'nowhere'",
            "broken_for_a_test": "KeyError",
        }.items():
            with pytest.raises(ValueError, match=f"--import {name}: it cannot be imported .*{why}.*; give"):
                run("throughput", "--import", name, "--models", "test_convnext")

    def test_memory_of_a_training_step(self):
        """Of one convolution and two losses' worth of nothing else: its output, and two gradients."""
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1, bias=False), torch.nn.Flatten())
        images = torch.randn(2, 1, 64, 64)
        output = 4 * 2 * 8 * 64 * 64
        inference = timing.peak_memory(steps.step_of(model, images, "inference", torch.float32))
        assert output <= inference < 1.1 * output
        training = timing.peak_memory(steps.step_of(model, images, "train", torch.float32))
        assert 2 * output <= training < 5 * output

    @pytest.mark.slow
    def test_compiled_models_side_by_side(self, tmp_path):
        output = tmp_path / "compiled.json"
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        options = ["--compile", "--batch-size", 2, "--rounds", 3, "--output", output]
        run("throughput", "--models", *self.NAMES[:2], "--modes", "train", "inference", *options)
        result = json.loads(output.read_text())
        assert " --compile " in result["command"]
        assert [row["model"] for row in result["rows"]] == [*self.NAMES[:2]] * 2
        layouts = len(throughput.LAYOUTS)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(result["rows"]) * layouts

    def test_each_mode_is_what_it_says(self):
        settings = throughput.Settings(batch_size=1)
        built = {mode: throughput.build("test_convnext_dcls", mode) for mode in ("train", "inference")}
        built["deployed"], _ = throughput.deployed("test_convnext_dcls", settings)
        assert [mode for mode, model in built.items() if model.training] == ["train"]

        def dcls(mode):
            return [m for m in built[mode].modules() if isinstance(m, Dcls2d)]

        assert dcls("train") and dcls("inference") and not dcls("deployed")
        trimmed, _ = throughput.deployed("trimmed:test_convnext_dcls", settings)
        sizes = [m.stages[0].blocks[0].conv_dw.kernel_size for m in (trimmed, built["deployed"])]
        assert sizes[0] < sizes[1] or not trimmed.deployment["trimmed"]
        assert sizes[1] == (17, 17)
        theirs = throughput.build("authors:test_convnext_dcls", "train")
        layer = theirs.stages[0].blocks[0].conv_dw
        assert type(layer).__module__ == "DCLS.construct.modules" and layer.training

    @pytest.mark.parametrize("name", ["test_convnext", "resnet50"])
    def test_the_plain_twin_is_the_base_model(self, name):
        plain = throughput.build(f"plain:{name}_dcls", "train").state_dict()
        base = timm.create_model(name).state_dict()
        assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in base.items()}

    def test_models_of_sounds_get_spectrograms(self, monkeypatch):
        small = partial(timm.create_model, "convnext_dcls_audio_tiny", depths=(1, 1, 1, 1), dims=(8,) * 4)
        monkeypatch.setattr(throughput, "build", lambda name, mode, pretrained: small())
        seen = []
        monkeypatch.setattr(
            throughput, "step_of", lambda model, images, *_: lambda: seen.append(images.shape)
        )
        throughput.throughput(["convnext_dcls_audio_tiny"], ["inference"], rounds=1)
        assert set(seen) == {(4, 1, 128, 1001)}

    def test_fast_linear_layers(self, monkeypatch):
        monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
        model = throughput.build("fast:test_convnext_dcls", "train")
        assert model.training and any(isinstance(m, linear.FastLinear) for m in model.modules())
        with pytest.raises(ValueError, match="has fast linear layers anyway: leave out fast:"):
            throughput.build("fast:test_convnext_dcls", "deployed")

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    def test_engines_side_by_side(self, tmp_path):
        engines, output = list(ENGINES), tmp_path / "speed.json"
        options = ["--modes", "deployed", "--engine", *engines, "--batch-size", 1, "--img-size", 64]
        run("throughput", "--models", "test_convnext_dcls", *options, "--rounds", 3, "--output", output)
        assert [row["engine"] for row in json.loads(output.read_text())["rows"]] == engines
        with pytest.raises(ValueError, match="--engine is of deployed models: give --modes deployed"):
            run("throughput", "--models", "test_convnext", "--modes", "train", "--engine", "openvino")
        with pytest.raises(ValueError, match="onnxruntime runs on the cpu, in float32"):
            run("throughput", "--models", "test_convnext", *options, "--dtype", "float16")

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    def test_engines_give_the_outputs(self, engine, tmp_path):
        model = torch.nn.Conv2d(3, 3, 17, padding=8, groups=3).eval()
        images = torch.randn(1, 3, 20, 24)
        output = engines.run_by(engine, model, images, torch.float32, True, tmp_path / "x.onnx")()
        torch.testing.assert_close(torch.as_tensor(output), model(images).detach(), rtol=1e-4, atol=1e-5)

    def test_only_deployed_models_are_trimmed(self):
        with pytest.raises(ValueError, match=r"trimmed:.* give --modes deployed"):
            throughput.build("trimmed:test_convnext_dcls", "inference")
        with pytest.raises(ValueError, match="trimmed"):
            throughput.build("authors:trimmed:test_convnext_dcls", "deployed")

    def test_a_training_step_trains(self):
        model = throughput.build("test_convnext_dcls", "train")
        before = [p.detach().clone() for p in model.parameters()]
        steps.step_of(model, torch.randn(2, 3, 64, 64), "train", torch.float32)()
        changed = [not torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True)]
        assert sum(changed) > len(changed) * 0.9


class TestLayers:
    def test_shapes_are_those_of_the_model(self):
        assert layer_times.shapes_of("convnext_dcls_tiny") == [
            (96, 56, 17),
            (192, 28, 17),
            (384, 14, 17),
            (768, 7, 17),
        ]

    def test_all_parts(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(layer_times, "FLUSHED", 2**16)  # fewer layers than a measurement needs
        output, picture = tmp_path / "layers.json", tmp_path / "layers.png"
        options = [
            "--models",
            "test_convnext_dcls",
            "--rounds",
            3,
            "--batch-sizes",
            1,
            "--kernel-sizes",
            3,
            7,
        ]
        run("layers", *options, "--device", "cpu", "--output", output, "--picture", picture)
        result = json.loads(output.read_text())
        assert {(r["version"]) for r in result["construction"]} == {"v0", "v1", "max", "gauss"}
        for row in result["construction"]:
            assert row["ratio"] == pytest.approx(
                row["ms"]["authors"]["median"] / row["ms"]["ours"]["median"], abs=0.01
            )
            assert (
                row["peak_bytes"]["authors"]
                > row["peak_bytes"]["ours"]
                > row["channels"] * row["kernel"] ** 2
            )
        assert {(r["kernel"], r["layout"]) for r in result["convolution"]} == {
            (k, layout) for k in (3, 7) for layout in layer_times.LAYOUTS
        }
        assert set(result["peers"][0]["ms"]) == {"dcls", "depthwise", "dense", "deformable"}
        printed = capsys.readouterr().out
        assert "kernel construction" in printed and "Over all" in printed
        assert min(Image.open(picture).size) > 100

    def test_passes_need_a_gpu(self):
        with pytest.raises(ValueError, match="--parts passes times kernels of a GPU"):
            run("layers", "--parts", "passes", "--device", "cpu")

    def test_the_table_of_passes_says_times_ratios_and_shares(self):
        row = {"kernel": 17, "channels": 96, "side": 56, "dtype": "bfloat16", "layout": "contiguous"}
        numbers = ((0.4, 6.3, 0.18), (0.4, 7.2, 0.18), (0.38, 14.8, None))
        rows = [
            row | {"pass": name, "ratio": round(theirs / ours, 2), "of_bound": share}
            | {"ms": {"ours": {"median": ours}, "torch": {"median": theirs}}}
            for name, (ours, theirs, share) in zip(passes.PASSES, numbers, strict=True)
        ]  # fmt: skip
        shown = passes.table({"rows": rows})
        assert "96, 56 x 56, 17" in shown and "400 (15.8x, 18 %)" in shown and "380 (39.0x)" in shown
        assert "All 3 ratios are between 15.75 and 39.0" in shown

    def test_the_bound_is_the_larger_one_of_products_and_bytes(self):
        images, kernel = torch.empty(1, 1, 16, 16).bfloat16(), torch.empty(1, 1, 17, 17)
        products = 2 * 16 * 16 * 16 * 16  # on an image smaller than the kernel every input meets every output
        rates = {"bfloat16": products, "bytes": 1e9}
        assert passes._bound(images, kernel, "forward", rates) == 1e3
        assert passes._bound(images, kernel, "forward", rates | {"bytes": 256}) == 4e3
        assert passes._bound(images.float(), kernel, "forward", rates) is None

    def test_every_call_builds_the_kernel_of_another_layer(self, monkeypatch):
        built = []
        pool = [torch.nn.Linear(2, 2) for _ in range(3)]

        def kernel(layer):
            built.append(layer)
            return layer.weight * 1

        grads = torch.ones(3, 2, 2)
        call = layer_times._in_rotation([partial(kernel, layer) for layer in pool], pool, grads)
        monkeypatch.setattr(torch.nn.Module, "named_parameters", None)  # not in the time of a call
        for _ in range(4):
            call()
        assert built == [*pool, pool[0]]

    def test_the_layers_are_larger_than_the_caches(self):
        found = layer_times._layers(768, 26, 23, "gauss", "cpu")
        assert sum(p.numel() for layer in found for p in layer.parameters()) >= timing.FLUSHED
        assert len({p.data_ptr() for layer in found for p in layer.parameters()}) == 4 * len(found)

    def test_peak_memory_is_that_of_tensors(self):
        def call():
            a = torch.zeros(1000)
            b = a + 1
            del a
            return b.sum()

        assert 8000 <= layer_times.peak_memory(call) < 12000


class TestGrowth:
    def test_one_number_changes_at_a_time(self, tmp_path, monkeypatch, capsys):
        with pytest.raises(ValueError, match="--model resnet50 has no twin with learned spacings"):
            run("growth", "--model", "resnet50")
        base = growth.Point(side=32, batch=1, kernel=7, elements=3)
        grid = {"side": (32, 64), "kernel": (7, 9), "elements": (3, 5)}
        monkeypatch.setattr(growth, "BASE", dict.fromkeys(growth.MODES, base))
        monkeypatch.setattr(growth, "GRID", dict.fromkeys(growth.MODES, grid))
        output, picture = tmp_path / "growth.json", tmp_path / "growth.png"
        options = ["--rounds", 1, "--device", "cpu", "--output", output, "--picture", picture]
        run("growth", "--model", "test_convnext", "--along", *grid, *options)
        rows = json.loads(output.read_text())["rows"]
        points = [(r["along"], r["mode"], r["side"], r["kernel"], r["elements"]) for r in rows]
        one = [("side", 32, 7, 3), ("side", 64, 7, 3), ("kernel", 32, 7, 3), ("kernel", 32, 9, 3)]
        one += [("elements", 32, 7, 3), ("elements", 32, 7, 5)]
        assert points == [(along, mode, *rest) for mode in growth.MODES for along, *rest in one]
        for row in rows:
            ms = row["ms"]
            assert set(ms) == set(row["layout"]) == {"test_convnext", "test_convnext_dcls"}
            ratio = ms["test_convnext_dcls"]["median"] / ms["test_convnext"]["median"]
            assert row["ratio"] == pytest.approx(ratio, abs=1e-3)
        assert rows[0]["ms"] == rows[2]["ms"] == rows[4]["ms"]  # measured once
        assert f"| side | 32: {rows[0]['ratio']:.2f} | 64: " in " ".join(capsys.readouterr().out.split())
        assert min(Image.open(picture).size) > 100


class TestLongKernels:
    def test_layers_that_reach_as_far(self, tmp_path, capsys):
        output = tmp_path / "long.json"
        options = ["--channels", 2, "--elements", 3, "--rounds", 1, "--device", "cpu", "--output", output]
        run("long_kernels", "--kernel-sizes", 9, 257, "--samples", 300, "--batch-sizes", 2, *options)
        rows = json.loads(output.read_text())["rows"]
        assert [(r["groups"], r["kernel"], r["mode"]) for r in rows] == [
            (g, k, mode) for g in (1, 2) for k in (9, 257) for mode in long_kernels.MODES
        ]
        assert all(set(r["ms"]) == {"dcls", "same", "dilated", "authors"} for r in rows)
        assert "| depthwise, 2 x 300, K 257 |" in capsys.readouterr().out

    def test_the_layer_of_the_authors_computes_the_same(self):
        layer = Dcls1d(4, 6, 3, padding=4, dilated_kernel_size=9, version="gauss")
        x = torch.randn(2, 4, 30)
        torch.testing.assert_close(peers.authors_layer(layer)(x), layer(x), rtol=1e-4, atol=1e-5)

    def test_taps_that_cannot_reach_as_far(self):
        with pytest.raises(ValueError, match="K - 1 must be a multiple of elements - 1"):
            run("long_kernels", "--kernel-sizes", 257, "--elements", 4)
