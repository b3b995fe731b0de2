"""Config files as they are typed: what the parser would say of one that is none names no file."""

import os
from pathlib import Path

import yaml
from pytorch_lightning.cli import ArgsType


def check_configs(words: ArgsType) -> None:
    """Checks the files that ``--config`` gives.

    Raises:
        ValueError: If one is not text with sections.
    """
    if not isinstance(words, list):
        return
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in ("--config", "-c"):
            _check_config(Path(os.path.expanduser(value or following)))  # noqa: PTH111


def _check_config(file: Path) -> None:
    """Makes sure that a config is text with sections; what is in them, and a missing file, is for the parser.

    Raises:
        ValueError: If it is not.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {file} is not text in UTF-8: save it as that") from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--config {file} is not YAML: {said}") from error
    except OSError:
        return
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ValueError(f"--config {file} {found}: expected sections like those in configs/finetune.yaml")
    for section in ("trainer", "model", "data"):
        if section in content and content[section] is None:
            raise ValueError(f"--config {file}: the section {section} is empty, fill it or take it out")
