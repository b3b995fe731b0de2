"""python -m eval delays: what it measures of a checkpoint, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from dcls_models.provenance import RESULT_KEYS
from dcls_models.spikes import Recordings, open_recordings
from dcls_models.spiking import DelayNet, summed_softmax
from eval.cli import main
from eval.delays import measure
from tests.test_train_delays import fit, write_arrays

WEIGHT = "model.synapses.0.conv.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root, folder = write_arrays(tmp_path_factory.mktemp("arrays")), tmp_path_factory.mktemp("run")
    fit(root, folder, "--trainer.max_epochs", "1", "--report.pictures", "false")
    return root, folder


def test_a_result(run, tmp_path, capsys):
    root, folder = run
    output, picture = tmp_path / "results.json", tmp_path / "delays.png"
    main(["delays", "--checkpoint", str(folder / "checkpoints/last.ckpt"), "--output", str(output),
          "--picture", str(picture)])  # fmt: skip
    result = json.loads(output.read_text())
    assert RESULT_KEYS.keys() <= result.keys() and result["task"] == "delays"
    assert (result["n"], result["skipped"], result["split"]) == (12, 0, "test")
    net, recordings = DelayNet.load(folder), Recordings(open_recordings(root, "test"))
    samples = [recordings[i] for i in range(12)]
    scores = summed_softmax(net(torch.stack([s for s, _ in samples]).float()))
    right = (scores.argmax(1) == torch.tensor([label for _, label in samples])).sum()
    assert result["top1"] == pytest.approx(100 * right.item() / 12)
    assert [sum(layer["counts"]) for layer in result["delays"]] == [6 * 12, 12 * 3]
    assert 0 < result["mean_delay"] < 6
    assert set(result["ms_per_second"]) == {"dense", "sparse", "frames"}
    assert min(result["ms_per_second"].values()) > 0
    assert picture.stat().st_size > 1000
    main(["report", str(output), "--output", str(tmp_path / "report.md")])
    assert "## Delays" in (tmp_path / "report.md").read_text()


def test_spikes_per_second():
    net = DelayNet([1, 2, 2], 2, tail=0).eval()
    with torch.no_grad():
        net.norms[0].weight.fill_(0)
        net.norms[0].bias.copy_(torch.tensor([2.0, 0.0]))  # one neuron fires in every frame, one never
    recordings = [(torch.zeros(1, 50), 0)] * 3

    class Readable(list):
        unreadable = torch.zeros(3)

    result = measure(net, Readable(recordings), 2, None, 0.01)
    assert result["spikes_per_second_by_layer"] == [pytest.approx(50.0)]


@pytest.mark.parametrize(
    ("channels", "names", "message"),
    [(5, None, "has 5 channels, the network 6"), (6, ["a", "b", "c"], "has other classes than the network")],
)
def test_other_data_are_refused(run, tmp_path, channels, names, message):
    content = {"labels": np.arange(3), **({"class_names": names} if names else {})}
    np.savez(tmp_path / "test.npz", spikes=np.ones((3, channels, 9), dtype=np.uint8), **content)
    checkpoint = str(run[1] / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=message):
        main(["delays", "--checkpoint", checkpoint, "--data", str(tmp_path)])
    with pytest.raises(ValueError, match="has no recordings to val: give --data, or another --split"):
        main(["delays", "--checkpoint", checkpoint, "--data", str(tmp_path), "--split", "val"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: next(iter(kept["state_dict"].values())).fill_(float("nan")), "has NaN or infinite"),
        (lambda kept: kept["state_dict"].update({WEIGHT: kept["state_dict"][WEIGHT] + 1j}), "is complex"),
        (lambda kept: kept["state_dict"].pop(WEIGHT), "has other weights than its own options say: Missing"),
        (lambda kept: kept["hyper_parameters"].pop("class_names"), "is no whole checkpoint .*'class_names'"),
        (
            lambda kept: kept.pop("datamodule_hyper_parameters"),
            "is no whole checkpoint of python -m train.delays",
        ),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line(run, tmp_path, change, message):
    kept = torch.load(run[1] / "checkpoints/last.ckpt", weights_only=True)
    change(kept)
    torch.save(kept, tmp_path / "other.ckpt")
    with pytest.raises((ValueError, RuntimeError), match=rf"other\.ckpt.* {message}") as error:
        main(["delays", "--checkpoint", str(tmp_path / "other.ckpt")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spikes", "labels", "message"),
    [
        (np.ones((3, 6, 9)), [0, 1, 7], "has other classes than the network was trained on, which are 3"),
        (
            np.full((3, 6, 9), 1e300),
            [0, 1, 2],
            "none of 3 recordings can be read, .* is inf, expected a count",
        ),
    ],
)
def test_recordings_that_mean_nothing_are_no_result(run, tmp_path, spikes, labels, message):
    np.savez(tmp_path / "test.npz", spikes=spikes, labels=labels)
    checkpoint = str(run[1] / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=message):
        main(["delays", "--checkpoint", checkpoint, "--data", str(tmp_path)])
