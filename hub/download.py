"""From the Hub, or from its cache, to weights that are what was published."""

from collections.abc import Set
from dataclasses import replace
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from dcls_models.config import CONFIG
from hub import HubError
from hub.folder import (
    FILES,
    PICKLES,
    WEIGHTS,
    Checked,
    check_folder,
    copy_files,
    is_ours,
    published_files,
)
from hub.remote import expected_hash, explained, remote_files, same_content


def download(repo: str, revision: str = "main", out: Path | None = None, offline: bool = False) -> Checked:
    """Fetches a published model, checks every hash, and looks at it before anything could load it.

    A connection that breaks is taken up where it broke; files that are complete are not fetched again.

    Args:
        repo: ``USER/NAME``.
        revision: Branch, tag or commit.
        out: Folder to copy it to; without one it stays in the cache, where ``hf-hub:`` finds it.
        offline: Use the cache only.

    Returns:
        The folder with what its files say; its path is ``out``, or the folder in the cache.

    Raises:
        HubError: If it cannot be had, or is not what was published, or not what timm can load.
    """
    with explained(f"downloading {repo} at {revision}"):
        hashes = {} if offline or constants.HF_HUB_OFFLINE else _listed(repo, revision)
        pinned = hashes.pop("commit", revision)
        try:
            cached = Path(
                snapshot_download(repo, revision=pinned, allow_patterns=list(FILES), local_files_only=offline)
            )
        except LocalEntryNotFoundError as error:
            if not offline:
                raise
            raise HubError(f"{repo} at {revision} is not in the cache: leave out --offline") from error
        if pinned != revision:  # so that the name is known offline too
            snapshot_download(repo, revision=revision, allow_patterns=list(FILES))
    files = {path.relative_to(cached).as_posix(): path for path in cached.rglob("*") if path.is_file()}
    _check_hashes(files, hashes, repo)
    checked = check_folder(cached, root=cached.parent.parent)
    print(f"{repo} at commit {cached.name}: {len(files)} files, every hash as published")
    if out is None:
        return checked
    published = published_files(cached)
    _check_no_others(out, published.keys(), repo)
    copy_files(published, out)
    return replace(checked, path=out)


def verify(folder: Path, repo: str | None = None, revision: str = "main") -> Checked:
    """Checks a folder, and against the Hub if it is said where it comes from.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        repo: ``USER/NAME`` that it should be the same as.
        revision: Of the repository.

    Raises:
        HubError: If something is missing, changed or damaged.
    """
    checked = check_folder(folder)
    if repo:
        with explained(f"verifying against {repo} at {revision}"):
            hashes = _listed(repo, revision)
        hashes.pop("commit")
        for name, expected in hashes.items():
            if not (folder / name).is_file():
                raise HubError(f"{folder} lacks {name}, which {repo} has")
            if not same_content(folder / name, expected):
                raise HubError(f"{folder / name} is not what {repo} has at {revision}: download it again")
        _check_no_others(folder, hashes.keys(), repo)
    return checked


def _listed(repo: str, revision: str) -> dict[str, str]:
    """Hashes of what we fetch of a repository, and under ``commit`` what the revision means now."""
    api = HfApi()
    commit = api.model_info(repo, revision=revision).sha
    assert commit is not None
    there = remote_files(api, repo, commit)
    for name in there:
        if PurePosixPath(name).is_absolute() or ".." in name.replace("\\", "/").split("/"):
            raise HubError(f"{repo} has a file named {name!r}, which would leave the folder; it is refused")
    if WEIGHTS not in there:
        pickles = sorted(n for n in there if any(PurePosixPath(n).match(pattern) for pattern in PICKLES))
        what = f"only {', '.join(pickles)}; a pickle can run code and is refused" if pickles else "no weights"
        raise HubError(f"{repo} at {revision} has no {WEIGHTS}, {what}")
    if CONFIG not in there:
        raise HubError(f"{repo} at {revision} has no {CONFIG}: it is not a timm model")
    ours = {n: f for n, f in there.items() if is_ours(n)}
    return {name: expected_hash(file) for name, file in ours.items()} | {"commit": commit}


def _check_no_others(folder: Path, names: Set[str], repo: str) -> None:
    others = sorted(published_files(folder).keys() - names)
    if others:
        raise HubError(
            f"{folder} has {', '.join(others)}, which {repo} has not and which may be of other weights: "
            "choose another folder, or remove it"
        )


def _check_hashes(files: dict[str, Path], hashes: dict[str, str], repo: str) -> None:
    """Compares with what the Hub lists; offline with the names that the cache gives to its files."""
    missing = sorted(hashes.keys() - files.keys())
    if missing:
        raise HubError(f"the download of {repo} lacks {', '.join(missing)}: run the same command again")
    for name, path in files.items():
        blob = path.readlink() if path.is_symlink() else None
        expected = hashes.get(name) or (blob.name if blob else None)
        if expected and not same_content(path, expected):
            path.resolve().unlink()  # so that the next download fetches it
            if path.is_symlink():
                path.unlink()
            raise HubError(
                f"{name} of {repo} is not what was published (its hash is not {expected}); it was removed "
                "from the cache: run the same command again"
            )
