"""From a folder to the Hub: one commit with everything, or nothing. The only file that sends."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from dcls_models.config import CONFIG
from dcls_models.files import one_line
from hub import HubError
from hub.folder import CARD, Checked, check_folder, is_ours, published_files
from hub.measured import check_weights, result_of
from hub.remote import check_repo_id, expected_hash, explained, remote_files, same_content

TAG = r"(?!.*\.\.)\w[\w.-]{0,99}"  # what git takes; the Hub would refuse others after the commit
ALWAYS_THERE = {".gitattributes"}  # the Hub makes it with the repository


def publish(
    folder: Path,
    repo: str,
    *,
    push: bool = False,
    direct: bool = False,
    private: bool = False,
    overwrite: bool = False,
    tag: str | None = None,
) -> str:
    """Publishes a folder as one commit, by default as a pull request, and checks every hash afterwards.

    Args:
        folder: Of ``python -m hub export`` or ``convert``, with a card.
        repo: ``USER/NAME``; it is made if it does not exist.
        push: Without it nothing is sent: what would be done is shown.
        direct: To the main branch instead of a pull request.
        private: Whether a new repository is private.
        overwrite: Publish although the repository holds something else.
        tag: Name for this version; by default made of the sha256 of the weights.

    Returns:
        The commit; empty in a dry run.

    Raises:
        HubError: If ``repo`` is no name, the folder is not sound, or the Hub does not take it. The repository
            is then as it was.
    """
    check_repo_id(repo)
    checked = check_folder(folder)
    files = published_files(folder)
    _check_card(folder)
    check_weights(folder, {p: result_of(p) for name, p in files.items() if fnmatch(name, "results*.json")})
    tag = tag or f"weights-{checked.sha256[:8]}"
    if not re.fullmatch(TAG, tag) or tag.endswith((".", ".lock")) or tag == "HEAD":
        raise HubError(f"a tag is made of letters, digits, '.', '-' and '_', such as v1.0; got {tag[:60]!r}")
    _show(checked, files, repo, tag, direct)
    if not push:
        print("nothing was sent: this was a dry run; add --push")
        return ""
    with explained(f"publishing to {repo}"):
        return _send(HfApi(), checked, files, repo, tag, direct, private, overwrite)


def _check_card(folder: Path) -> None:
    if not (folder / CARD).is_file():
        raise HubError(f"{folder} has no {CARD}: python -m hub card writes the model card from results")
    try:
        data = ModelCard.load(folder / CARD).data
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise HubError(f"{folder / CARD} cannot be read as a model card: {one_line(error)}") from error
    if not data.get("license"):
        raise HubError(f"{folder / CARD} says nothing of a licence: write the card with python -m hub card")


def _show(checked: Checked, files: dict[str, Path], repo: str, tag: str, direct: bool) -> None:
    where = "the main branch" if direct else "a pull request"
    print(
        f"{checked.config['architecture']}, {checked.parameters:,} parameters, to {where} of {repo}, "
        f"tag {tag}:"
    )
    for name, path in files.items():
        print(f"  {path.stat().st_size:>12,}  {name}")
    others = sorted({p.name for p in checked.path.iterdir()} - {Path(name).parts[0] for name in files})
    if others:
        print(f"not published: {', '.join(others)}")
    print(f"--- {CARD}\n{(checked.path / CARD).read_text(encoding='utf-8')}---")


def _send(
    api: HfApi,
    checked: Checked,
    files: dict[str, Path],
    repo: str,
    tag: str,
    direct: bool,
    private: bool,
    overwrite: bool,
) -> str:
    _check_user(api, repo)
    parent = _parent(api, repo, checked, overwrite, private)
    tagged = _is_tagged(api, repo, tag, files)
    message = f"{checked.config['architecture']}, weights {checked.sha256[:12]}"
    earlier = None if direct else _earlier_pull_request(api, repo, message, files)
    differing = _differing(api, repo, parent, files)
    if not differing:
        commit, where = parent, "main had it already"
    elif earlier:
        commit, where = earlier
    else:
        done = api.create_commit(
            repo,
            [CommitOperationAdd(n, files[n]) if n in files else CommitOperationDelete(n) for n in differing],
            commit_message=message,
            parent_commit=parent,
            create_pr=not direct,
        )
        commit, where = done.oid, done.pr_url or done.commit_url
    wrong = _differing(api, repo, commit, files)
    if wrong:
        raise HubError(
            f"{repo} at {commit} does not have what was sent in {', '.join(wrong)}: do not merge or use it, "
            "and publish again"
        )
    if not tagged:
        api.create_tag(repo, tag=tag, revision=commit)
    print(f"published and checked: {where}\n  commit {commit}, tag {tag}")
    return commit


def _check_user(api: HfApi, repo: str) -> None:
    if not get_token():
        raise HubError("there is no token: run hf auth login, or set HF_TOKEN, with one that may write")
    me = api.whoami()
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError("the token may only read: make one that may write at huggingface.co/settings/tokens")
    names = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    if repo.split("/")[0] not in names:
        raise HubError(
            f"{repo} is not yours: the token is for {' and '.join(names)}; publish to {names[0]}/NAME"
        )


def _parent(api: HfApi, repo: str, checked: Checked, overwrite: bool, private: bool) -> str:
    """The commit to build on: of the repository as it is, or of a new one."""
    try:
        parent = api.model_info(repo).sha
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        parent = api.model_info(repo).sha
    assert parent is not None
    there = remote_files(api, repo, parent)
    strange = sorted(name for name in there if name not in ALWAYS_THERE and not is_ours(name))
    if CONFIG in there:
        text = Path(api.hf_hub_download(repo, CONFIG, revision=parent)).read_bytes()
        try:
            theirs = json.loads(text)
        except ValueError:
            theirs = None
        name = theirs.get("architecture") if isinstance(theirs, dict) else None
        if name != checked.config["architecture"]:
            strange.append(f"{CONFIG} of a {name}")
    if strange and not overwrite:
        raise HubError(
            f"{repo} holds something else already ({', '.join(strange[:5])}): choose another name, or "
            "add --overwrite (files that are none of ours stay there)"
        )
    return parent


def _earlier_pull_request(
    api: HfApi, repo: str, message: str, files: dict[str, Path]
) -> tuple[str, str] | None:
    """The open pull request of an earlier try whose answer was lost, if it has these very files."""
    for pull in api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"):
        revision = f"refs/pr/{pull.num}"
        if pull.title == message and not _differing(api, repo, revision, files):
            commit = api.model_info(repo, revision=revision).sha
            assert commit is not None
            return commit, pull.url
    return None


def _differing(api: HfApi, repo: str, revision: str, files: dict[str, Path]) -> list[str]:
    """Names that are missing, other or too many in a revision."""
    there = remote_files(api, repo, revision)
    other = [n for n, p in files.items() if n not in there or not same_content(p, expected_hash(there[n]))]
    return other + [name for name in there if is_ours(name) and name not in files]


def _is_tagged(api: HfApi, repo: str, tag: str, files: dict[str, Path]) -> bool:
    """Whether there is such a tag, which then must be of these files."""
    refs = api.list_repo_refs(repo)
    if tag in {ref.name for ref in refs.branches}:
        raise HubError(f"{repo} has a branch {tag}, which a tag of that name would hide: add --tag NAME")
    known = {ref.name: ref.target_commit for ref in refs.tags}
    if tag in known and _differing(api, repo, known[tag], files):
        raise HubError(f"{repo} has a tag {tag} already, of other files: add --tag NAME")
    return tag in known
