import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from sound_files import clips

import dcls_models
from dcls_models import LogMel
from dcls_models.loading import front_end_settings, load_model
from dcls_models.models._build import AUDIO_CFG
from dcls_models.spectrogram import MEAN, STD, mel_filters
from hub.export import export

STORED = Path(__file__).parent / "reference" / "log_mel.npz"  # torchaudio 2.11's, see its README


@pytest.fixture(scope="module")
def waveforms() -> torch.Tensor:
    return torch.from_numpy(clips())


class TestNumbers:
    def test_the_filters_are_torchaudios(self) -> None:
        stored = torch.from_numpy(np.load(STORED)["filters"])
        assert torch.equal(mel_filters(32000, 1024, 128, 50.0, 14000.0), stored)

    def test_decibels_are_torchaudios(self, waveforms: torch.Tensor) -> None:
        stored = torch.from_numpy(np.load(STORED)["decibels"])
        found = LogMel()(waveforms)
        assert found.shape == (4, 1, 128, 101)
        assert (found[:, 0, :, ::20] * STD + MEAN - stored).abs().max() < 2e-3
        assert stored[3].unique().tolist() == [-100.0]  # silence

    def test_ten_seconds_are_what_the_models_take(self) -> None:
        front_end = LogMel()
        assert front_end.samples == 320000
        assert front_end(torch.zeros(1, front_end.samples)).shape[1:] == AUDIO_CFG["input_size"]
        assert front_end.input_size == AUDIO_CFG["input_size"]

    def test_erasing_fits_between(self, waveforms: torch.Tensor) -> None:
        front_end = LogMel()
        power = front_end.linear(waveforms)
        assert power.shape == (4, 513, 101)
        assert torch.equal(front_end.from_linear(power), front_end(waveforms))
        power[:, 100:300] = 0
        assert not torch.equal(front_end.from_linear(power), front_end(waveforms))

    def test_gradients_reach_the_waveform(self, waveforms: torch.Tensor) -> None:
        sound = waveforms.clone().requires_grad_()
        LogMel()(sound).sum().backward()
        assert sound.grad is not None
        assert sound.grad[0].isfinite().all()
        assert sound.grad[0].abs().sum() > 0


class TestEverywhere:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_and_half_change_nothing(self, waveforms: torch.Tensor, dtype: torch.dtype) -> None:
        expected = LogMel()(waveforms)
        with torch.autocast("cpu", dtype):
            assert torch.equal(LogMel()(waveforms), expected)
        assert torch.equal(LogMel().to(dtype)(waveforms), expected)

    def test_from_the_meta_device(self, waveforms: torch.Tensor) -> None:
        with torch.device("meta"):
            front_end = LogMel()
        assert front_end.filters.is_meta
        assert torch.equal(front_end.to_empty(device="cpu")(waveforms), LogMel()(waveforms))

    def test_exports(self, waveforms: torch.Tensor) -> None:
        exported = torch.export.export(LogMel(), (waveforms,)).module()
        assert torch.allclose(exported(waveforms), LogMel()(waveforms), atol=1e-6)

    @pytest.mark.gpu
    def test_on_a_gpu(self, waveforms: torch.Tensor) -> None:
        front_end = LogMel().cuda()
        powers = []
        for spectrogram in (front_end(waveforms.cuda()).cpu(), LogMel()(waveforms)):
            powers.append(10 ** ((spectrogram.double() * STD + MEAN) / 10))
        found, expected = powers
        # not in decibels: beside a loud pure tone there is nothing but the rounding errors of an FFT
        assert ((found - expected).abs() <= 1e-5 * expected.amax(dim=(1, 2, 3), keepdim=True)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": 0}, "must be positive.*hop=0"),
        ({"std": 0.0}, "must be positive.*std=0.0"),
        ({"mean": float("nan")}, "mean finite.*mean=nan"),
        ({"seconds": float("nan")}, "must be positive.*seconds=nan"),
        ({"sample_rate": 16000}, "half of the sample rate: got low=50.0, high=14000.0 Hz at 16000 Hz"),
        ({"low": 15000.0}, "half of the sample rate"),
    ],
)
def test_impossible_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMel(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "waveform", [torch.zeros(32000), torch.zeros(1, 512), torch.zeros(1, 32000, dtype=torch.int16)]
)
def test_other_inputs_are_refused(waveform: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected waveforms \(N, samples\) of floating point"):
        LogMel()(waveform)


class TestModels:
    """The audio models carry their front end, which is in no state dict."""

    @pytest.mark.parametrize(
        "name", ["convnext_dcls_audio_tiny", "convformer_dcls_audio_s18", "fastvit_dcls_audio_sa24"]
    )
    def test_carry_it(self, name: str) -> None:
        with torch.device("meta"):
            model = timm.create_model(name)
        assert model.front_end.settings == LogMel().settings
        assert not [key for key in model.state_dict() if "front_end" in key]
        cfg = model.pretrained_cfg
        assert (cfg["mean"], cfg["std"]) == ((MEAN,), (STD,))

    def test_stays_useful_in_half_precision_and_as_a_copy(self, waveforms: torch.Tensor) -> None:
        small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 3}
        model = timm.create_model("convnext_dcls_audio_tiny", **small).eval()
        copied = copy.deepcopy(model).bfloat16()
        assert torch.equal(copied.front_end(waveforms), model.front_end(waveforms))
        spectrograms = model.front_end(waveforms.repeat(1, 2))  # the shortest are 128 frames
        assert torch.equal(torch.jit.script(model)(spectrograms), model(spectrograms))

    def test_other_models_have_none(self) -> None:
        assert not hasattr(timm.create_model("test_convnext_dcls"), "front_end")


def test_it_is_public() -> None:
    assert "LogMel" in dcls_models.__all__


class TestExported:
    """What makes spectrograms goes with the weights."""

    @pytest.fixture
    def model(self) -> torch.nn.Module:
        small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3, "in_chans": 1}
        cfg = {"input_size": (1, 40, 101), "mean": (-20.0,), "std": (25.0,)}
        model = timm.create_model("convnext_dcls_atto", pretrained_cfg_overlay=cfg, **small).eval()
        model.front_end = LogMel(16000, 512, 160, 40, 60.0, 7600.0, -20.0, 25.0)
        return model

    @pytest.mark.parametrize("options", [{}, {"fused": True}, {"onnx": True}])
    def test_and_comes_back(self, model: torch.nn.Module, tmp_path: Path, options: dict[str, bool]) -> None:
        export(model, tmp_path / "out", **options)
        found = load_model(f"local-dir:{tmp_path / 'out'}")
        assert found.front_end.settings == model.front_end.settings
        waveforms = torch.from_numpy(clips(16000))
        with torch.no_grad():
            expected = model(model.front_end(waveforms))
            assert torch.allclose(found(found.front_end(waveforms)), expected, atol=1e-5)
        if options.get("onnx"):
            session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
            (logits,) = session.run(None, {"images": model.front_end(waveforms).numpy()})
            assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-4)

    def test_settings_of_a_name(self, model: torch.nn.Module, tmp_path: Path) -> None:
        export(model, tmp_path / "out")
        name = f"local-dir:{tmp_path / 'out'}"
        assert front_end_settings(name) == model.front_end.settings
        assert front_end_settings(name, {"hop": 80})["hop"] == 80
        assert front_end_settings("convnext_tiny") == front_end_settings(None) == LogMel().settings
        with pytest.raises(ValueError, match=r"no settings of LogMel: .*they are sample_rate, n_fft"):
            front_end_settings(None, {"rate": 3})
        with pytest.raises(ValueError, match="n_fft at most 65536"):
            front_end_settings(None, {"n_fft": 10**9})

    def test_an_audio_model_of_the_zoo_says_what_it_takes(self, tmp_path: Path) -> None:
        small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 3}
        export(timm.create_model("convnext_dcls_audio_tiny", **small), tmp_path / "out")
        assert front_end_settings(f"local-dir:{tmp_path / 'out'}") == LogMel().settings
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["front_end"]["sample_rate"] == 32000
