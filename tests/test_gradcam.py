"""Maps by their definitions and the grad-cam package, human maps from files, scores by SciPy."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from clickme_files import clickme_shard, jpeg, pictures, record, write_shard
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy import stats
from torch.nn import functional as F

import dcls_models  # noqa: F401
from dcls_models.images import transform_of
from eval.cli import main
from eval.interpretability.alignment import CEILING, compare, spearman, summarise
from eval.interpretability.cam import METHODS, THRESHOLD, layer_of, normalise, resize, weighted_activations
from eval.interpretability.clickme import ClickMe, blurred, open_human_maps, records_of
from eval.interpretability.features import stage_of
from hub.export import export

TINY = timm.list_models("test_*_dcls")  # one of each family
LAYERS = ["stages.3", "stages.3", "stages.3", "final_conv", "layer4"]


def trained_like(name: str) -> torch.nn.Module:
    """A model whose statistics and scales are those of no initialisation."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=9).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith(("gamma", "ls1.gamma", "ls2.gamma", "scale", "running_var")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of models for ``--model``."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("test_convnext_dcls", "test_resnet_dcls"):
        export(trained_like(name), folder / name)
    return {path.name: f"local-dir:{path}" for path in folder.iterdir()}


class TestMaps:
    @pytest.mark.parametrize(("name", "layer"), list(zip(TINY, LAYERS, strict=True)))
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_grad_cam_is_that_of_the_package(self, name: str, layer: str, channels_last: bool) -> None:
        model, images, classes = trained_like(name), torch.randn(3, 3, 96, 96), [1, 5, 2]
        assert layer_of(model) == layer
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weighted, logits = weighted_activations(
            model, images.to(memory_format=memory_format), torch.tensor(classes)
        )
        torch.testing.assert_close(logits, model(images).detach())
        with GradCAM(model, [model.get_submodule(layer)]) as package:
            cam = package(images, [ClassifierOutputTarget(c) for c in classes])
        ours = METHODS["grad-cam"](weighted)
        assert ours.shape[1:] == (3, 3) and (ours.amax((1, 2)) > 0).sum() >= 2
        # the package rescales before and after it resizes
        theirs = torch.from_numpy(cam)
        torch.testing.assert_close(normalise(resize(normalise(ours), (96, 96))), theirs, atol=2e-4, rtol=0)

    @pytest.mark.parametrize("name", TINY)
    def test_threshold_grad_cam_is_its_definition(self, name: str) -> None:
        model, image = trained_like(name), torch.randn(1, 3, 96, 96)
        kept = []
        hook = model.get_submodule(layer_of(model)).register_forward_hook(lambda m, i, o: kept.append(o))
        logits = model(image)
        hook.remove()
        best = logits.argmax().item()
        (gradient,) = torch.autograd.grad(logits[0, best], kept[0])
        total = torch.zeros(3, 3)
        for channel in range(gradient.shape[1]):
            weight = gradient[0, channel].sum() / 9
            total += torch.clamp(weight * kept[0][0, channel].detach(), min=0)
        mean = total / gradient.shape[1]
        mean = (mean - mean.min()) / (mean.max() - mean.min())
        floored = torch.where(mean < 0.3, 0.3, mean)
        found = METHODS["threshold-grad-cam"](weighted_activations(model, image)[0])
        torch.testing.assert_close(found[0], floored)
        torch.testing.assert_close(
            resize(found, (224, 224)), F.interpolate(floored[None, None], (224, 224), mode="bilinear")[0]
        )

    @pytest.mark.parametrize("name", TINY)
    def test_images_of_a_batch_do_not_see_each_other(self, name: str) -> None:
        model, images = trained_like(name), torch.randn(4, 3, 64, 64)
        together, _ = weighted_activations(model, images)
        alone = [weighted_activations(model, image[None])[0] for image in images]
        torch.testing.assert_close(together, torch.cat(alone))
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize("name", [*TINY, "swin", "in place"])
    def test_the_space_shows_the_same_maps(self, name: str) -> None:
        spec = importlib.util.spec_from_file_location("look", Path("hub/space/look.py"))
        look = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(look)
        assert look.THRESHOLD == THRESHOLD
        model, (image, _) = trained_like(name if name in TINY else "test_convnext_dcls"), pictures(1)[0]
        if name == "swin":  # its maps are (N, H, W, C)
            size = {"img_size": 64, "pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}
            model = timm.create_model(
                "swin_tiny_patch4_window7_224", num_classes=9, window_size=2, **size
            ).eval()
        elif name == "in place":
            model.norm_pre = torch.nn.ReLU(inplace=True)
        inputs = look.inputs_of(model, image)
        weighted, _ = weighted_activations(model, inputs)
        for threshold, method in enumerate(METHODS):
            maps = METHODS[method](weighted)
            maps = resize(maps if threshold else normalise(maps), inputs.shape[-2:])
            torch.testing.assert_close(maps[0], look.grad_cam(model, image, bool(threshold)))

    def test_nhwc_models_give_the_same_as_the_package(self) -> None:
        model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=9, img_size=64, window_size=2)
        model, images = model.eval(), torch.randn(2, 3, 64, 64)
        with GradCAM(
            model, [model.get_submodule(layer_of(model))], reshape_transform=lambda x: x.permute(0, 3, 1, 2)
        ) as package:
            theirs = torch.from_numpy(package(images, [ClassifierOutputTarget(0)] * 2))
        ours = METHODS["grad-cam"](weighted_activations(model, images, torch.tensor([0, 0]))[0])
        torch.testing.assert_close(normalise(resize(normalise(ours), (64, 64))), theirs, atol=2e-4, rtol=0)

    def test_what_is_constant_stays_constant(self) -> None:
        maps = torch.full((1, 7, 7), 0.3)
        maps[0, 2, 5] = 1.0
        assert (resize(maps, (224, 224)) == maps.min()).sum() > 30000
        assert normalise(torch.full((1, 2, 2), 5.0)).tolist() == [[[0, 0], [0, 0]]]

    def test_models_without_maps_say_so(self) -> None:
        with pytest.raises(ValueError, match=r"VisionTransformer gives \(1, 17, 64\)"):
            weighted_activations(timm.create_model("test_vit", img_size=64), torch.randn(1, 3, 64, 64))
        with pytest.raises(ValueError, match="ConvNeXtDcls takes inputs of 1 channels, images have 3"):
            transform_of(
                timm.create_model("test_convnext_dcls", pretrained_cfg_overlay={"input_size": (1, 64, 64)})
            )
        with pytest.raises(ValueError, match="Linear has no feature_info"):
            layer_of(torch.nn.Linear(1, 1))
        with pytest.raises(ValueError, match="has stages 0 to 3, got 4"):
            stage_of(timm.create_model("test_convnext_dcls"), 4)


class TestScores:
    def test_spearman_is_that_of_scipy(self) -> None:
        few = torch.randint(0, 4, (5, 9, 11)).float()  # many equal values
        floored = resize(torch.rand(5, 3, 3).clamp(min=0.6), (9, 11))
        for a, b in ((few, floored), (floored, torch.randn(5, 9, 11)), (-few, few)):
            expected = [stats.spearmanr(x.flatten(), y.flatten())[0] for x, y in zip(a, b, strict=True)]
            np.testing.assert_allclose(spearman(a, b), expected, atol=1e-12)

    def test_constant_maps_have_no_correlation(self) -> None:
        a, b = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
        a[0], b[1] = 0.3, 0
        assert spearman(a, b).isnan().tolist() == [True, True, False]

    def test_summary_is_over_the_ceiling_with_scipys_interval(self) -> None:
        scores = torch.cat([torch.rand(400, dtype=torch.float64), torch.tensor([torch.nan] * 3)])
        found = summarise(scores)
        mean = scores[:400].mean().item()
        assert (found["n"], found["flat"], found["ceiling"]) == (403, 3, 0.65753)
        assert found["spearman"] == pytest.approx(mean) and found["score"] == pytest.approx(mean / 0.65753)
        interval = stats.bootstrap(
            (scores[:400].numpy(),), np.mean, n_resamples=2000, method="percentile"
        ).confidence_interval
        assert (found["low"] * CEILING, found["high"] * CEILING) == pytest.approx(tuple(interval), abs=5e-3)
        assert summarise(scores) == found
        assert summarise(scores[400:]) | {"score": None, "n": 3, "flat": 3} == summarise(scores[400:])

    def test_a_gain_is_paired(self) -> None:
        base = torch.rand(50, dtype=torch.float64)
        better = base + 0.1
        better[0], base[1] = torch.nan, torch.nan
        gain = compare(better, base)
        assert [gain[k] * CEILING for k in ("gain", "gain_low", "gain_high")] == pytest.approx([0.1] * 3)


class TestClickMe:
    def test_records_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        for shard, first in (("val-10.tfrecords", 2), ("val-2.tfrecords", 0)):
            clickme_shard(tmp_path / shard, 2, first)
        data = open_human_maps(tmp_path)
        assert [data[i].label for i in range(len(data))] == [0, 1, 2, 3]
        for sample, (image, heatmap) in zip((data[i] for i in range(4)), pictures(4), strict=True):
            stored = np.array(Image.open(io.BytesIO(jpeg(image))), dtype=np.float32)
            rows = [(i + 0.5) * 256 / 224 - 0.5 for i in range(224)]  # bilinear, by hand, at two pixels
            for y, x in ((10, 200), (100, 3)):
                (t, u), (dt, du) = (int(rows[y]), int(rows[x])), (rows[y] % 1, rows[x] % 1)
                corners = stored[t : t + 2, u : u + 2]
                value = np.einsum("abc,a,b", corners, [1 - dt, dt], [1 - du, du])
                np.testing.assert_allclose(np.array(sample.image)[y, x], value.astype(np.uint8), atol=1)
            peaks = [
                np.unravel_index(m.argmax(), m.shape) for m in (sample.human.numpy(), np.asarray(heatmap))
            ]
            assert np.abs(np.array(peaks[0]) * 256 / 224 - peaks[1]).max() < 8

    def test_the_blur_is_the_studys(self) -> None:
        """``ClickMe_dataset/blur.py`` and ``clickMe.py``, pixel by pixel in NumPy."""
        clicks = np.random.default_rng(0).random((256, 256)) ** 20
        small = (clicks[1::4] + clicks[2::4]) / 2  # bilinear to a quarter reads the middle two of four
        small = (small[:, 1::4] + small[:, 2::4]) / 2
        xs, ys = np.meshgrid(np.arange(-5, 5), np.arange(4, -6, -1))
        kernel = np.exp(-(xs**2 + ys**2) / 200)
        kernel /= kernel.sum()
        padded = np.pad(small, (4, 5))  # TensorFlow's SAME puts the odd pixel behind
        blur = np.lib.stride_tricks.sliding_window_view(padded, (10, 10))
        blur = torch.from_numpy(np.einsum("ijab,ab->ij", blur, kernel))
        expected = F.interpolate(blur[None, None], (224, 224), mode="bilinear")[0, 0]
        found = blurred(torch.from_numpy(clicks).float())
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)

    def test_broken_shards_are_named(self, tmp_path: Path) -> None:
        whole = clickme_shard(tmp_path / "whole", 2).read_bytes()
        second = list(records_of(tmp_path / "whole"))[1][0] - 12
        broken = {
            "short": (whole[:-9], "cut short: the record at byte"),
            "shorter": (whole[: second + 5], f"no record at byte {second}"),
            "noise": (b"\x89PNG" + whole[4:], "no record at byte 0"),
            "empty": (b"", "is empty"),
            "flipped": (whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], "is damaged"),
        }
        for name, (content, message) in broken.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name}.*{message}|{message}.*"):
                ClickMe([tmp_path / name])[0]
        assert ClickMe([tmp_path / "flipped"])[1].label == 1, "the other record is whole"

    def test_records_that_are_not_clickmes_are_named(self, tmp_path: Path) -> None:
        image, heatmap = pictures(1)[0]
        small = jpeg(heatmap.resize((64, 64)))
        for data, message in (
            (record(jpeg(image), small, 0), r"a heatmap of \(64, 64\) pixels"),
            (record(b"no jpeg", small, 0), "UnidentifiedImageError"),
            (b"\x0a\x02\x0a\x00", "KeyError"),
            (b"\xff\xff", "expected the features image and heatmap"),
        ):
            shard = write_shard(tmp_path / "odd", [data])
            with pytest.raises(ValueError, match=message) as error:
                open_human_maps(shard)[0]
            assert str(shard) in str(error.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nothing to read"):
            open_human_maps(tmp_path)
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            open_human_maps(tmp_path / "nowhere")


def write_pairs(root: Path, count: int, suffix: str = ".png") -> Path:
    for i, (image, heatmap) in enumerate(pictures(count, 96)):
        for folder in ("images", "maps"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image.save(root / "images" / f"{i}.jpg")
        if suffix == ".png":
            heatmap.save(root / "maps" / f"{i}.png")
        else:
            np.save(root / "maps" / f"{i}.npy", np.array(heatmap) / 255)
    return root


class TestPairs:
    @pytest.mark.parametrize("suffix", [".png", ".npy"])
    def test_pairs_are_read(self, tmp_path: Path, suffix: str) -> None:
        data = open_human_maps(write_pairs(tmp_path, 2, suffix))
        (_, heatmap) = pictures(2, 96)[1]
        expected = Image.fromarray(np.array(heatmap, dtype=np.float32)).resize(
            (224, 224), Image.Resampling.BILINEAR
        )
        expected = torch.from_numpy(np.array(expected)) / (1 if suffix == ".png" else 255)
        torch.testing.assert_close(data[1].human, expected, atol=1e-3, rtol=1e-3)
        assert len(data) == 2 and data[1].label == -1

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        def broken(name: str, damage: object, message: str) -> None:
            root = write_pairs(tmp_path / name, 2)
            damage(root)
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                [open_human_maps(root)[i] for i in range(2)]

        wrong = Image.new("L", (95, 96))
        broken(
            "size", lambda r: wrong.save(r / "maps" / "1.png"), r"1\.png has 95 x 96 pixels, expected 96 x 96"
        )
        colour = Image.new("RGB", (96, 96))
        broken("colour", lambda r: colour.save(r / "maps" / "1.png"), r"1\.png must have one channel")
        palette = colour.convert("P")
        broken("palette", lambda r: palette.save(r / "maps" / "1.png"), r"1\.png must have one channel")
        broken(
            "image",
            lambda r: (r / "images" / "0.jpg").write_bytes(b"x"),
            r"0\.jpg cannot be read as an image",
        )
        broken("map", lambda r: (r / "maps" / "0.png").write_bytes(b"x"), r"0\.png cannot be read as a map")
        broken("no map", lambda r: (r / "maps" / "0.png").unlink(), r"0\.jpg has no partner")
        broken("no image", lambda r: (r / "images" / "1.jpg").unlink(), r"1\.png has no partner")
        broken("twice", lambda r: colour.save(r / "images" / "1.bmp"), "have the same name")
        broken("no folder", lambda r: (r / "maps").rename(r / "heat"), "no folder .*maps")


class TestCommand:
    def test_two_models_two_methods(
        self, tmp_path: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        shard = clickme_shard(tmp_path / "val-0.tfrecords", 5)
        output, picture = tmp_path / "out" / "r.json", tmp_path / "out" / "p.png"
        ours, baseline = models["test_convnext_dcls"], models["test_resnet_dcls"]
        common = ["--workers", "0", "--batch-size", "2", "--device", "cpu"]
        which = ["--model", ours, "--baseline", baseline, "--data", str(shard)]
        main(["gradcam", *which, *common, "--output", str(output), "--picture", str(picture)])
        result = json.loads(output.read_text())
        assert [(r["model"], r["method"]) for r in result["rows"]] == [
            (m, method) for m in (baseline, ours) for method in METHODS
        ]
        assert result["task"] == "gradcam" and result["method"] == "grad-cam" and result["n"] == 5
        assert result["target"] == "label" and result["pictures"] == ["p.png"]
        assert result["model"] == ours and "gain" in result
        assert {"score", "spearman", "ceiling", "low", "high", "flat", "command"} <= result.keys()
        assert Image.open(picture).width > 500
        assert f"{baseline}, threshold-grad-cam: score" in capsys.readouterr().out

    def test_a_score_is_what_a_plain_loop_gives(self, tmp_path: Path, models: dict[str, str]) -> None:
        data = write_pairs(tmp_path / "pairs", 3)
        output = tmp_path / "r.json"
        model, which = trained_like("test_resnet_dcls"), models["test_resnet_dcls"]
        method = ["--method", "grad-cam", "--workers", "2", "--device", "cpu"]
        main(["gradcam", "--model", which, "--data", str(data), *method, "--output", str(output)])
        scores = []
        config = timm.data.resolve_data_config({}, model=model)
        for image, heatmap in zip(sorted(data.glob("images/*")), sorted(data.glob("maps/*")), strict=True):
            transform = timm.data.create_transform(**config | {"crop_pct": 1.0})  # square: nothing is cut
            weighted, _ = weighted_activations(model, transform(Image.open(image).convert("RGB"))[None])
            cam = F.interpolate(weighted.mean(1, keepdim=True).relu(), (224, 224), mode="bilinear")
            human = torch.from_numpy(np.array(Image.open(heatmap), dtype=np.float32))[None, None]
            human = F.interpolate(human, (224, 224), mode="bilinear")
            scores.append(stats.spearmanr(cam.flatten(), human.flatten())[0])
        assert json.loads(output.read_text())["spearman"] == pytest.approx(np.mean(scores), abs=1e-4)

    def test_a_label_that_the_model_does_not_know(self, tmp_path: Path, models: dict[str, str]) -> None:
        image, heatmap = pictures(1)[0]
        shard = write_shard(tmp_path / "s", [record(jpeg(image), jpeg(heatmap), 9)])
        with pytest.raises(ValueError, match="the label 9, expected 0 to 8"):
            main(["gradcam", "--model", models["test_resnet_dcls"], "--data", str(shard), "--workers", "0"])
        pairs = write_pairs(tmp_path / "pairs", 1)
        command = ["gradcam", "--model", models["test_resnet_dcls"], "--data", str(pairs), "--workers", "0"]
        with pytest.raises(ValueError, match="no label"):
            main([*command, "--target", "label"])

    def test_a_layer_can_be_chosen(self, tmp_path: Path) -> None:
        export(timm.create_model("test_convnext_dcls", num_classes=9), tmp_path / "model")
        cfg = json.loads((tmp_path / "model" / "config.json").read_text())
        cfg["pretrained_cfg"]["input_size"] = [3, 32, 32]
        (tmp_path / "model" / "config.json").write_text(json.dumps(cfg))
        data, output = write_pairs(tmp_path / "pairs", 2), tmp_path / "r.json"
        command = ["gradcam", "--model", f"local-dir:{tmp_path / 'model'}", "--data", str(data)]
        command += ["--workers", "0", "--device", "cpu", "--output", str(output)]
        with pytest.raises(ValueError, match=r"stages\.3 gives one pixel .* as --layer stages\.1"):
            main(command)
        assert not output.exists()
        with pytest.raises(ValueError, match=r"no layer nonsense, its stages are stages\.0, stages\.1"):
            main([*command, "--layer", "nonsense"])
        main([*command, "--layer", "stages.1", "--limit", "1"])
        result = json.loads(output.read_text())
        assert (result["layer"], result["n"]) == ("stages.1", 1)

    def test_an_error_of_a_reading_process_is_one_line(self, tmp_path: Path, models: dict[str, str]) -> None:
        data = write_pairs(tmp_path, 2)
        (data / "images" / "1.jpg").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"^/\S+1\.jpg cannot be read") as error:
            main(["gradcam", "--model", models["test_resnet_dcls"], "--data", str(data), "--workers", "1"])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("odd", [np.ones((9, 9)) + 1j, np.full((9, 9), "1"), np.full((9, 9), 1e300)])
def test_a_map_that_is_no_map(tmp_path: Path, odd: np.ndarray) -> None:
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    np.save(tmp_path / "maps" / "a.npy", odd)
    with pytest.raises(ValueError, match=r"a\.npy (cannot be read as a map: it holds|must have one channel)"):
        _ = open_human_maps(tmp_path)[0]
