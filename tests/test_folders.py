"""Folders of classes as people have them."""

import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from timm.data.readers import create_reader

from dcls_models.files import printable
from dcls_models.folders import ClassFolders, class_folders, files_below, holds_folders, natural_order

JPEG = (".jpg", ".jpeg")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_classes_and_files_are_in_natural_order_with_their_labels(tmp_path):
    touch(
        tmp_path, "b/10.jpg", "b/9.JPG", "b/a.jpeg", "class 10/x.jpg", "class 9/x.jpg", "a b/x.jpg", "a/x.jpg"
    )
    found = class_folders(tmp_path, JPEG)
    assert found.names == ["a", "a b", "b", "class 9", "class 10"]
    named = [(found.filename(i), found.labels[i]) for i in range(len(found))]
    assert named == [
        ("a/x.jpg", 0),
        ("a b/x.jpg", 1),
        ("b/9.JPG", 2),
        ("b/10.jpg", 2),
        ("b/a.jpeg", 2),
        ("class 9/x.jpg", 3),
        ("class 10/x.jpg", 4),
    ]
    assert found.class_to_idx["class 10"] == 4 and found.filename(1, basename=True) == "x.jpg"
    assert found.filename(0, absolute=True) == found.samples[0][0] == str(tmp_path / "a/x.jpg")
    file, label = found[3]
    with file:
        assert (file.name, label) == (str(tmp_path / "b/10.jpg"), 2)


def test_the_same_order_as_timm(tmp_path):
    folders = ("z 2", "z 10", "Ä", "b1", "b", "a-b", "a b", "train", "07", "3")
    touch(tmp_path, *(f"{c}/{f}.jpg" for c in folders for f in ("img2", "img10", "B", "a", "img 1", "x_1_2")))
    ours, timms = class_folders(tmp_path, JPEG), create_reader("", root=str(tmp_path))
    assert ours.class_to_idx == timms.class_to_idx
    assert sorted(ours.samples) == sorted(timms.samples)
    for name, label in ours.class_to_idx.items():
        of_class = [[path for path, y in reader.samples if y == label] for reader in (ours, timms)]
        assert of_class[0] == of_class[1], name


def test_names_that_differ_in_case_or_zeros_have_one_order_whatever_comes_first():
    names = ["cat", "Cat", "CAT", "01", "1", "001", "²", "1²2", "٣", "x²", "10", "2"]
    expected = ["001", "01", "1", "1²2", "2", "٣", "10", "CAT", "Cat", "cat", "x²", "²"]
    assert natural_order(names) == natural_order(reversed(names)) == expected


def test_a_class_called_train_is_a_class_and_a_split_is_told_from_it(tmp_path):
    touch(tmp_path, "photos/train/x.jpg", "photos/val/x.jpg", "photos/train/.cache/x.jpg")
    touch(tmp_path, "splits/train/cat/x.jpg")
    assert class_folders(tmp_path / "photos", JPEG).names == ["train", "val"]
    assert not holds_folders(tmp_path / "photos/train") and holds_folders(tmp_path / "splits/train")
    assert not holds_folders(tmp_path / "nowhere")


def test_what_systems_leave_behind_is_left_out_at_any_depth_with_one_line(tmp_path, caplog):
    junk = (".DS_Store", "._a.jpg", ".hidden/b.jpg", "__MACOSX/cat/a.jpg", "Thumbs.db", "Desktop.ini")
    touch(tmp_path, "cat/a.jpg", "dog/a.jpg", *junk, *(f"cat/{name}" for name in junk))
    touch(tmp_path, "dog/.ipynb_checkpoints/a.jpg", "@eaDir/cat/a.jpg", "dog/@eaDir/a.jpg/SYNO_THUMB.jpg")
    touch(tmp_path, "dog/b.heic", "dog/c.HEIC", "dog/notes.txt", "dog/LICENSE")
    with caplog.at_level(logging.INFO):
        found = class_folders(tmp_path, JPEG)
    assert [found.filename(i) for i in range(len(found))] == ["cat/a.jpg", "dog/a.jpg"]
    (line,) = caplog.messages
    assert line.startswith(f"left out of {tmp_path}: 15 hidden or of the system (")
    assert line.endswith("4 by their extension (2 .heic, 1 .txt, 1 none)")


def test_files_below_a_folder_at_any_depth(tmp_path):
    touch(tmp_path, "x10.jpg", "x9.jpg", "in/it/y.jpg", "in/z.jpg", "in/.hidden/q.jpg", "note.txt")
    below = [os.path.relpath(file, tmp_path) for file in files_below(tmp_path, JPEG)]
    assert below == ["x9.jpg", "x10.jpg", "in/z.jpg", "in/it/y.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/cat/a.jpg", "root/dog/b.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "root/dog/pipe.jpg")  # which would wait for somebody to write
    (tmp_path / "root/cat").symlink_to(tmp_path / "elsewhere/cat")
    (tmp_path / "root/dog/c.jpg").symlink_to(tmp_path / "gone.jpg")  # is reported when it is read
    (tmp_path / "root/dog/around").symlink_to(tmp_path / "root")
    assert class_folders(tmp_path / "root", JPEG).names == ["cat", "dog"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8_survive_and_can_be_printed(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"content")
    found = class_folders(tmp_path, JPEG)
    assert os.fsencode(found.names[0]) == b"caf\xe9"
    with found[0][0] as file:
        assert file.read() == b"content"
    assert printable(found.names[0], "utf-8") == r"caf\udce9"
    assert printable("Füße 猫", "ascii") == r"F\xfc\xdfe \u732b"
    assert printable("Füße 猫", "cp1252") == r"Füße \u732b"
    assert printable("Füße 猫", "utf-8") == "Füße 猫"


def test_labels_by_names_that_are_known(tmp_path, caplog):
    touch(tmp_path, "cat/a.jpg", "dog/a.jpg", "empty/a.txt")
    found = class_folders(tmp_path, JPEG, names=["dog", "bird", "cat"])
    assert (found.labels, found.names) == ([2, 0], ["dog", "bird", "cat"])
    assert f"no class, because without a file (.jpg .jpeg): {tmp_path / 'empty'}" in caplog.text
    with pytest.raises(ValueError, match=r"has classes that are not known: dog$"):
        class_folders(tmp_path, JPEG, names=["cat"])


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (["cat/a.jpg", "b.jpg"], ValueError, "/<class>/ only, found some in"),
        (["cat/a.jpg", "cat/young/b.jpg"], ValueError, "/<class>/ only, found some in .*/cat/young$"),
        (["cat/a.txt"], FileNotFoundError, "no file in .* has one of .jpg .jpeg"),
        ([], FileNotFoundError, "root"),
    ],
)
def test_what_is_no_folder_of_classes_is_said(tmp_path, files, error, words):
    touch(tmp_path / "root", *files)
    with pytest.raises(error, match=words):
        class_folders(tmp_path / "root", JPEG)


def of_sizes(*counts: int) -> ClassFolders:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    files = [f"root/{label}/{i}.jpg" for i, label in enumerate(labels)]
    return ClassFolders("root", files, labels, [f"class {label}" for label in range(len(counts))])


@pytest.mark.parametrize("share", [0.05, 0.2, 1 / 3, 0.5, 0.75])
def test_the_split_is_that_of_scikit_learn(share):
    random = np.random.default_rng(0)
    for _ in range(30):
        folders = of_sizes(*random.integers(4, 30, random.integers(2, 12)))
        at_least_one = max(share, len(folders.names) / len(folders))
        expected = train_test_split(
            range(len(folders)), test_size=at_least_one, stratify=folders.labels, random_state=0
        )
        assert folders.hold_out(share) == tuple(expected)


def test_a_split_is_whole_for_small_classes_too():
    for share in (0.01, 0.5, 0.99):
        train, held = of_sizes(2, 2, 2).hold_out(share)
        assert sorted([*train, *held]) == list(range(6)) and len(train) == len(held) == 3
    with pytest.raises(ValueError, match="two files or more to be split, these have one: class 1"):
        of_sizes(3, 1).hold_out(0.2)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            of_sizes(3, 3).hold_out(share)


def test_many_files_are_split_quickly():
    folders = of_sizes(*[100] * 4000)
    start = time.perf_counter()
    train, held = folders.hold_out(0.2)
    assert len(held) == 80_000 and len(train) == 320_000
    assert time.perf_counter() - start < 20, "seconds, not minutes; a second on an idle machine"


def test_a_fingerprint_is_of_the_files_and_not_of_where_they_are(tmp_path):
    for root in ("here", "there", "other"):
        touch(tmp_path / root, "a/1.jpg", "b/2.jpg", "b/été.jpg")
    (tmp_path / "other" / "b" / "2.jpg").rename(tmp_path / "other" / "a" / "2.jpg")
    here, there, other = (class_folders(tmp_path / r, JPEG).fingerprint() for r in ("here", "there", "other"))
    assert here == there != other
