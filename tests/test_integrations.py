"""The lines of docs/integrations.md, in the libraries that people put a backbone into.

``pip install -r requirements-integrations.txt && pytest -m integrations``; what is missing is skipped.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.utils.model import reparameterize_model
from torch import nn

from dcls_models import dclsify
from dcls_models.layers import Dcls2d
from dcls_models.optim import param_groups
from hub.export import export

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]
NAME = "test_convnext_dcls"
FAMILIES = [f"test_{family}_dcls" for family in ("convnext", "convformer", "caformer", "fastvit", "resnet")]


def some_images(side: int = 64, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side)


def exported(folder: Path, name: str = NAME) -> nn.Module:
    """A model with random weights, and the folder that ``python -m hub export`` would write of it."""
    model = timm.create_model(name, num_classes=3).eval()
    export(model, folder, published=False)
    return model


def written_images(root: Path, classes: str = "ab", each: int = 8) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (64, 64), (20 * i, 120 * number, 0)).save(root / name / f"{i}.png")
    return root


class TestTransformers:
    @pytest.fixture(autouse=True)
    def transformers(self) -> None:
        self.library: Any = pytest.importorskip("transformers")

    @pytest.mark.parametrize("name", FAMILIES)
    def test_an_exported_folder_is_a_classifier(self, name: str, tmp_path: Path) -> None:
        model, images = exported(tmp_path / "exported", name), some_images()
        load = self.library.AutoModelForImageClassification.from_pretrained
        theirs = load(tmp_path / "exported").eval()
        assert torch.equal(theirs(images).logits, model(images))
        theirs.save_pretrained(tmp_path / "saved")
        assert torch.equal(load(tmp_path / "saved").eval()(images).logits, model(images))

    def test_positions_outside_the_kernel_stay_there(self, tmp_path: Path) -> None:
        model, images = timm.create_model(NAME, num_classes=3).eval(), some_images()
        stored = model.state_dict()
        stored |= {k: 3 * v.sign() * v.abs().max() + 9 for k, v in stored.items() if k.endswith("positions")}
        model.load_state_dict(stored)
        export(model, tmp_path / "exported", published=False)
        theirs = self.library.AutoModelForImageClassification.from_pretrained(tmp_path / "exported")
        assert torch.equal(theirs.eval()(images).logits, model(images))

    def test_a_pipeline_takes_images(self, tmp_path: Path) -> None:
        exported(tmp_path / "exported")
        classify = self.library.pipeline("image-classification", model=str(tmp_path / "exported"))
        said = classify(Image.new("RGB", (64, 64)))
        assert len(said) == 3 and sum(answer["score"] for answer in said) == pytest.approx(1)

    def test_the_trainer_moves_positions_without_decay(self, tmp_path: Path) -> None:
        exported(tmp_path / "exported")
        model = self.library.AutoModelForImageClassification.from_pretrained(tmp_path / "exported")
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        data = [{"pixel_values": torch.randn(3, 64, 64), "labels": i % 3} for i in range(8)]
        how = self.library.TrainingArguments(
            str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True
        )
        optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.05))
        trainer = self.library.Trainer(model, how, train_dataset=data, optimizers=(optimizer, None))
        trainer.train()
        moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
        assert {name for name in before if name.endswith("positions")} <= moved
        assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay", "positions"]

    def test_its_own_optimizer_decays_positions(self, tmp_path: Path) -> None:
        exported(tmp_path / "exported")
        model = self.library.AutoModelForImageClassification.from_pretrained(tmp_path / "exported")
        how = self.library.TrainingArguments(
            str(tmp_path / "out"), weight_decay=0.05, report_to=[], use_cpu=True
        )
        optimizer = self.library.Trainer(model, how).create_optimizer()
        decayed = {
            id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
        }
        positions = [p for name, p in model.named_parameters() if name.endswith("positions")]
        assert positions and all(id(p) in decayed for p in positions)

    def test_a_backbone_gives_feature_maps(self) -> None:
        config = self.library.TimmBackboneConfig(
            backbone=NAME, use_pretrained_backbone=False, out_indices=(1, 2, 3)
        )
        maps = self.library.TimmBackbone(config)(some_images()).feature_maps
        assert [m.shape[-1] for m in maps] == [8, 4, 2]


def test_fastai_learns(tmp_path: Path) -> None:
    vision = pytest.importorskip("fastai.vision.all")
    folder = written_images(tmp_path / "images")
    data = vision.ImageDataLoaders.from_folder(
        folder, valid_pct=0.25, item_tfms=vision.Resize(64), bs=4, num_workers=0, device=torch.device("cpu")
    )
    learner = vision.vision_learner(data, NAME, pretrained=False, normalize=False)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1)
    assert torch.isfinite(torch.tensor(learner.validate()[0]))


def test_lightly_gives_positions_a_gradient() -> None:
    loss = pytest.importorskip("lightly.loss").NTXentLoss()
    head = pytest.importorskip("lightly.models.modules").SimCLRProjectionHead
    backbone = timm.create_model(NAME, num_classes=0)
    project = head(backbone.num_features, 32, 16)
    loss(*(project(backbone(some_images(count=4))) for _ in range(2))).backward()
    assert all(stage.positions.grad.abs().sum() > 0 for stage in backbone.stages)


def test_segmentation_models_pytorch_takes_an_encoder() -> None:
    library = pytest.importorskip("segmentation_models_pytorch")
    for decoder in (library.Unet, library.FPN, library.UPerNet):
        model = decoder(f"tu-{NAME}", encoder_weights=None, classes=2)
        assert model(some_images()).shape == (2, 2, 64, 64)


@pytest.mark.parametrize("name", FAMILIES)
def test_openvino_computes_the_same(name: str) -> None:
    library = pytest.importorskip("openvino")
    plain, images = reparameterize_model(timm.create_model(name, num_classes=3).eval()), some_images(96)
    converted = library.convert_model(torch.export.export(plain, (images,)))
    compiled = library.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = torch.from_numpy(compiled(images.numpy())[0])
    torch.testing.assert_close(logits, plain(images).detach(), rtol=1e-4, atol=1e-5)


def test_openvino_in_bf16_is_less_exact() -> None:
    """Some processors get it by default, which ``INFERENCE_PRECISION_HINT`` says."""
    library = pytest.importorskip("openvino")
    plain, images = reparameterize_model(timm.create_model(NAME, num_classes=3).eval()), some_images(96)
    converted = library.convert_model(torch.export.export(plain, (images,)))
    worst = {}
    for precision in ("f32", "bf16", None):
        hint = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        compiled = library.compile_model(converted, "CPU", hint)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        error = (torch.from_numpy(compiled(images.numpy())[0]) - plain(images).detach()).abs().max().item()
        worst[precision or f"default, {used}"] = error
        assert used == precision or precision != "f32"
        assert (error < 1e-4) == (used == "f32"), worst


def test_ultralytics_detects_with_learned_spacings() -> None:
    library = pytest.importorskip("ultralytics")
    detector = library.YOLO("yolo11n.yaml")
    dclsify(detector.model, kernel_count=5, dilated_kernel_size=7)
    assert any(isinstance(module, Dcls2d) for module in detector.model.modules())
    assert len(detector.predict(Image.new("RGB", (64, 64)), imgsz=64, verbose=False)) == 1


def test_peft_adapts_linear_layers() -> None:
    library = pytest.importorskip("peft")
    config = library.LoraConfig(target_modules=r".*mlp\.fc[12]", modules_to_save=["head"])
    model = library.get_peft_model(timm.create_model(NAME, num_classes=3), config)
    model(some_images()).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None and "lora" in n}
    assert all(p.grad is None for n, p in model.named_parameters() if n.endswith("positions"))


def test_peft_gives_saved_convolutions_positions_of_their_own() -> None:
    library = pytest.importorskip("peft")
    config = library.LoraConfig(target_modules=r".*mlp\.fc[12]", modules_to_save=["conv_dw"])
    model = library.get_peft_model(timm.create_model(NAME, num_classes=3), config)
    model(some_images()).sum().backward()
    positions = {n: p for n, p in model.named_parameters() if n.endswith("positions")}
    used = {name for name, p in positions.items() if p.grad is not None and p.grad.abs().sum() > 0}
    blocks = sum(len(stage.blocks) for stage in model.base_model.model.stages)
    assert len(used) == blocks and all("modules_to_save" in name for name in used)


def test_captum_attributes() -> None:
    attr = pytest.importorskip("captum.attr")
    model = timm.create_model(NAME, num_classes=3).eval()
    assert (
        attr.IntegratedGradients(model).attribute(some_images(count=1), target=1, n_steps=4).isfinite().all()
    )
    assert attr.LayerGradCam(model, model.stages[-1]).attribute(some_images(count=1), target=1).ndim == 4


def test_accelerate_steps() -> None:
    library = pytest.importorskip("accelerate")
    accelerator, model = library.Accelerator(cpu=True), timm.create_model(NAME, num_classes=3)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1.0, weight_decay=0.05))
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        accelerator.backward(model(some_images()).square().sum())
        optimizer.step()
    assert all(stage.positions.abs().max() <= 8 for stage in model.stages), "inside the kernel of 17 x 17"
