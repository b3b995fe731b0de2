"""Which images a training sees: every one, from every kind of data set, whatever cannot be read."""

import csv
import logging
import re
import shutil
import tarfile
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests import audio_files
from tests.audio_files import write_sounds
from tests.test_train_delays import write_arrays
from tests.training import RANDOM, fit, in_child, last, same, write_images
from train.audio.data import Sounds
from train.data import Images
from train.delays.data import SpikeData
from train.dense.segmentation import SegmentationData
from train.errors import DataError
from train.loaders import TrainLoader
from train.place import Place
from train.readers import IGNORED
from train.samplers import PADDING, EvalSampler, TrainSampler


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


class TestSamplers:
    @pytest.mark.parametrize("world", [1, 2, 4])
    @pytest.mark.parametrize("repeats", [1, 3])
    def test_processes_together_see_what_one_sees(self, world, repeats):
        def keys(world_size, batch):
            """The keys of each global batch."""
            ranks = [iter(TrainSampler(range(53), r, world_size, 7, repeats)) for r in range(world_size)]
            steps = [[list(islice(r, batch // world_size)) for r in ranks] for _ in range(53 // batch)]
            return [sorted(key for part in step for key in part) for step in steps]

        assert keys(world, 8) == keys(1, 8)
        indices = [index for step in keys(1, 8) for index, _ in step]
        assert len(set(indices)) == (48 if repeats == 1 else 16)

    def test_epochs_and_seeds_differ_and_come_again(self):
        orders = set()
        for seed, epoch in ((0, 0), (0, 1), (1, 0)):
            sampler = TrainSampler(range(20), 0, 1, seed)
            sampler.start(epoch, 0)
            assert list(sampler) == list(sampler)
            orders.add(tuple(index for index, _ in sampler))
        assert len(orders) == 3

    def test_what_is_left_of_an_epoch(self):
        sampler = TrainSampler(range(20), 1, 2, 0)
        sampler.start(4, 0)
        whole = list(sampler)
        sampler.start(4, seen=6)
        assert list(sampler) == whole[6:]
        assert len(sampler) == 10
        sampler.start(5, 0)
        assert len(list(sampler)) == 10

    def test_another_batch_size_in_the_middle_of_an_epoch(self, caplog):
        sampler = TrainSampler(range(48), 0, 1, 0)
        whole = list(sampler)
        place = Place(0, 3)
        loader = TrainLoader(range(48), sampler, lambda: place, batch_size=4)
        loader.load_state_dict({"epoch": 0, "batches": 3, "at_once": 8})
        rest = torch.tensor([index for index, _ in whole[24:]])
        assert torch.equal(torch.cat(list(loader)), rest)
        assert "8 images at once, now it is 4" in caplog.text
        place = Place(0, 5)  # stopped once more
        assert loader.state_dict() == {"epoch": 0, "batches": 5, "seen": 32, "at_once": 4}
        again = TrainLoader(range(48), sampler, lambda: place, batch_size=4)
        again.load_state_dict(loader.state_dict())
        assert torch.equal(torch.cat(list(again)), rest[8:])

    @pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (12, 4), (3, 4)])
    def test_evaluation_sees_every_sample_once(self, size, world):
        seen = [list(EvalSampler(range(size), rank, world)) for rank in range(world)]
        assert len({len(keys) for keys in seen}) == 1
        real = sorted(key for keys in seen for key in keys if key != PADDING)
        assert real == [(i, None) for i in range(size)]


class TestUnreadable:
    def damage(self, root, files):
        for file in files:
            (root / file).write_bytes((root / file).read_bytes()[:60])

    def test_one_is_skipped_counted_and_named(self, tmp_path, caplog):
        root = write_images(tmp_path / "data")
        self.damage(root, ["train/class_1/03.png", "val/class_2/00.png"])
        with caplog.at_level(logging.WARNING):
            fit(root, tmp_path / "run", "--data.num_workers", "1", *RANDOM)
        reports = [r.getMessage() for r in caplog.records if "could not be read" in r.getMessage()]
        assert len(reports) == 2
        assert "1 of 48 images" in reports[0] and "class_1/03.png" in reports[0]
        assert "1 of 20 images" in reports[1] and "class_2/00.png" in reports[1]
        assert last(tmp_path / "run")["global_step"] == 12
        top1 = float(list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))[-1]["eval_top1"])
        assert top1 * 19 / 100 == pytest.approx(round(top1 * 19 / 100), abs=1e-3), "19 images count"

    def test_they_are_taken_out_of_the_epoch(self, tmp_path):
        """No image takes their place, and a batch of none is another image that depends on the place only."""
        root = write_images(tmp_path)
        self.damage(root, [f"train/class_1/{i:02}.png" for i in range(12)])
        data = Images(str(root), img_size=32, num_workers=1, batch_size=4)
        labels = torch.cat([labels for _, labels in data.train_dataloader()])
        assert len(labels) in (36, 37) and 1 not in labels.tolist(), (
            "48 less 12; one batch may be all of them"
        )
        assert data.unreadable()[0].startswith(
            "training: 12 of 48 images could not be read and were left out"
        )
        alone = Images(str(root), img_size=32, num_workers=0, batch_size=1)
        one, again = (list(alone.train_dataloader()) for _ in range(2))
        assert len(one) == 48, "a batch is never empty"
        assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again, strict=True))

    def test_an_odd_batch_can_be_mixed(self, tmp_path):
        root = write_images(tmp_path / "data")
        self.damage(root, ["train/class_1/03.png"])
        fit(root, tmp_path / "run", *RANDOM)
        assert last(tmp_path / "run")["global_step"] == 12

    def test_training_on_nothing_stops(self, tmp_path):
        root = write_images(tmp_path / "data")
        self.damage(root, [p.relative_to(root) for p in root.rglob("train/**/*.png")])
        with pytest.raises(DataError, match="none of 10 images can be read: the log names the files"):
            fit(root, tmp_path / "run", *RANDOM)

    def test_other_formats_are_read(self, tmp_path):
        root = write_images(tmp_path)
        for suffix in ("webp", "bmp", "tiff"):
            Image.open(root / "val/class_0/00.png").save(root / f"val/class_0/more.{suffix}", lossless=True)
        data = Images(str(root), img_size=32)
        images = [data.val_set[i][0] for i in (0, 5, 6, 7)]
        assert len(data.val_set) == 23
        assert all(torch.equal(image, images[0]) for image in images)

    def test_more_than_8_bits_would_become_white(self, tmp_path, caplog):
        root = write_images(tmp_path)
        Image.fromarray(np.full((16, 16), 30_000, np.uint16)).save(root / "train/class_0/00.png")
        data = Images(str(root), img_size=32, num_workers=0)
        with caplog.at_level(logging.WARNING):
            assert data.train_set[0] is None
        assert "class_0/00.png: its pixels have more than 8 bits (mode I;16)" in caplog.text

    def test_evaluation_does_not_replace_them(self, tmp_path):
        root = write_images(tmp_path)
        self.damage(root, ["val/class_0/00.png"])
        data = Images(str(root), img_size=32, num_workers=0)
        assert data.val_set[0][1] == IGNORED
        assert data.val_set[1][1] == 0
        assert data.unreadable()[0].startswith("validation: 1 of 20")

    def test_other_modes_become_rgb(self, tmp_path):
        root = write_images(tmp_path, classes=2, train=2, val=1)
        for i, mode in enumerate(("L", "RGBA", "P", "1")):
            Image.new(mode, (9, 7)).save(root / "train" / "class_0" / f"{mode}{i}.png")
        data = Images(str(root), img_size=32)
        assert {data.train_set[i][0].shape for i in range(len(data.train_set))} == {(3, 32, 32)}


def test_fewer_than_two_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="fewer than two classes"):
        Images(str(write_images(tmp_path, classes=1)))


class TestNothingCanBeRead:
    """Then there is no result, and no exit code 0."""

    @pytest.mark.parametrize("command", ["validate", "predict", "fit"])
    def test_of_images(self, images, tmp_path, command):
        root = tmp_path / "images"
        shutil.copytree(images, root)
        fit(images, tmp_path / "run", "--trainer.max_epochs", "1")
        for file in (root / "val").rglob("*.png"):
            file.write_bytes(b"no image")
        flags = [] if command == "fit" else ["--ckpt_path", "last"]
        flags += ["--data.predict_root", str(root / "val")] if command == "predict" else []
        said = "none of (10 images|what was to be measured) c(an|ould) be read"
        with pytest.raises(DataError, match=said):
            fit(root, tmp_path / "run", *flags, command=command)
        assert not (tmp_path / "run" / "predictions.csv").exists()
        assert not (tmp_path / "run" / "earlier_1").exists(), "no update was made"

    def test_of_sounds(self, tmp_path):
        root = tmp_path / "sounds"
        write_sounds(root / "train", count=4)
        write_sounds(root / "val", count=3)
        for file in (root / "val").rglob("*.wav"):
            file.write_bytes(b"no sound")
        with pytest.raises(DataError, match="none of 6 sounds can be read: the log names the files"):
            audio_files.fit(root, tmp_path / "run", "--trainer.max_epochs", "1")


def found_by(rank, folder, scenes):
    """What a process says of its own folders."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    root = folder / str(rank)
    for data in (
        Images(str(root / "images"), img_size=32),
        Sounds(str(root / "sounds"), front_end={"sample_rate": 8000, "high": 3900}, seconds=0.5),
        SpikeData(str(root / "spikes"), batch_size=8),
        SegmentationData(scenes=scenes[rank], val_scenes=2, batch_size=2),
    ):
        data.trainer = SimpleNamespace(world_size=2)
        try:
            data.setup("validate")
        except ValueError as error:
            (folder / f"{rank}_{type(data).__name__}.txt").write_text(str(error))


@pytest.mark.parametrize("others", [False, True])
def test_processes_compare_what_they_have_found(tmp_path, others):
    for rank in range(2):
        write_images(tmp_path / str(rank) / "images")
        write_sounds(tmp_path / str(rank) / "sounds")
        (tmp_path / str(rank) / "spikes").mkdir()
        write_arrays(tmp_path / str(rank) / "spikes", train=24 + 3 * rank * others)
    if others:
        for split in ("train", "val"):
            folder = tmp_path / "1" / "images" / split
            (folder / "class_3").rename(folder / "zebra")
        (tmp_path / "1" / "sounds" / "tone_0" / "0.wav").rename(
            tmp_path / "1" / "sounds" / "tone_0" / "x.wav"
        )
    children = [in_child(found_by, rank, tmp_path, (4, 4 + others)) for rank in range(2)]
    for child in children:
        child.join(100)
        assert child.exitcode == 0
    said = {file.stem: file.read_text() for file in tmp_path.glob("*.txt")}
    kinds = ("Images", "Sounds", "SpikeData", "SegmentationData") if others else ()
    assert set(said) == {f"{rank}_{kind}" for kind in kinds for rank in range(2)}
    assert all("process 1 found" in text for text in said.values())
    if others:
        assert "process 1 found 11 classes and [5, 2] samples" in said["0_SegmentationData"]
        assert "process 0 11 classes and [4, 2] samples" in said["0_SegmentationData"]


def test_links_in_a_circle_are_no_folder(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(FileNotFoundError, match=r"data\.root is not a folder"):
        fit(tmp_path / "circle", tmp_path / "run")


def test_turned_as_exif_says_if_asked_for(tmp_path):
    root = write_images(tmp_path, classes=2, train=2, val=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    for split in ("train", "val"):
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, 8:] = 255  # white on the right: below, once it is turned
        Image.fromarray(pixels).save(root / split / "class_0" / "00.png", exif=exif)
    plain, turned = (
        Images(str(root), img_size=32, crop_pct=1.0, exif=e).val_set[0][0] for e in (False, True)
    )
    assert plain[:, :, -4:].mean() > plain[:, :, :4].mean() + 1
    assert turned[:, -4:].mean() > turned[:, :4].mean() + 1


class TestClasses:
    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_a_folder_in_a_class_is_no_class(self, tmp_path, split):
        root = write_images(tmp_path)
        (root / "test").mkdir()
        deep = root / split / "class_0" / "class_1"
        deep.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(deep / "a.png")
        with pytest.raises(ValueError, match=r"expected files in .*/<class>/ only, .*class_1"):
            Images(str(root), img_size=32).test_dataloader()

    @pytest.mark.parametrize("split", ["val", "test"])
    def test_a_class_that_is_not_trained(self, tmp_path, split):
        root = write_images(tmp_path)
        folder = root / split / "cow"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        with pytest.raises(ValueError, match=r"classes that are not known: cow"):
            Images(str(root), img_size=32).test_dataloader()

    def test_a_folder_without_images_is_named(self, tmp_path, caplog):
        root = write_images(tmp_path)
        for name in ("empty", ".hidden"):
            (root / "train" / name).mkdir()
        assert Images(str(root), img_size=32).num_classes == 4
        assert re.search(r"no class, because without a file .*: \S*train/empty$", caplog.text, re.M)
        assert "1 hidden or of the system (.hidden)" in caplog.text

    def test_how_many_there_are_is_said(self, images, tmp_path, caplog):
        with caplog.at_level(logging.INFO):
            fit(images, tmp_path, "--trainer.max_steps", "1")
        assert "48 images to train on, 20 to validate on; 4 classes: class_0, class_1, " in caplog.text


class TestHub:
    """Hugging Face data sets, from a folder."""

    @pytest.fixture
    def name(self, images, monkeypatch):
        pytest.importorskip("datasets", exc_type=ImportError)
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        return f"hfds/{images}"

    def test_classes_and_images(self, name, images, tmp_path):
        data = Images(str(tmp_path), dataset=name, img_size=32, color_jitter=0, hflip=0)
        assert data.class_names == [f"class_{i}" for i in range(4)]
        folder = Images(str(images), img_size=32)
        assert (len(data.train_set), len(data.val_set)) == (48, 20)
        for i in range(20):
            assert torch.equal(data.val_set[i][0], folder.val_set[i][0])
            assert data.val_set[i][1] == folder.val_set[i][1]

    def test_training_goes_on_exactly_as_from_folders(self, name, images, tmp_path):
        fit(images, tmp_path / "folder", *RANDOM)
        fit(tmp_path / "cache", tmp_path / "hub", *RANDOM, "--data.dataset", name)
        assert same(last(tmp_path / "folder"), last(tmp_path / "hub"))

    def test_columns_of_other_names(self, name, tmp_path):
        with pytest.raises(DataError, match=r"no column img or fine_label, but image, label: give data"):
            Images(str(tmp_path), dataset=name, image_column="img", label_column="fine_label")
        with pytest.raises(DataError, match=r"column image .* no names of classes; .*: label"):
            Images(str(tmp_path), dataset=name, label_column="image")

    def test_a_split_that_is_not_there(self, name, tmp_path):
        with pytest.raises(DataError, match="nosplit"):
            Images(str(tmp_path), dataset=name, val_split="nosplit")


class TestShards:
    """Webdataset: four tar files to train on, three for validation."""

    @pytest.fixture(scope="class")
    def shards(self, images, tmp_path_factory):
        pytest.importorskip("webdataset", exc_type=ImportError)
        folder = tmp_path_factory.mktemp("shards")
        for split, count in (("train", 4), ("val", 3)):
            files = sorted((images / split).rglob("*.png"))
            for shard in range(count):
                with tarfile.open(folder / f"{split}-{shard}.tar", "w") as tar:
                    for i, file in enumerate(files[shard::count]):
                        label = folder / "label"
                        label.write_text(file.parent.name[-1])
                        tar.add(file, f"{shard}_{i:03}.png")
                        tar.add(label, f"{shard}_{i:03}.cls")
        (folder / "classes.txt").write_text("".join(f"class_{i}\n" for i in range(4)))
        return folder

    def options(self, shards):
        splits = ["--data.train_split", "train-{0..3}.tar|48", "--data.val_split", "val-{0..2}.tar|20"]
        return ["--data.dataset", "wds/", *splits, "--data.classes", str(shards / "classes.txt")]

    def test_training(self, shards, tmp_path):
        fit(shards, tmp_path, *RANDOM, *self.options(shards))
        assert last(tmp_path)["global_step"] == 12
        assert last(tmp_path)["hyper_parameters"]["class_names"] == [f"class_{i}" for i in range(4)]

    @pytest.mark.parametrize("world", [1, 3])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_evaluation_sees_every_sample_once(self, shards, images, world, workers):
        data = Images(
            str(shards),
            "wds/",
            val_split="val-{0..2}.tar|20",
            classes=str(shards / "classes.txt"),
            img_size=32,
        )
        seen, batches = [], set()
        for rank in range(world):
            dataset = data._shards(training=False)
            dataset.rank, dataset.world_size = rank, world
            loaded = list(DataLoader(dataset, batch_size=2, num_workers=workers))
            batches.add(len(loaded))
            seen += [(x.sum().item(), y.item()) for xs, ys in loaded for x, y in zip(xs, ys, strict=True)]
        folder = Images(str(images), img_size=32)
        expected = sorted((x.sum().item(), y) for x, y in (folder.val_set[i] for i in range(20)))
        assert sorted(s for s in seen if s[1] != IGNORED) == expected
        assert len(batches) == 1

    def test_shards_without_class_names(self, shards):
        with pytest.raises(ValueError, match=r"data\.classes"):
            Images(str(shards), "wds/")

    def test_shards_that_are_not_there(self, shards, tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            fit(shards, tmp_path, *RANDOM, *self.options(shards), "--data.train_split", "train")
