"""Segmentation and detection: every family in both, on digits and on folders; recipes; what they measure."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from pycocotools import mask as rle

import dcls_models  # noqa: F401
from dcls_models._timm import save_for_hf
from train.dense import detection, segmentation
from train.dense.base import layer_of, unzipped
from train.dense.detection import Coco, Detector, DigitBoxes
from train.dense.scenes import Scenes
from train.dense.segmentation import IGNORED, DigitMasks, Masks, Segmenter
from train.errors import DataError

CONFIGS = Path(__file__).parent.parent / "configs" / "dense"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
FAMILIES = timm.list_models("test_*_dcls")
CPU = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.num_workers", "0"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--positions.kernels", "0"),
]
SMALL = ["--data.scenes", "8", "--data.val_scenes", "2", "--data.scene_side", "64", "--data.batch_size", "4"]
LENGTH = {
    **{"datamodule": SimpleNamespace(train_batches=lambda devices: 10), "world_size": 1},
    **{"limit_train_batches": 1.0, "accumulate_grad_batches": 1, "max_epochs": 36, "max_steps": -1},
}
SMALL_RCNN = {"box_batch_size_per_image": 8, "rpn_post_nms_top_n_train": 20, "box_detections_per_img": 5}


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    """A folder as ADE20K's: four classes from 1, and 0 where there is none; images of different sizes."""
    root = tmp_path_factory.mktemp("ade20k")
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, mask = DigitMasks(count, split == "training")[i]
            side = 96 - 10 * i
            pixels = (255 * image).byte().permute(1, 2, 0).numpy()[:side]
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.jpg")
            Image.fromarray(mask.clamp(max=4).byte().numpy()[:side]).save(
                root / "annotations" / split / f"{i}.png"
            )
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder as COCO's: masks as polygons and run lengths, a crowd, and an image without anything."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for split, count in (("train2017", 5), ("val2017", 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            scene = Scenes(count, split == "train2017")[i]
            pixels = (255 * scene.image).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(root / split / f"{i}.jpg")
            images.append({"id": i, "file_name": f"{i}.jpg", "height": 96, "width": 96})
            for j, (mask, label) in enumerate(zip(scene.masks, scene.labels, strict=True)):
                if i == count - 1:
                    continue
                encoded = rle.encode(np.asfortranarray(mask.byte().numpy()))
                x, y, w, h = rle.toBbox(encoded).tolist()
                segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
                if j == 1:
                    segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": segmentation}
                ids = {"id": len(annotations) + 1, "image_id": i, "category_id": int(label) + 1}
                annotations.append({**ids, **box, "iscrowd": int(j == 2)})
        categories = [{"id": d + 1, "name": str(d)} for d in range(10)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


class TestScenes:
    def test_scene_is_what_its_masks_say(self):
        scenes = Scenes(20, training=True)
        for scene in (scenes[i] for i in range(20)):
            assert scene.image.shape == (3, 96, 96)
            assert scene.image.min() >= 0 and scene.image.max() <= 1
            assert len(scene.masks) == len(scene.labels) > 0
            assert scene.masks.sum(0).max() == 1, "digits do not overlap"
            assert scene.masks.flatten(1).any(1).all()
            inside, outside = scene.image[:, scene.masks.any(0)], scene.image[:, ~scene.masks.any(0)]
            assert inside.mean() > outside.mean() + 0.1
        assert set(torch.cat([s.labels for s in scenes]).tolist()) == set(range(10))

    def test_scene_is_always_the_same_and_no_two_are(self):
        one, other = Scenes(3, training=True), Scenes(3, training=True)
        assert torch.equal(one[1].image, other[1].image)
        assert not torch.equal(one[1].image, one[2].image)
        assert len(list(one)) == 3

    def test_validation_is_of_other_digits(self):
        train, val = Scenes(1, training=True).digits, Scenes(1, training=False).digits
        assert (len(train), len(val)) == (1437, 360)

    def test_one_mask_of_numbers(self):
        scene, (image, mask) = Scenes(1, training=True)[0], DigitMasks(1, training=True)[0]
        assert torch.equal(image, scene.image)
        assert set(mask.unique().tolist()) == {0, *(scene.labels + 1).tolist()}
        assert torch.equal(mask == scene.labels[0] + 1, scene.masks[scene.labels == scene.labels[0]].any(0))

    def test_boxes_hold_their_masks(self):
        _, target = DigitBoxes(1, training=True)[0]
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            x0, y0, x1, y1 = box
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert mask[y0, x0:x1].any() and mask[y1 - 1, x0:x1].any()
            assert mask[y0:y1, x0].any() and mask[y0:y1, x1 - 1].any()


def learns(module):
    """Every parameter has a gradient, but for positions of the last stage, where features are small."""
    missing = [n for n, p in module.model.named_parameters() if p.grad is None or not p.grad.any()]
    backbone, _ = module.parts()
    positions = [n for n, _ in backbone.named_parameters() if n.endswith("positions")]
    return len(positions) > 1 and all(n.endswith(positions[-1]) for n in missing)


def kwargs_of(name):
    if "resnet" in name:
        return {"zero_init_last": False}  # else only the last norms have gradients
    return {}


class TestFamilies:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_segmentation(self, name):
        module = Segmenter(name, num_classes=11, decoder_channels=16, model_kwargs=kwargs_of(name))
        module.log = lambda *_, **__: None
        batch = unzipped([DigitMasks(2, training=True)[i] for i in range(2)])
        assert module(torch.stack(batch[0])[..., :70, :50]).shape == (2, 11, 70, 50)
        module.training_step(batch, 0).backward()
        assert learns(module)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_detection(self, name):
        module = Detector(
            name,
            num_classes=11,
            model_kwargs=kwargs_of(name),
            channels=16,
            min_size=(96,),
            max_size=96,
            rcnn_kwargs=SMALL_RCNN,
        )
        module.log = module.log_dict = lambda *_, **__: None
        batch = unzipped([DigitBoxes(2, training=True)[i] for i in range(2)])
        module.training_step(batch, 0).backward()
        assert learns(module)
        levels = module.model.backbone.eval()(torch.rand(1, 3, 64, 64))
        assert [tuple(f.shape) for f in levels.values()] == [(1, 16, s, s) for s in (16, 8, 4, 2, 1)]


class TestWeights:
    """What smp's encoder and the pyramid start from is what a classifier that was saved has learned."""

    @pytest.fixture
    def saved(self, tmp_path):
        model = timm.create_model("test_convnext_dcls", num_classes=7)
        save_for_hf(model, str(tmp_path), safe_serialization=True)
        return f"local-dir:{tmp_path}", model.state_dict()

    @pytest.mark.parametrize("make", [Segmenter, Detector])
    def test_from_a_folder(self, make, saved):
        name, weights = saved
        found = make(name, pretrained=True, num_classes=5).parts()[0].state_dict()
        assert found
        for key, value in found.items():
            assert torch.equal(value, weights[key.replace("stages_", "stages.").replace("stem_", "stem.")])

    @pytest.mark.parametrize("make", [Segmenter, Detector])
    def test_without_published_weights_it_says_so(self, make, caplog):
        make("test_convnext_dcls", pretrained=True, num_classes=5)
        assert "RANDOM" in caplog.text

    @pytest.mark.parametrize("make", [Segmenter, Detector])
    def test_unknown_model(self, make):
        with pytest.raises(ValueError, match="timm knows no model 'convnext_dclz'"):
            make("convnext_dclz")


# Powers of the layer decay of what starts with these names
ADE20K_TINY = {"stem": 7, "stages_0": 6, "stages_1": 5, "stages_2": 4, "stages_3": 3}
ADE20K_SMALL = {"stem": 13, "stages_0": 12, "stages_1": 11, "stages_2": 10, "stages_3": 9}
COCO_TINY = {"stem": 7, "stages_0": 6, "stages_1": 5, "stages_2.blocks.2.": 4, "stages_2.blocks.3.": 3,
             "stages_2.blocks.8.": 2, "stages_3": 1}  # fmt: skip
COCO_SMALL = {"stem": 13, "stages_1.downsample": 11, "stages_2.downsample": 10, "stages_2.blocks.5.": 9,
              "stages_2.blocks.26.": 2, "stages_3": 1}  # fmt: skip


class TestLearningRates:
    """Against the factors of the authors' optimizer constructor, written out."""

    @pytest.mark.parametrize(
        ("make", "recipe", "decay", "powers"),
        [
            (Segmenter, "ade20k_convnext_dcls_tiny", 0.9, ADE20K_TINY),
            (Segmenter, "ade20k_convnext_dcls_small", 0.9, ADE20K_SMALL),
            (Detector, "coco_convnext_dcls_tiny", 0.7, COCO_TINY),
            (Detector, "coco_convnext_dcls_small", 0.7, COCO_SMALL),
        ],
    )
    def test_of_the_recipes(self, make, recipe, decay, powers):
        model = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())["model"] | {"pretrained": False}
        model["model_kwargs"] |= {"dims": (8, 8, 8, 8), "kernel_count": 3}
        module = make(num_classes=3, **model)
        module._trainer = SimpleNamespace(**LENGTH)
        optimizer = module.configure_optimizers()["optimizer"]
        base = model["lr"]
        rates = {id(p): g["initial_lr"] / base for g in optimizer.param_groups for p in g["params"]}
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(rates)
        assert rates.keys() == {id(p) for p in module.model.parameters()}
        backbone, heads = module.parts()
        assert {rates[id(p)] for p in heads.parameters()} == {1.0}
        for start, power in powers.items():
            found = [rates[id(p)] for n, p in backbone.named_parameters() if n.startswith(start)]
            assert found == pytest.approx([decay**power] * len(found)) and found, start  # also positions: 1x

    @pytest.mark.parametrize("name", FAMILIES)
    def test_layers_of_every_family(self, name):
        names = [n for n, _ in timm.create_model(name, features_only=True).named_parameters()]
        stages = [layer_of(n, None) for n in names]
        assert stages == sorted(stages)
        assert set(stages) == {(-1, 0), *((int("layer1" in " ".join(names)) + i, 0) for i in range(4))}

    def test_blocks_per_layer(self):
        assert layer_of("stages_2.blocks.8.gamma", 3) == (2, 2)
        assert layer_of("stages_2.downsample.0.weight", 3) == layer_of("stages_2.positions", 3) == (2, 0)
        assert layer_of("layer3.4.conv1.weight", 3) == (3, 1)

    def test_positions_are_five_times_as_fast_by_default(self):
        module = Segmenter("test_convnext_dcls", num_classes=3, lr=0.1)
        module._trainer = SimpleNamespace(**LENGTH)
        groups = module.configure_optimizers()["optimizer"].param_groups
        assert {g["initial_lr"] for g in groups if g["name"] == "positions"} == {0.5}


def fit(main, run, *flags):
    main(["fit", *flags, *CPU, "--trainer.default_root_dir", str(run)])
    return json.loads((run / "results.json").read_text())


TINY = {
    segmentation.main: ["--model.name", "test_convnext_dcls", "--model.decoder_channels", "16"],
    detection.main: [
        *("--model.name", "test_convnext_dcls", "--model.channels", "16"),
        *("--model.min_size", "[64]", "--model.max_size", "64"),
        *("--model.rcnn_kwargs", json.dumps(SMALL_RCNN)),
    ],
}
MAINS = pytest.mark.parametrize("main", TINY, ids=lambda m: m.__module__)


class TestRuns:
    @pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
    def test_recipe_starts(self, recipe, ade20k, coco, tmp_path):
        config = yaml.safe_load(recipe.read_text())
        main = segmentation.main if "decoder_channels" in config["model"] else detection.main
        root = {"ade20k": ade20k, "coco": coco}.get(recipe.stem.partition("_")[0])
        where = ["--data.root", str(root)] if root else SMALL[:4]
        if main is segmentation.main and root:
            where += ["--data.size", "64"]
        length = ["--trainer.max_steps", "2", "--trainer.max_epochs", "-1", "--trainer.precision", "32-true"]
        length += ["--trainer.sync_batchnorm", "false"]
        often = ["--trainer.val_check_interval", "1", "--trainer.check_val_every_n_epoch", "1"]
        scratch = ["--model.pretrained", "false", "--data.batch_size", "2"]
        if root:
            scratch += ["--model.model_kwargs.dims", "[8,8,8,8]", "--model.model_kwargs.depths", "[1,1,1,1]"]
        tiny = [f for f in TINY[main][2:] if root or main is detection.main]
        flags = [*tiny, *where, *length, *often, *scratch]
        found = fit(main, tmp_path, "--config", str(recipe), *flags)
        assert found["updates"] == 2
        assert found["model"] == config["model"]["name"]
        assert found["model_kwargs"]["ls_init_value"] == 1.0
        saved = yaml.safe_load((tmp_path / "logs" / "config.yaml").read_text())
        for key in ("lr", "weight_decay", "layer_decay", "backbone_lr_scale", "warmup_updates", "sched"):
            assert saved["model"][key] == config["model"].get(key, saved["model"][key])

    @MAINS
    def test_result_and_resuming(self, main, tmp_path):
        found = fit(main, tmp_path, *TINY[main], *SMALL, "--trainer.max_epochs", "1")
        metrics = set(found["before"])
        assert metrics == ({"miou", "pixels"} if main is segmentation.main else set(detection.MEASURED))
        assert all(0 <= found[k] <= 100 and 0 <= found["before"][k] <= 100 for k in metrics)
        assert (found["model"], found["n"], found["updates"]) == ("test_convnext_dcls", 2, 2)
        assert found["task"] == main.__module__.removeprefix("train.dense.")
        assert found["versions"]["timm"] == timm.__version__
        more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
        resumed = fit(main, tmp_path, *TINY[main], *SMALL, *more)
        assert resumed["updates"] == 4
        stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert stored["lr_schedulers"][0]["t_initial"] == 4, "the schedule of two epochs"
        assert resumed["before"] == {k: found[k] for k in metrics}, "before: what the checkpoint has"

    @MAINS
    def test_validate(self, main, tmp_path, capsys):
        fit(main, tmp_path, *TINY[main], *SMALL, "--trainer.max_epochs", "1")
        where = ["--trainer.default_root_dir", str(tmp_path), "--ckpt_path", "last"]
        main(["validate", *CPU, *TINY[main], *SMALL, *where])
        assert "val/" in capsys.readouterr().out

    @MAINS
    def test_fast_dev_run_leaves_nothing(self, main, tmp_path):
        flags = ["--trainer.default_root_dir", str(tmp_path), "--trainer.fast_dev_run", "true"]
        main(["fit", *CPU, *TINY[main], *SMALL, *flags])
        assert not list(tmp_path.rglob("*.json"))


class TestMetrics:
    def test_segmentation_counts_what_it_says(self):
        module = Segmenter("test_convnext_dcls", num_classes=3, decoder_channels=8)
        logits = torch.eye(3)[torch.tensor([[0, 0, 1, 1]])].permute(2, 0, 1)[None]
        module.forward = lambda images: logits
        module.validation_step(((torch.rand(3, 1, 4),), (torch.tensor([[0, 1, 1, IGNORED]]),)), 0)
        logged = {}
        module.log_dict = lambda found: logged.update(found)
        module.on_validation_epoch_end()
        assert logged["val/miou"] == pytest.approx(50)  # one of two, one of two, and a class that is nowhere
        assert logged["val/pixels"] == pytest.approx(200 / 3)

    def test_detection_of_what_is_there_is_perfect(self):
        samples = [DigitBoxes(4, training=False)[i] for i in range(4)]
        module = Detector("test_convnext_dcls", num_classes=11, channels=8)
        found = iter([{**t, "scores": torch.ones(len(t["labels"])), "masks": t["masks"][:, None]}
                      for _, t in samples])  # fmt: skip
        module.model.forward = lambda images: [next(found) for _ in images]
        module.validation_step(unzipped(samples), 0)
        logged = {}
        module.log_dict = lambda found: logged.update(found)
        module.on_validation_epoch_end()
        assert {k: float(v) for k, v in logged.items()} == dict.fromkeys(
            ("val/box_ap", "val/box_ap50", "val/mask_ap", "val/mask_ap50"), pytest.approx(100)
        )


class TestFolders:
    def masks(self, root, split="training", classes=4, training=True):
        return Masks(root, split, classes, 64, True, segmentation.augmentation(64) if training else None)

    def test_training_crops(self, ade20k):
        images, masks = unzipped(list(self.masks(ade20k)))
        assert {i.shape for i in images} == {(3, 64, 64)} and {m.shape for m in masks} == {(64, 64)}
        assert all(i.dtype == torch.float32 and i.min() >= 0 and i.max() <= 1 for i in images)
        assert set(torch.cat([m.flatten() for m in masks]).tolist()) <= {0, 1, 2, 3, IGNORED}
        assert all(type(t) is torch.Tensor for t in (*images, *masks))

    def test_validation_masks_keep_their_size(self, ade20k):
        image, mask = self.masks(ade20k, "validation", training=False)[1]
        assert image.shape == (3, 64, 71)
        assert mask.shape == (86, 96)
        stored = np.array(Image.open(ade20k / "annotations" / "validation" / "1.png")).astype(int)
        assert np.array_equal(mask, np.where(stored == 0, IGNORED, stored - 1))

    @pytest.mark.parametrize("part", ["images", "annotations"])
    @pytest.mark.parametrize("size", [0, 60])
    def test_a_file_that_cannot_be_read_is_named(self, part, size, ade20k, tmp_path):
        root = shutil.copytree(ade20k, tmp_path / "scenes")
        (file,) = (root / part / "validation").glob("1.*")
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(DataError, match=re.escape(f"{file} cannot be read (")):
            self.masks(root, "validation", training=False)[1]

    def test_255_is_no_class_whatever_0_is(self, tmp_path):
        for kind, values in (("images", [[9, 9, 9, 9]]), ("annotations", [[0, 1, 4, 255]])):
            (tmp_path / kind / "training").mkdir(parents=True)
            Image.fromarray(np.array(values, np.uint8)).save(tmp_path / kind / "training" / "a.png")
        _, mask = self.masks(tmp_path, training=False)[0]
        assert mask.tolist() == [[IGNORED, 0, 3, IGNORED]]

    def test_what_systems_leave_behind_is_left_out(self, ade20k, tmp_path, caplog):
        shutil.copytree(ade20k, tmp_path, dirs_exist_ok=True)
        for name in (".DS_Store", "Thumbs.db", "._0.jpg", "notes.txt"):
            (tmp_path / "images" / "training" / name).write_bytes(b"")
        assert [p.name for p in self.masks(tmp_path).images] == [f"{i}.jpg" for i in range(4)]
        assert caplog.text.count("left out of") == 1

    def test_images_in_folders_go_with_masks_in_folders(self, ade20k, tmp_path):
        for kind in ("images", "annotations"):
            shutil.copytree(ade20k / kind / "training", tmp_path / kind / "training" / "city.1")
        masks = self.masks(tmp_path)
        assert len(masks) == 4 and all("city.1" in str(path) for path in masks.masks)
        assert masks[0][0].shape[1:] == masks[0][1].shape

    def test_images_that_share_a_mask_are_refused(self, ade20k, tmp_path):
        shutil.copytree(ade20k, tmp_path, dirs_exist_ok=True)
        images = tmp_path / "images" / "training"
        Image.open(images / "0.jpg").save(images / "0.png")
        with pytest.raises(ValueError, match=r"share a mask, rename them: .*0\.jpg.*0\.png"):
            self.masks(tmp_path)

    def test_masks_with_a_palette_are_numbers_of_classes(self, ade20k, tmp_path):
        shutil.copytree(ade20k, tmp_path, dirs_exist_ok=True)
        expected = self.masks(ade20k, training=False)[1][1]
        file = tmp_path / "annotations" / "training" / "1.png"
        mask = Image.open(file).copy()
        mask.putpalette([200, 3, 9] * 256)
        mask.save(file)
        assert Image.open(file).mode == "P"
        assert torch.equal(self.masks(tmp_path, training=False)[1][1], expected)

    def test_errors_name_the_file(self, ade20k, tmp_path):
        with pytest.raises(ValueError, match=r"0.png has class 3, but data.classes is 2"):
            list(self.masks(ade20k, classes=2, training=False))
        with pytest.raises(FileNotFoundError, match="there are no images in"):
            self.masks(tmp_path)
        for kind, side, mode in (("images", 8, "RGB"), ("annotations", 9, "L")):
            (tmp_path / kind / "training").mkdir(parents=True)
            Image.new(mode, (side, side)).save(tmp_path / kind / "training" / "a.png")
        with pytest.raises(
            ValueError, match=r"annotations/training/a.png must have one channel and the size"
        ):
            self.masks(tmp_path)[0]
        (tmp_path / "annotations" / "training" / "a.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"a.png has no mask .*annotations/training/a.png"):
            self.masks(tmp_path)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", '{"images": [{"id": 1}], "annotations": 3}', '{"images": [], "categories": []}'],
    )
    def test_what_is_no_file_of_coco_is_named(self, tmp_path, text):
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "instances_val2017.json").write_text(text)
        with pytest.raises(ValueError, match=r"instances_val2017.json (is no file of COCO's|has 0 images)"):
            Coco(tmp_path, "val2017", training=False)

    def test_coco(self, coco):
        train, val = Coco(coco, "train2017", training=True), Coco(coco, "val2017", training=False)
        assert (len(train), len(val)) == (4, 2), "an empty image is not trained on"
        for image, target in train:
            assert image.shape == (3, 96, 96) and image.dtype == torch.float32 and image.max() <= 1
            assert not target["iscrowd"].any()
            assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"]) > 0
        whole, empty = val[0][1], val[1][1]
        scene = Scenes(2, training=False)[0]
        assert whole["iscrowd"].tolist() == [int(j == 2) for j in range(len(scene.labels))]
        assert whole["labels"].tolist() == (scene.labels + 1).tolist()
        assert torch.equal(whole["masks"][0].bool(), scene.masks[0])
        assert {k: len(v) for k, v in empty.items()} == dict.fromkeys(empty, 0)

    def test_coco_flips_everything(self, coco):
        train = Coco(coco, "train2017", training=True)
        train.flip.p = 0.0
        image, target = train[0]
        train.flip.p = 1.0
        flipped, mirrored = train[0]
        assert torch.equal(flipped, image.flip(-1))
        assert torch.equal(mirrored["masks"], target["masks"].flip(-1))
        assert torch.equal(mirrored["boxes"][:, [2, 0]], 96 - target["boxes"][:, [0, 2]])

    def test_coco_errors(self, coco, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no annotations .*instances_test.json"):
            Coco(coco, "test", training=False)
        content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
        (tmp_path / "annotations").mkdir()
        file = tmp_path / "annotations" / "instances_a.json"
        file.write_text(json.dumps({**content, "categories": [{"id": 0, "name": "0"}]}))
        with pytest.raises(ValueError, match="category 0"):
            Coco(tmp_path, "a", training=False)
        content["annotations"][0]["segmentation"] = []
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="without a segmentation"):
            Coco(tmp_path, "a", training=False)

    @pytest.mark.parametrize("flags", [["--data.root", "somewhere"], ["--data.classes", "3"]])
    def test_classes_belong_to_a_folder(self, flags):
        with pytest.raises(ValueError, match=r"data.root and data.classes"):
            segmentation.main(["fit", *CPU, *TINY[segmentation.main], *flags])

    @pytest.mark.parametrize(
        ("main", "option"),
        [
            (segmentation.main, "model_kwargs"),
            (detection.main, "model_kwargs"),
            (detection.main, "rcnn_kwargs"),
        ],
    )
    def test_unknown_arguments(self, main, option):
        with pytest.raises(ValueError, match=rf"model.{option} do not fit: .*nonsense"):
            main(["fit", *CPU, *TINY[main], f"--model.{option}.nonsense", "1"])

    def test_batches_of_one(self):
        with pytest.raises(ValueError, match=r"data.batch_size must be at least 2"):
            segmentation.main(["fit", *CPU, *TINY[segmentation.main], "--data.batch_size", "1"])

    @MAINS
    def test_too_few_images(self, main, tmp_path):
        flags = ["--trainer.default_root_dir", str(tmp_path), "--data.scenes", "3"]
        with pytest.raises(ValueError, match=r"3 images to train on are fewer than data.batch_size 16"):
            main(["fit", *CPU, *TINY[main], *flags])


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestImprovement:
    """The recipes as they are."""

    def test_segmentation(self, tmp_path):
        found = fit(segmentation.main, tmp_path, "--config", str(CONFIGS / "digits_segmentation.yaml"))
        assert found["before"]["miou"] < 5
        assert found["miou"] > 65

    def test_detection(self, tmp_path):
        found = fit(detection.main, tmp_path, "--config", str(CONFIGS / "digits_detection.yaml"))
        assert found["before"]["box_ap"] < 1
        assert found["box_ap"] > 65
        assert found["mask_ap"] > 50
