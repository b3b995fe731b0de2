"""What README.md, CONTRIBUTING.md and docs/ tell somebody to type works as it is printed.

A block that is not run says why, in a comment above it: ``<!-- not run: REASON -->``.
"""

import argparse
import ast
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>\S.*?) -->\n)?^```(?P<kind>python|bash)\n(?P<code>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
MAKE_TARGET = re.compile(r"make ([a-z]+)")
PARSERS = {"eval": "eval.cli", "hub": "hub.cli"}  # argparse; train has Lightning's parser


class Block(NamedTuple):
    """One block of a page: its first line, and why it is not run, if so."""

    line: int
    code: str
    why: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The words of its shell commands, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path, kind: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [match for match in BLOCK.finditer(text) if match["kind"] == kind]
    return [Block(text.count("\n", 0, m.start("code")), m["code"], m["why"]) for m in found]


def to_run(page: Path, kind: str) -> list[Block]:
    return [block for block in blocks(page, kind) if not block.why]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class TestPython:
    @pytest.mark.parametrize("page", [p for p in PAGES if to_run(p, "python")], ids=name_of)
    def test_blocks_run(self, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One after the other, as somebody would type them."""
        monkeypatch.chdir(tmp_path)
        names: dict[str, object] = {"__name__": "__main__"}
        for block in to_run(page, "python"):
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)

    def test_the_readme_has_some(self) -> None:
        assert len(to_run(ROOT / "README.md", "python")) >= 2


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_is_overlooked(page: Path) -> None:
    """A fence that is indented or written otherwise would never be run."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"```+\s*(?:py|python|bash|sh|shell|console)\b", text)) == len(BLOCK.findall(text))
    assert text.count("<!-- not run") == sum(bool(m["why"]) for m in BLOCK.finditer(text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """To files of the repository; nothing is fetched."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def programs(page: Path) -> list[list[str]]:
    """Module and arguments of all commands of this repository that a page prints, run or not."""
    words = [command for block in blocks(page, "bash") for command in block.commands]
    modules = [command[command.index("-m") + 1 :] for command in words if "-m" in command]
    return [m for m in modules if m[0].partition(".")[0] in ("train", "eval", "hub") and "..." not in m]


PRINTED = [(page, program) for page in PAGES for program in programs(page)]


@pytest.mark.parametrize(
    ("page", "program"), PRINTED, ids=lambda x: name_of(x) if isinstance(x, Path) else ""
)
def test_options_are_known(page: Path, program: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command is parsed by the program that it is for, as far as that goes without running it."""
    module, *arguments = (w.replace("runs/demo/logs/config.yaml", "configs/digits.yaml") for w in program)
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file() or (
        ROOT / module.replace(".", "/") / "__main__.py"
    ).is_file()
    for word in arguments:
        if word.startswith(("configs/", "tests/", "docs/")) and Path(word).suffix != ".png":
            assert (ROOT / word).exists(), f"{word} is not in the repository"
    if module in PARSERS:
        assert isinstance(import_module(PARSERS[module]).parser().parse_args(arguments), argparse.Namespace)
    elif arguments and arguments[0] in ("fit", "validate", "test", "predict"):
        entry = f"{module}.command"
        main = import_module(entry if (ROOT / f"{entry.replace('.', '/')}.py").is_file() else module).main
        without_checkpoint = [word for word in arguments if word not in ("--ckpt_path", "last")]
        with pytest.raises(SystemExit) as exited:
            main([*without_checkpoint, "--print_config"])
        assert exited.value.code == 0, capsys.readouterr().err


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, as somebody would type them in an active environment."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{target}:")) + 1
    body = itertools.takewhile(lambda line: line.startswith("\t"), lines[start:])
    commands = [line.strip() for line in body if not line.startswith("\t@echo")]
    return [c.replace("$(BIN)/", "").replace("$(RUN)", "runs/demo") for c in commands]


def written(*pages: Path) -> set[str]:
    """What pages tell somebody to type: commands, and those that a comment says a ``make`` target runs."""
    commands = set()
    for line in (
        line for page in pages for block in blocks(page, "bash") for line in block.code.splitlines()
    ):
        command, _, comment = line.partition("#")
        commands.add(command.strip())
        if MAKE_TARGET.match(command):
            commands |= {part.strip() for part in re.split(r"&&|;", comment)}
    return commands - {""}


class TestCommands:
    def test_the_readme_installs_as_the_model_cards_do(self) -> None:
        from hub import INSTALL

        assert INSTALL.partition("#")[0].strip() in written(ROOT / "README.md")

    def test_make_demo_is_what_the_docs_give(self) -> None:
        assert len(recipe("demo")) >= 3
        printed = [block.code.replace("\\\n", "").splitlines() for p in PAGES for block in blocks(p, "bash")]
        assert recipe("demo") in printed

    @pytest.mark.parametrize("target", ["test", "lint"])
    def test_make_runs_commands_that_are_written_down(self, target: str) -> None:
        commands = [command.removeprefix("python -m ") for command in recipe(target)]
        assert commands
        assert set(commands) <= written(*PAGES)

    def test_continuous_integration_only_makes_what_is_written_down(self) -> None:
        lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
        assert "make test" in commands
        assert all(MAKE_TARGET.fullmatch(command) for command in commands)
        assert set(commands) <= written(*PAGES)
        assert all(recipe(command.removeprefix("make ")) for command in commands)


def run(folder: Path, script: str) -> None:
    """Runs shell commands, with the Python that runs the tests first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the demo was run."""
    folder = tmp_path_factory.mktemp("checkout") / "dcls_models"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs"))
    run(folder, "\n".join(recipe("demo")))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [p for p in PAGES if to_run(p, "bash")], ids=name_of)
def test_shell_blocks_run(page: Path, checkout: Path) -> None:
    """As printed, in their order, after the demo."""
    for block in to_run(page, "bash"):
        run(checkout, block.code)


def texts_of_the_code() -> str:
    """All texts in the sources, one a line, with what is filled in left out."""
    nodes = [
        node
        for folder in ("dcls_models", "train", "eval", "hub")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    return "\n".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


def test_troubleshooting_quotes_what_the_code_says() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.+?)` \|", page, re.M)
    assert len(messages) > 30
    texts = texts_of_the_code()
    parts = [part for message in messages for part in re.split(r"\s*\.\.\.\s*", message) if part]
    assert [part for part in parts if part not in texts] == []
