"""Recordings of spikes: both ways to bin, three kinds of files, and what is wrong with bad ones."""

import pickle

import h5py
import numpy as np
import pytest
import soundfile
import torch

from dcls_models.spikes import Binning, Recordings, binned, open_recordings, padded

SMALL = Binning(units=20, group=5, longest=100)


def write_wav(path, waveform, rate):
    soundfile.write(path, waveform.numpy(), rate)


def events(times, units=None):
    return np.array(times), np.array(units if units is not None else [0] * len(times))


def write_events(path, recordings, labels, names=None):
    with h5py.File(path, "w") as file:
        for key, kind, column in (("times", np.float16, 0), ("units", np.uint16, 1)):
            data = file.create_dataset(f"spikes/{key}", (len(recordings),), h5py.vlen_dtype(kind))
            for i, recording in enumerate(recordings):
                data[i] = recording[column]
        file["labels"] = np.array(labels)
        if names:
            file["extra/keys"] = np.array(names, dtype="S")
    return path


class TestBinning:
    def test_a_grid_keeps_silence(self):
        counts = binned(*events([0.105, 0.106, 0.12, 0.155], [0, 4, 7, 19]), SMALL)
        assert counts.shape == (4, 5)
        assert counts.nonzero().tolist() == [[0, 0], [1, 1], [3, 4]]
        assert counts[0, 0] == 2

    def test_frames_that_begin_with_events_do_not(self):
        counts = binned(*events([0.105, 0.106, 0.12, 0.155], [0, 4, 7, 19]), Binning(0.01, 20, 5, "events"))
        assert counts.nonzero().tolist() == [[0, 0], [1, 1], [3, 2]]

    def test_the_end_of_such_a_frame_belongs_to_it(self):
        times = np.array([0.0, 0.25, 0.5, 0.75])  # whole in binary
        counts = binned(times, np.zeros(4), Binning(0.25, 20, 5, "events"))
        assert counts[0].tolist() == [2, 2]

    def test_the_last_frame_of_a_grid_takes_the_rest(self):
        assert binned(np.array([0.0, 0.25, 0.5]), np.zeros(3), Binning(0.25, 20, 5))[0].tolist() == [1, 2]
        assert binned(np.array([0.3]), np.zeros(1), SMALL)[0].tolist() == [1]

    @pytest.mark.parametrize(
        ("times", "units", "message"),
        [
            ([], [], "it has no spikes"),
            ([0.1], [1, 2], "it has 1 times, but 2 units"),
            ([0.1, np.nan], [1, 2], "the time of spike 1 is nan"),
            ([-0.1, 0.2], [1, 2], "spike 0 is before the start, at -0.1 s"),
            ([0.3, 0.2], [1, 2], "spike 1 comes before the one that it follows"),
            ([0.1, 0.2], [1, 20], "spike 1 is of unit 20, expected whole numbers from 0 to 19"),
            ([0.1, 0.2], [-1, 2], "spike 0 is of unit -1"),
            ([0.1, 0.2], [0.5, 2], "spike 0 is of unit 0.5"),
            ([0, 2000], [1, 2], "it has 200000 frames of 0.01 s, more than 100: are times in seconds"),
        ],
    )
    def test_what_is_wrong_is_said(self, times, units, message):
        with pytest.raises(ValueError, match=message):
            binned(np.array(times, dtype=float), np.array(units), SMALL)

    @pytest.mark.parametrize(
        ("given", "message"),
        [({"group": 3, "units": 20}, "group must divide"), ({"rule": "x"}, "grid or events"),
         ({"frame": 0}, "must be positive")],
    )  # fmt: skip
    def test_options_are_checked(self, given, message):
        with pytest.raises(ValueError, match=message):
            Binning(**given)


class TestFiles:
    def test_events(self, tmp_path):
        good = ([0.0, 0.015], [3, 8])
        write_events(tmp_path / "shd_train.h5", [good, ([0.0], [19])], [1, 0], ["zero", "one"])
        source = open_recordings(tmp_path, "train", SMALL)
        assert (source.channels, source.class_names) == (4, ["zero", "one"])
        spikes, label = Recordings(source)[0]
        assert spikes.nonzero().tolist() == [[0, 0], [1, 1]] and label == 1
        assert torch.equal(pickle.loads(pickle.dumps(source)).read(0), spikes)
        assert open_recordings(tmp_path, "val") is None

    def test_arrays(self, tmp_path):
        spikes = np.random.default_rng(0).poisson(0.3, (6, 4, 10)).astype(np.uint8)
        np.savez(tmp_path / "val.npz", spikes=spikes, labels=np.arange(6))
        recordings = Recordings(open_recordings(tmp_path, "val"))
        batch, labels = padded([recordings[i] for i in range(6)], frames=12)
        assert batch.shape == (6, 4, 12) and labels.tolist() == list(range(6))
        assert torch.equal(batch[..., :10], torch.from_numpy(spikes).float())

    def test_sounds(self, tmp_path):
        for name, tone in (("high", 3000), ("low", 300)):
            (tmp_path / "train" / name).mkdir(parents=True)
            wave = 0.5 * torch.sin(2 * torch.pi * tone * torch.arange(8000) / 16000)
            write_wav(tmp_path / "train" / name / "a.wav", wave, 16000)
        source = open_recordings(tmp_path, "train")
        assert (source.channels, source.class_names) == (40, ["high", "low"])
        assert source.read(0).shape == (40, 50)
        assert source.read(0).sum(1).argmax() > source.read(1).sum(1).argmax()
        assert open_recordings(tmp_path, "train", front_end="logmel").read(0).shape == (80, 101)

    def test_speech_commands_is_split_by_its_lists(self, tmp_path):
        for file in ("yes/a.wav", "yes/b.wav", "no/a.wav", "no/c.wav", "_background_noise_/n.wav"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            write_wav(tmp_path / file, torch.zeros(8000), 8000)
        (tmp_path / "validation_list.txt").write_text("yes/b.wav\n")
        (tmp_path / "testing_list.txt").write_text("no/c.wav\n")
        files = {split: open_recordings(tmp_path, split).files for split in ("train", "val", "test")}
        assert [p.removeprefix(f"{tmp_path}/") for p in files["train"]] == ["no/a.wav", "yes/a.wav"]
        assert [len(files["val"]), len(files["test"])] == [1, 1]
        assert open_recordings(tmp_path, "val").class_names == ["no", "yes"]

    def test_a_bad_recording_is_skipped_and_named(self, tmp_path, caplog):
        damaged = [([0.0], [3]), ([0.2, 0.1], [3, 3]), ([0.0], [25])]
        write_events(tmp_path / "train.h5", damaged, [0, 1, 0])
        recordings = Recordings(open_recordings(tmp_path, "train", SMALL))
        samples = [recordings[i] for i in range(3)]
        assert [s is None for s in samples] == [False, True, True]
        assert len(padded(samples)[0]) == 1
        assert "train.h5 [1]: spike 1 comes before" in caplog.text
        assert "train.h5 [2]: spike 0 is of unit 25" in caplog.text
        assert recordings.report().startswith("2 of 3 recordings could not be read")

    def test_nothing_but_bad_recordings_is_an_error(self, tmp_path):
        write_events(tmp_path / "train.h5", [([0.0], [25])] * 12, [0] * 12)
        recordings = Recordings(open_recordings(tmp_path, "train", SMALL))
        with pytest.raises(ValueError, match="none of 10 recordings can be read"):
            [recordings[i] for i in range(12)]

    def test_silence_is_skipped(self, tmp_path):
        np.savez(tmp_path / "val.npz", spikes=np.zeros((1, 4, 10), dtype=bool), labels=[0])
        (tmp_path / "train" / "a").mkdir(parents=True)
        write_wav(tmp_path / "train" / "a" / "0.wav", torch.zeros(8000), 16000)
        write_wav(tmp_path / "train" / "a" / "1.wav", torch.ones(50), 16000)
        with pytest.raises(ValueError, match="it has no spikes"):
            open_recordings(tmp_path, "val").read(0)
        for number, message in enumerate(("it has no spikes: is it silent", "it has 0 frames")):
            with pytest.raises(ValueError, match=message):
                open_recordings(tmp_path, "train").read(number)

    def test_arrays_of_other_types(self, tmp_path):
        for kind in (">i4", np.float16, bool, np.uint64):
            np.savez(tmp_path / "train.npz", spikes=np.ones((1, 4, 10), dtype=kind), labels=[0])
            assert padded([Recordings(open_recordings(tmp_path, "train"))[0]])[0].sum() == 40
        np.savez(tmp_path / "train.npz", spikes=np.full((1, 4, 10), "x"), labels=[0])
        with pytest.raises(ValueError, match=r"train.npz must have counts of spikes, it has <U1"):
            open_recordings(tmp_path, "train")

    def test_long_arrays_are_refused(self, tmp_path):
        np.savez(tmp_path / "train.npz", spikes=np.ones((1, 2, 101)), labels=[0])
        with pytest.raises(ValueError, match=r"recordings of 101 frames, more than data.longest 100"):
            open_recordings(tmp_path, "train", SMALL)

    def test_files_without_recordings_are_named(self, tmp_path):
        np.savez(tmp_path / "train.npz", spikes=np.zeros((0, 4, 10)), labels=np.zeros(0, dtype=int))
        write_events(tmp_path / "val.h5", [], np.zeros(0, dtype=int))
        for split in ("train", "val"):
            with pytest.raises(ValueError, match=f"there is no recording in .*{split}"):
                Recordings(open_recordings(tmp_path, split))

    @pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
    def test_a_bad_count_is_named(self, tmp_path, value):
        spikes = np.zeros((1, 4, 10), dtype=np.float32)
        spikes[0, 2, 7] = value
        np.savez(tmp_path / "train.npz", spikes=spikes, labels=[0])
        with pytest.raises(ValueError, match=f"channel 2, frame 7 is {value}, expected a count"):
            open_recordings(tmp_path, "train").read(0)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 2], "label 2, expected whole numbers from 0 to 1"),
            ([-1, 0], "label -1"),
            ([0.5, 1], "label 0.5"),
            (["a", "b"], "label 'a', expected whole numbers"),
            ([[0], [1]], "must have spikes"),
        ],
    )
    def test_labels_are_checked(self, tmp_path, labels, message):
        content = {"labels": labels, "class_names": ["a", "b"]}
        np.savez(tmp_path / "train.npz", spikes=np.zeros((2, 4, 10), dtype=np.uint8), **content)
        with pytest.raises(ValueError, match=message):
            Recordings(open_recordings(tmp_path, "train"))

    def test_files_that_are_something_else(self, tmp_path):
        (tmp_path / "train.h5").write_text("no")
        with pytest.raises(ValueError, match=r"train.h5 is no HDF5 file with spikes/times"):
            open_recordings(tmp_path, "train")
        with h5py.File(tmp_path / "val.h5", "w") as file:
            file["x"] = 1
        with pytest.raises(ValueError, match=r"val.h5 is no HDF5 file with spikes/times"):
            open_recordings(tmp_path, "val")
        (tmp_path / "test.npz").write_text("no")
        with pytest.raises(ValueError, match=r"test.npz is no .npz with spikes and labels"):
            open_recordings(tmp_path, "test")
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            open_recordings(tmp_path / "nowhere", "train")

    def test_shapes_are_checked(self, tmp_path):
        np.savez(tmp_path / "train.npz", spikes=np.zeros((2, 4)), labels=[0, 1])
        with pytest.raises(ValueError, match=r"must have spikes \(N, channels, frames\) and labels"):
            open_recordings(tmp_path, "train")

    def test_frames_are_checked(self):
        with pytest.raises(ValueError, match=r"a recording has 9 frames, more than data.frames 8"):
            padded([(torch.zeros(2, 9), 0)], frames=8)
        with pytest.raises(ValueError, match="none of the 2 recordings of a batch"):
            padded([None, None])
