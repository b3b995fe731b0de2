"""What the Hub says, in one line: every error of ``huggingface_hub`` becomes a clear one here."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from dcls_models.files import one_line, sha256_of
from hub import HubError

AGAIN = "run the same command again"
MEANING = {
    401: "the token is not valid: make one at huggingface.co/settings/tokens, then run hf auth login",
    402: "the account has no room left for this: free some, or pay for more",
    403: "the token may not do that: it needs the right to write to this repository",
    404: "it does not exist, or the token may not see it",
    409: "something else is being done to the repository: wait a moment, then " + AGAIN,
    412: "somebody has changed the repository in the meantime: look at it, then run the same command again",
    413: "it is more than the quota of the account allows: free some room, or pay for more",
    429: "too many requests: wait a few minutes, then " + AGAIN,
    507: "the storage of the account is full: free some room, or pay for more",
}


def check_repo_id(repo: str) -> None:
    """Makes sure that a name is one that the Hub takes, before it is asked.

    Raises:
        HubError: If it is not ``USER/NAME``.
    """
    check_dataset_id(repo)
    if "/" not in repo:
        raise HubError(f"a repository is named USER/NAME, got {repo!r}")


def check_dataset_id(name: str) -> None:
    """Likewise of a data set, which may have no user.

    Raises:
        HubError: If it is not ``NAME`` or ``USER/NAME``.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(_line(error)) from None


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turns what the client raises inside into a :class:`HubError` that says what was being done.

    Args:
        doing: What the error begins with, such as ``publishing to USER/NAME``.
    """
    try:
        yield
    except (HubError, KeyboardInterrupt):
        raise
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise HubError(f"{doing}: {_line(error)}") from None
    except (ValueError, RuntimeError, OSError, AssertionError) as error:
        raise HubError(f"{doing}: {_meaning(error)}") from None
    except Exception as error:  # connection errors, which derive from nothing more telling
        if "httpx" not in type(error).__module__ and "httpcore" not in type(error).__module__:
            raise
        raise HubError(f"{doing}: {_meaning(error)}") from None


def _meaning(error: BaseException) -> str:
    chain, link = [], error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    for cause in chain:
        if isinstance(cause, RepositoryNotFoundError):
            return "there is no such repository, or the token may not see it (hf auth login)"
        if isinstance(cause, RevisionNotFoundError):
            return "there is no such revision of it (a branch, a tag or a commit)"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            said = without_token(cause.server_message or "").strip().splitlines()
            after = f" ({said[0]})" if said else ""
            server = f"the Hub has a problem of its own: wait a while, then {AGAIN}"
            return f"error {status}: {MEANING.get(status, server if status >= 500 else _line(cause))}{after}"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set and it is not in the cache: unset it to use the network"
    if any(
        "httpx" in type(cause).__module__ or isinstance(cause, LocalEntryNotFoundError) for cause in chain
    ):
        return f"the Hub cannot be reached ({type(chain[-1]).__name__}): check the network, then {AGAIN}"
    return _line(error)


def _line(error: BaseException) -> str:
    return without_token(one_line(error))


def without_token(text: str) -> str:
    """The text without the token, should it ever be in it."""
    token = get_token()
    return text.replace(token, "***") if token else text


def remote_files(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    """The files of a revision by path, with their hashes."""
    tree = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def expected_hash(file: RepoFile) -> str:
    """The sha256 of a large file, git's hash of a small one."""
    return file.lfs.sha256 if file.lfs else file.blob_id


def same_content(path: Path, expected: str) -> bool:
    """Whether a file has a hash: a sha256, or git's sha1 of 40 digits."""
    if len(expected) == 64:
        return sha256_of(path) == expected
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == expected
