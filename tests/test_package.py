"""What is shipped, who imports whom, and that what the documentation shows runs."""

import ast
import graphlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
FOLDERS = ("train", "eval", "hub")
WINGS = {
    "eval": {"eval.audio", "eval.classification", "eval.interpretability", "eval.speed"},
    "train": {"train.audio", "train.delays", "train.dense", "train.study"},
}
HEAVY = {"pytorch_lightning", "lightning", "jsonargparse", "matplotlib", "sklearn", "torchmetrics"}

# What each part of the library may import of the library. Files that are not named may import all of it.
MAY_IMPORT = {
    "dcls_models.layers": {"dcls_models.layers"},
    "dcls_models.strided": set(),
    "dcls_models.warm_start": {"dcls_models.layers", "dcls_models.files"},
    "dcls_models.dclsify": {"dcls_models.layers", "dcls_models.strided", "dcls_models.warm_start"},
    "dcls_models.deploy": {"dcls_models.layers"},
    "dcls_models.onnx": {"dcls_models.layers", "dcls_models.deploy", "dcls_models.files"},
    "dcls_models.files": set(),
    "dcls_models.options": set(),
    "dcls_models.pictures": {"dcls_models.files"},
    "dcls_models.spiking": {"dcls_models.spiking", "dcls_models.layers", "dcls_models.files"},
    "dcls_models.folders": {"dcls_models.files"},
    "dcls_models.config": {"dcls_models.files"},
    "dcls_models.loading": {
        "dcls_models.checkpoint",
        "dcls_models.config",
        "dcls_models.files",
        "dcls_models.spectrogram",
        "dcls_models._timm",
    },
    "dcls_models.provenance": set(),
    "dcls_models.published": set(),
    "dcls_models.images": {"dcls_models.files"},
    "dcls_models.sounds": {"dcls_models.sounds", "dcls_models.files", "dcls_models.folders"},
    "dcls_models.spikes": {
        "dcls_models.spikes",
        "dcls_models.files",
        "dcls_models.folders",
        "dcls_models.sounds",
        "dcls_models.spectrogram",
    },
    "dcls_models.markdown": set(),
    "dcls_models.spectrogram": set(),
    "dcls_models._timm": set(),
    "dcls_models.checkpoint": {"dcls_models.layers", "dcls_models.files", "dcls_models._timm"},
    "dcls_models.models": {
        "dcls_models.layers",
        "dcls_models.dclsify",
        "dcls_models.checkpoint",
        "dcls_models.spectrogram",
        "dcls_models.strided",
        "dcls_models._timm",
        "dcls_models.models",
    },
}

LONGEST = 350  # lines of a source file

BROUGHT = {"filelock", "numpy", "PIL", "safetensors"}  # by torch, timm and its torchvision
OPTIONAL = {"dcls_models.layers.depthwise.triton_kernels": {"triton"}}  # imported only where it is installed
WHEN_CALLED = {
    "dcls_models.onnx": {"onnx"},  # imported in functions only, with an error that says what to install
    "dcls_models.pictures": {"matplotlib"},
    "dcls_models.sounds.reading": {"soundfile", "scipy"},
    "dcls_models.sounds.audioset": {"h5py"},
    "dcls_models.sounds.hub": {"datasets"},
    "dcls_models.spikes.hdf5": {"h5py"},
}


def modules(folder: str) -> dict[str, Path]:
    """Dotted names and files of all modules below a folder of the repository."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, also inside functions and for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Dotted names that a module imports; ``from a import b`` is ``a.b`` where that is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        base = statement.module or ""
        if statement.level:
            above = package.split(".")[: len(package.split(".")) - statement.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        for alias in statement.names:
            whole = f"{base}.{alias.name}"
            found.add(whole if whole in known else base)
    return found


LIBRARY = modules("dcls_models")


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


class TestImports:
    @pytest.mark.parametrize("name", LIBRARY)
    def test_the_library_imports_downwards(self, name: str) -> None:
        allowed = next((may for part, may in MAY_IMPORT.items() if within(name, {part})), {"dcls_models"})
        ours = {i for i in imports(name, LIBRARY[name], LIBRARY) if within(i, {"dcls_models"})}
        assert {i for i in ours if not within(i, allowed)} == set()

    def test_rules_name_parts_that_exist(self) -> None:
        assert MAY_IMPORT.keys() <= LIBRARY.keys()

    def test_nothing_imports_in_a_circle(self) -> None:
        graph = {name: imports(name, path, LIBRARY) & LIBRARY.keys() for name, path in LIBRARY.items()}
        assert graph["dcls_models.dclsify"] == {
            "dcls_models.layers",
            "dcls_models.layers.dcls",
            "dcls_models.layers.positions",
            "dcls_models.strided",
            "dcls_models.warm_start",
        }
        graphlib.TopologicalSorter(graph).prepare()

    @pytest.mark.parametrize("name", LIBRARY)
    def test_the_library_needs_torch_and_timm_only(self, name: str) -> None:
        roots = {i.partition(".")[0] for i in imports(name, LIBRARY[name], LIBRARY)}
        assert roots - set(sys.stdlib_module_names) <= {
            "torch",
            "timm",
            "dcls_models",
            *BROUGHT,
            *OPTIONAL.get(name, ()),
            *WHEN_CALLED.get(name, ()),
        }
        assert not OPTIONAL.keys() & imports(name, LIBRARY[name], LIBRARY), (
            "they are imported by name, when needed"
        )

    @pytest.mark.parametrize("name", WHEN_CALLED)
    def test_what_is_needed_when_called_is_imported_then(self, name: str) -> None:
        tree = ast.parse(LIBRARY[name].read_text("utf-8"))
        at_once = "\n".join(
            ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
        )
        assert not [package for package in WHEN_CALLED[name] if package in at_once.split()]
        assert imports(name, LIBRARY[name], LIBRARY) & {*WHEN_CALLED[name], "scipy.signal"}

    @pytest.mark.parametrize("folder", FOLDERS)
    def test_the_folders_of_a_checkout_never_import_each_other(self, folder: str) -> None:
        found = modules(folder)
        assert found
        roots = {i.partition(".")[0] for name, path in found.items() for i in imports(name, path, found)}
        assert not roots & (set(FOLDERS) - {folder})
        assert not roots & {"tests", "lightning"}
        assert "dcls_models" in roots

    def test_no_file_is_long(self) -> None:
        files = [path for folder in ("dcls_models", *FOLDERS) for path in modules(folder).values()]
        lengths = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in files}
        assert [name for name, lines in lengths.items() if lines > LONGEST] == []

    @pytest.mark.parametrize("folder", FOLDERS)
    def test_nothing_in_the_folders_of_a_checkout_imports_in_a_circle(self, folder: str) -> None:
        known = modules(folder)
        graph = {name: imports(name, path, known) & known.keys() for name, path in known.items()}
        assert not [name for name, used in graph.items() if any(u.endswith(".__main__") for u in used)]
        graphlib.TopologicalSorter(graph).prepare()

    @pytest.mark.parametrize(("folder", "wing"), [(f, wing) for f in WINGS for wing in sorted(WINGS[f])])
    def test_wings_do_not_know_each_other(self, folder: str, wing: str) -> None:
        known = modules(folder)
        files = {name: path for name, path in known.items() if within(name, {wing})}
        assert len(files) > 3
        used = {i for name, path in files.items() for i in imports(name, path, known)}
        assert not {i for i in used if within(i, WINGS[folder] - {wing})}
        assert not used & {"eval.cli", "eval.report"}


def run_command(folder: Path, *arguments: str, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    """``python -m dcls_models`` of the checkout, in another folder."""
    run, environment = [sys.executable, "-m", "dcls_models", *arguments], os.environ | {"PYTHONPATH": path}
    return subprocess.run(run, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_the_commands_of_a_checkout_run_from_anywhere(tmp_path: Path) -> None:
    done = run_command(tmp_path, "hub", "verify", "nowhere")
    assert (done.returncode, done.stderr) == (1, "error: there is no folder nowhere\n")


def test_a_recipe_is_found_from_anywhere(tmp_path: Path) -> None:
    done = run_command(tmp_path, "train", "fit", "--config", "configs/finetune.yaml", "--print_config")
    assert done.returncode == 0 and "default_root_dir: runs/finetune" in done.stdout, done.stderr


def test_a_command_without_its_packages_says_what_to_install(tmp_path: Path) -> None:
    metadata = tmp_path / "dcls_models-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    needs = [f"Requires-Dist: {name}; extra == 'hub'\n" for name in ("numpy>=1", "not-there>=2")]
    metadata.write_text("Metadata-Version: 2.1\nName: dcls_models\nVersion: 0\n" + "".join(needs))
    done = run_command(tmp_path, "hub", "verify", "nowhere", path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: hub needs not-there, which an extra brings: pip install '.[hub]'")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("package")
    made = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, folder / "source", ignore=made)  # because setuptools writes beside the sources
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def shipped_files() -> set[str]:
    """What a wheel holds: the library, and the folders of the commands below it, without the Space."""
    files = {p.relative_to(ROOT) for folder in (*FOLDERS, "configs") for p in (ROOT / folder).rglob("*.*")}
    commands = {
        f"dcls_models/commands/{p.as_posix()}" for p in files if not {"__pycache__", "space"} & {*p.parts}
    }
    return (
        {p.relative_to(ROOT).as_posix() for p in LIBRARY.values()}
        | commands
        | {"dcls_models/py.typed", "dcls_models/published.csv"}
    )


class TestDistributions:
    def test_wheel_contains_the_library_its_commands_and_nothing_else(self, wheel: Path) -> None:
        names = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith("/")}
        shipped = {n for n in names if not PurePosixPath(n).parts[0].endswith(".dist-info")}
        assert shipped == shipped_files()
        assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)

    def test_wheel_runs_everywhere(self, wheel: Path) -> None:
        assert wheel.name.endswith("-py3-none-any.whl")

    def test_metadata(self, wheel: Path) -> None:
        archive = zipfile.ZipFile(wheel)
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        assert metadata["Requires-Python"] == ">=3.10"
        assert metadata["License-Expression"] == "MIT"
        needs = [n for n in metadata.get_all("Requires-Dist") if "extra ==" not in n]
        assert sorted(re.split(r"[<>=!~ ]", n)[0] for n in needs) == ["timm", "torch"]
        extras = {"train", "eval", "robustness", "hub", "dense", "audio", "delays", "onnx", "all", "dev"}
        assert set(metadata.get_all("Provides-Extra")) == extras
        assert "DCLS" in metadata.get_payload()

    def test_source_distribution(self, built: Path) -> None:
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            names = {n.partition("/")[2] for n in archive.getnames()}
        assert {"LICENSE", "README.md", "pyproject.toml", "dcls_models/py.typed"} <= names
        assert {p.relative_to(ROOT).as_posix() for p in LIBRARY.values()} <= names
        assert not [n for n in names if n.startswith(("runs", "."))]


USE_IT = """
import contextlib, importlib.metadata, io, json, sys, warnings
import timm, torch
from packaging.requirements import Requirement

before, said = set(sys.modules), io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
    warnings.simplefilter("error")
    import dcls_models
model = timm.create_model("test_convnext_dcls", num_classes=7).eval()
with torch.no_grad():
    shape = list(model(torch.randn(2, 3, 64, 64)).shape)
imported, everything = set(sys.modules) - before, set(sys.modules)
distribution = importlib.metadata.distribution("dcls_models")
requirements = [Requirement(r) for r in distribution.requires]
needs = {r.name: r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
result = {
    "file": dcls_models.__file__,
    "installed": sorted(str(f) for f in distribution.files if f.suffix in (".py", ".typed")),
    "origin": json.loads(distribution.read_text("direct_url.json"))["url"],
    "satisfied": {
        name: need.specifier.contains(importlib.metadata.version(name), prereleases=True)
        for name, need in needs.items()
    },
    "version": dcls_models.__version__,
    "metadata": distribution.version,
    "said": said.getvalue(),
    "imported": sorted({name.partition(".")[0] for name in imported}),
    "all": sorted({name.partition(".")[0] for name in everything}),
    "exported": [hasattr(dcls_models, name) for name in dcls_models.__all__],
    "models": len(timm.list_models("*dcls*")),
    "shape": shape,
}
json.dump(result, open(sys.argv[1], "w"))
"""


def run_in(environment: Path, *arguments: str | Path, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """The Python of an environment, away from the checkout."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))}
    variables["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    command = [str(environment / "bin" / "python"), *map(str, arguments)]
    elsewhere = environment / "elsewhere"
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=elsewhere, env=variables
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that sees what the library needs, but neither the library nor the checkout.

    It is lent the packages of the running Python, with pip and setuptools. The .pth files there are not read,
    and so not that of an editable install.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (folder / "elsewhere").mkdir()
    (packages,) = (folder / "lib").glob("python*/site-packages")
    lent = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (packages / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    found = run_in(folder, "-c", "import timm, importlib.util as u; print(u.find_spec('dcls_models'))")
    assert (found.returncode, found.stdout) == (0, "None\n"), found.stdout + found.stderr
    return folder


@pytest.fixture(scope="module", params=["*.tar.gz", "*.whl"], ids=["source", "wheel"])
def used(request: pytest.FixtureRequest, built: Path, environment: Path) -> dict[str, object]:
    """What somebody finds who has installed the source distribution or the wheel, and has no checkout."""
    (archive,) = built.glob(request.param)
    pip = ["-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall"]
    done = run_in(environment, *pip, "--no-compile", archive)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = environment / f"{archive.name}.json"
    done = run_in(environment, "-c", USE_IT, result)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {"archive": archive.as_uri(), "prefix": str(environment), **json.loads(result.read_text())}


class TestInstalled:
    def test_it_is_the_archive_that_is_used(self, used: dict[str, str]) -> None:
        assert Path(used["prefix"]) in Path(used["file"]).parents
        assert used["origin"] == used["archive"]

    def test_it_is_all_that_a_wheel_holds(self, used: dict[str, list[str]]) -> None:
        assert set(used["installed"]) == {f for f in shipped_files() if f.endswith((".py", ".typed"))}

    def test_what_it_needs_is_what_the_tests_ran_with(self, used: dict[str, dict[str, bool]]) -> None:
        assert used["satisfied"] == {"torch": True, "timm": True}

    def test_a_model_works(self, used: dict[str, object]) -> None:
        assert used["shape"] == [2, 7]
        assert used["exported"]
        assert all(used["exported"])  # type: ignore[arg-type]

    def test_all_models_are_there(self, used: dict[str, object]) -> None:
        import timm

        import dcls_models  # noqa: F401

        assert used["models"] == len(timm.list_models("*dcls*"))

    def test_version(self, used: dict[str, str]) -> None:
        assert used["version"] == used["metadata"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", used["version"])

    def test_its_commands_run_beside_files_of_the_same_name(
        self, used: dict[str, str], environment: Path
    ) -> None:
        (environment / "elsewhere" / "hub").mkdir(exist_ok=True)
        (environment / "elsewhere" / "hub" / "__init__.py").write_text("raise SystemExit('not this one')")
        done = run_in(environment, "-m", "dcls_models")
        assert done.returncode == 0 and used["version"] in done.stdout
        assert str(Path(used["file"]).parent / "commands") in done.stdout
        done = run_in(environment, "-m", "dcls_models", "hub", "verify", "nowhere")
        expected = "error: there is no folder nowhere\n" if sys.version_info >= (3, 11) else "not this one\n"
        assert (done.returncode, done.stderr) == (1, expected)
        shutil.rmtree(environment / "elsewhere" / "hub")

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_a_folder_of_photos_becomes_a_model(self, used: dict[str, str], environment: Path) -> None:
        """Fine-tuning, evaluation and export as the first page prints them, without a checkout."""
        for number, name in enumerate(("dark", "light")):
            (environment / "elsewhere" / "photos" / name).mkdir(parents=True, exist_ok=True)
            for i in range(10):
                colour = (10 * i, 180 * number, 5 * i)
                picture = environment / "elsewhere" / "photos" / name / f"{i}.png"
                Image.new("RGB", (40, 40), colour).save(picture)
        options = (
            "--model.name test_convnext_dcls --model.pretrained false --data.img_size 32 --data.num_workers 0"
        )
        for command in (
            f"train fit --config configs/finetune.yaml --data.root photos --trainer.max_epochs 2 {options}",
            "hub export --checkpoint runs/finetune/checkpoints/last.ckpt --out runs/finetune",
            "eval accuracy --model local-dir:runs/finetune --data photos --held-out --output runs/a.json",
            "eval predict --model local-dir:runs/finetune photos/dark/0.png",
            "hub card runs/finetune --repo USER/NAME --results runs/a.json --license mit",
        ):
            done = run_in(environment, "-m", "dcls_models", *command.split())
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert (environment / "elsewhere" / "runs" / "finetune" / "README.md").is_file()
        shutil.rmtree(environment / "elsewhere" / "runs")

    def test_importing_says_nothing(self, used: dict[str, str]) -> None:
        assert used["said"] == ""

    def test_importing_brings_in_nothing_heavy(self, used: dict[str, list[str]]) -> None:
        assert "dcls_models" in used["imported"]
        assert not HEAVY & set(used["all"])
        assert not set(FOLDERS) & set(used["all"])
