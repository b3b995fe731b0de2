import csv
import logging
import pickle
from pathlib import Path

import datasets
import h5py
import numpy as np
import pyarrow
import pytest
import soundfile
import torch
from pyarrow import parquet
from sound_files import clips

from dcls_models.sounds import NOTHING, Clips, HubSounds, PackedSounds, open_folder, open_listed

CHORD = clips(8000)[1]
IDS = ("--PJHxphWEs", "abcdefghijk", "ABCDEFGHIJK", "0123456789_")


def write(path: Path, samples: np.ndarray = CHORD, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture
def audioset(tmp_path: Path) -> Path:
    """A CSV of four rows, three of them with a file, one with a label that the ontology lacks."""
    with (tmp_path / "class_labels_indices.csv").open("w", newline="") as file:
        rows = [["index", "mid", "display_name"], [1, "/m/b", "Bark"], [0, "/m/a", "Speech, male"]]
        csv.writer(file).writerows(rows)
    head = "# Segments csv created\n# num_ytids=4\n# YTID, start_seconds, end_seconds, positive_labels\n"
    labels = ("/m/a,/m/b", "/m/b", "/m/a,/m/unknown", "/m/a")
    lines = [f'{i}, 30.000, 40.000, "{label}"\n' for i, label in zip(IDS, labels, strict=True)]
    (tmp_path / "eval.csv").write_text(head + "".join(lines))
    names = (f"{IDS[0]}.wav", f"Y{IDS[1]}.flac", f"more/{IDS[2]}_30000_40000.wav")
    for name in names:
        write(tmp_path / "files" / name)
    return tmp_path


class TestAudioSet:
    def test_rows_with_their_files(self, audioset: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            sounds = open_listed(audioset / "eval.csv", audioset / "files")
        assert sounds.names == ["Speech, male", "Bark"]  # by their index, not as they stand
        assert [sounds.classes(i) for i in range(len(sounds))] == [(0, 1), (1,), (0,)]
        assert [Path(sounds.filename(i)).stem[:12] for i in range(3)] == [IDS[0], f"Y{IDS[1]}", f"{IDS[2]}_"]
        assert not sounds.one_label
        assert f"1 of the 4 rows of {audioset / 'eval.csv'} have no file" in caplog.text
        assert IDS[3] in caplog.text
        assert "1 labels" in caplog.text
        assert "/m/unknown" in caplog.text

    def test_what_does_not_fit_is_one_clear_line(self, audioset: Path, tmp_path: Path) -> None:
        write(tmp_path / "others" / "a.wav")
        with pytest.raises(FileNotFoundError, match=r"no row of .*eval\.csv has a file in .*others"):
            open_listed(audioset / "eval.csv", tmp_path / "others")
        with pytest.raises(ValueError, match="say in which folder the sounds of"):
            open_listed(audioset / "eval.csv")
        (audioset / "wrong.csv").write_text("a,b\n")
        with pytest.raises(
            ValueError, match="is no CSV of AudioSet: expected rows YTID, start, end, ids, got"
        ):
            open_listed(audioset / "wrong.csv", audioset / "files")
        with pytest.raises(ValueError, match="is no table with the columns index,mid,display_name"):
            open_listed(audioset / "eval.csv", audioset / "files", audioset / "eval.csv")
        with pytest.raises(FileNotFoundError, match=r"there is no .*labels\.csv, which names the classes"):
            open_listed(audioset / "eval.csv", audioset / "files", audioset / "labels.csv")


class TestPacked:
    @pytest.fixture
    def packed(self, tmp_path: Path) -> Path:
        with h5py.File(tmp_path / "eval.h5", "w") as file:
            file["audio_name"] = np.array([b"Ya.wav", b"Yb.wav", b"Yc.wav"])
            file["waveform"] = np.stack([CHORD * 16384] * 3).astype(np.int16)
            file["target"] = np.array([[True, False], [False, False], [True, True]])
            file.attrs["sample_rate"] = 8000
        return tmp_path / "eval.h5"

    def test_is_read_as_panns_writes_it(self, packed: Path) -> None:
        sounds = open_listed(packed)
        assert (len(sounds), sounds.names) == (3, ["0", "1"])
        assert [sounds.classes(i) for i in range(3)] == [(0,), (), (0, 1)]
        assert sounds.filename(1) == f"{packed}:Yb.wav"
        assert sounds.seconds(0) == 1.0
        part = sounds.read(0, 8000, 0.5, 0.25)
        assert torch.allclose(part, torch.from_numpy(CHORD)[2000:6000] / 2, atol=1e-4)
        assert len(sounds.read(0, 16000, None)) == 16000
        assert pickle.loads(pickle.dumps(sounds)).read(2, 8000, 0.5).shape == (4000,)  # to a worker

    def test_other_files_are_refused(self, packed: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has 2 classes, 3 are named"):
            PackedSounds(packed, ["a", "b", "c"])
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["waveform"] = np.zeros(3)
        with pytest.raises(ValueError, match="is not packed as PANNs does"):
            PackedSounds(tmp_path / "other.h5")
        (tmp_path / "text.h5").write_text("no HDF5")
        with pytest.raises(ValueError, match=r"text\.h5.*signature"):
            PackedSounds(tmp_path / "text.h5")


class TestHub:
    @pytest.fixture
    def stored(self, tmp_path: Path) -> Path:
        data = [write(tmp_path / f"{i}.wav").read_bytes() for i in range(3)]
        features = datasets.Features(
            {
                "sound": datasets.Audio(decode=False),
                "label": datasets.ClassLabel(names=["dog", "cat"]),
                "tags": datasets.Sequence(datasets.Value("string")),
            }
        )
        columns = {
            "sound": [{"bytes": b, "path": f"{i}.wav"} for i, b in enumerate(data)],
            "label": [0, 1, 1],
            "tags": [["loud"], ["loud", "near"], ["near"]],
        }
        (tmp_path / "set").mkdir()
        rows = pyarrow.Table.from_pydict(columns, schema=features.arrow_schema)
        parquet.write_table(rows, tmp_path / "set" / "train-00000-of-00001.parquet")
        return tmp_path / "set"

    def test_is_read_without_its_decoder(self, stored: Path, tmp_path: Path) -> None:
        sounds = HubSounds(str(stored), "train", str(tmp_path / "cache"), audio="sound")
        assert sounds.names == ["dog", "cat"]
        assert sounds.one_label
        assert [sounds.classes(i) for i in range(3)] == [(0,), (1,), (1,)]
        assert torch.allclose(sounds.read(1, 8000, None), torch.from_numpy(CHORD), atol=1e-4)
        assert sounds.seconds(0) == 1.0
        assert sounds.filename(2).endswith(":2.wav")

    def test_several_classes_and_known_names(self, stored: Path, tmp_path: Path) -> None:
        cache = str(tmp_path / "cache")
        sounds = HubSounds(str(stored), "train", cache, "sound", "tags")
        assert sounds.names == ["loud", "near"]
        assert [sounds.classes(i) for i in range(3)] == [(0,), (0, 1), (1,)]
        assert not sounds.one_label
        known = HubSounds(str(stored), "train", cache, "sound", "tags", names=["near", "far", "loud"])
        assert known.classes(1) == (2, 0)
        with pytest.raises(ValueError, match="has classes that are not known: near"):
            HubSounds(str(stored), "train", cache, "sound", "tags", names=["loud"])

    def test_errors_list_the_columns(self, stored: Path, tmp_path: Path) -> None:
        cache = str(tmp_path / "cache")
        with pytest.raises(ValueError, match="has no column audio, only sound, label, tags"):
            HubSounds(str(stored), "train", cache)
        with pytest.raises(ValueError, match="cannot read the split 'test' of hfds/"):
            HubSounds(str(stored), "test", cache, audio="sound")


class TestClips:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name, seconds in (("dog/a", 1), ("dog/b", 3), ("cat/c", 1)):
            write(tmp_path / f"{name}.wav", np.tile(CHORD, seconds))
        return tmp_path

    def test_are_of_one_length(self, root: Path) -> None:
        made = Clips(open_folder(root), 8000, 2.0)
        assert made.sounds.names == ["cat", "dog"]
        for index in range(3):
            waveform, target, readable = made[index]
            assert waveform.shape == (16000,)
            assert readable
            assert target.tolist() == [index == 0, index > 0]
        assert not made[1][0][8000:].any()
        assert made[NOTHING][0].shape == (16000,)
        assert not made[NOTHING][2]

    def test_in_training_a_random_part_of_a_long_sound(self, root: Path) -> None:
        made = Clips(open_folder(root), 8000, 0.5, augment=lambda waveform: 2 * waveform)
        parts = [made[2][0] for _ in range(4)]
        assert all(part.shape == (4000,) for part in parts)
        assert len({part.sum().item() for part in parts}) == 4
        still = Clips(open_folder(root), 8000, 0.5)
        assert torch.equal(still[2][0], still[2][0])

    def test_what_cannot_be_read_is_named_and_not_read(
        self, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (root / "dog" / "bad.wav").write_text("no sound")
        made = Clips(open_folder(root), 8000, 1.0)
        with caplog.at_level(logging.WARNING):
            read = [made[i][2] for i in range(4) for _ in range(2)]
        assert read.count(False) == 2
        assert caplog.text.count("bad.wav") == 1
        assert "it is no sound that libsndfile reads" in caplog.text
        assert made.report().startswith("1 of 4 sounds could not be read: ")

    def test_a_folder_of_nothing_but_bad_files_stops(self, tmp_path: Path) -> None:
        for i in range(12):
            path = tmp_path / "dog" / f"{i}.wav"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
        made = Clips(open_folder(tmp_path), 8000, 1.0)
        with pytest.raises(
            ValueError, match=r"none of the first 10 sounds can be read.*it is empty \(0 bytes\)"
        ):
            [made[i] for i in range(12)]
