"""Fetch files from the Hugging Face Hub, Zenodo and the web, and check them before use."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ClipagError, UnknownModelError
from .files import write_beside

ZENODO = "https://zenodo.org"
BY_HAND = (
    "put its open_clip_config.json and open_clip_model.safetensors into a folder and name that "
    "folder as the model; clipag-mini works now, without a download"
)


def cache_folder(root: str | Path | None = None) -> Path:
    """Return the folder for files that are not from the Hub, `~/.cache/clipag` by default."""
    if root is not None:
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clipag"


@contextmanager
def hub_errors(repo: str, remedy: str) -> Iterator[None]:
    """Turn errors of huggingface_hub inside the block into one sentence that ends in a remedy.

    Args:
        repo: how messages name the server or repository.
        remedy: what to do if it cannot be reached.

    Raises:
        RemoteEntryNotFoundError: of huggingface_hub: the repository has no such file.
        ClipagError: the request failed for another reason.
    """
    from huggingface_hub import errors

    # huggingface_hub's HTTP client depends on its version; this is the client's base error.
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.RemoteEntryNotFoundError:
        raise
    except errors.GatedRepoError as error:
        raise ClipagError(
            f"{repo} is gated: ask for access on its page at the Hub, then run hf auth login."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ClipagError(f"{repo} has no such revision: see its history on the Hub.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UnknownModelError(
            f"There is no repository {repo!r} on the Hub, or it is private: check the name, or "
            "set HF_TOKEN."
        ) from error
    except (errors.LocalEntryNotFoundError, transport, ConnectionError, TimeoutError) as error:
        reason = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        raise ClipagError(
            f"{repo} cannot be reached ({_reason(reason or error)}): {remedy}."
        ) from error
    except OSError as error:
        # huggingface_hub raises this if a download is shorter than announced.
        if "Consistency check failed" not in str(error):
            raise
        raise ClipagError(f"The download from {repo} was incomplete: pull it again.") from error


def _reason(error: BaseException) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code}"
    return type(error).__name__


def hub_file(
    repo: str,
    filename: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    remedy: str = BY_HAND,
) -> Path | None:
    """Return the path of a file in a Hub repository; fetch it if it is not in the cache.

    Args:
        repo: "owner/name".
        filename: the file's path in the repository.
        revision: branch, tag or commit; by default the main branch.
        cache_dir: instead of the Hub's own cache.
        token: instead of the one that `hf auth login` or `HF_TOKEN` gave.
        remedy: what to do if the Hub cannot be reached, for the message.

    Returns:
        The path, or None if the repository has no such file.

    Raises:
        ClipagError: the file cannot be fetched, or does not match its checksum.
    """
    from huggingface_hub import constants, errors, get_session, hf_hub_download

    try:
        with hub_errors(repo, remedy):
            if not is_cached(repo, filename, cache_dir, revision):
                # Without a network, hf_hub_download would retry for half a minute; this does not.
                get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            path = Path(
                hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir, token=token)
            )
    except errors.RemoteEntryNotFoundError:
        return None
    blob = path.resolve()
    repo_folder = next(folder.parent for folder in path.parents if folder.name == "snapshots")
    if not blob.is_relative_to(repo_folder.resolve()):
        raise ClipagError(f"{path} points out of the cache, to {blob}: remove it and pull again.")
    # A blob's name in the cache is its checksum: SHA-256 for large files, git's for small ones.
    if blob.name not in (sha256(blob), _git_sha1(blob)) and re.fullmatch(
        r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name
    ):
        blob.unlink()
        raise ClipagError(f"{filename} of {repo} was damaged and has been removed: pull it again.")
    return path


def is_cached(
    repo: str, filename: str, cache_dir: str | Path | None = None, revision: str | None = None
) -> bool:
    """Return whether a file of a Hub repository is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision)
    return isinstance(path, str)


def zenodo_file(record: str, filename: str, folder: Path) -> Path:
    """Return the path of a file in a Zenodo record; fetch it if `folder` does not have it.

    An interrupted download resumes. A complete one is checked against the record's checksum before
    it gets its name. A file that the user put into `folder` by hand is not checked.

    Raises:
        ClipagError: the file cannot be fetched, or does not match its checksum.
    """
    from filelock import FileLock

    target = folder / filename
    digest = folder / f"{filename}.sha256"
    if target.is_file():
        if digest.is_file() and digest.read_text(encoding="utf-8").strip() != sha256(target):
            raise ClipagError(f"{target} is damaged: remove it and pull again.")
        return target
    remedy = (
        f"fetch {filename} from record {record} on another machine and put it at {target}; "
        "clipag-mini works now, without a download"
    )
    folder.mkdir(parents=True, exist_ok=True)
    with hub_errors("Zenodo", remedy), FileLock(folder / f"{filename}.lock"):
        if target.is_file():  # another process was faster
            return target
        partial = folder / f"{filename}.part"
        size, algorithm, checksum = _zenodo_entry(record, filename)
        _fetch(f"{ZENODO}/records/{record}/files/{filename}?download=1", partial, size)
        if _digest(partial, algorithm) != checksum:
            partial.unlink()
            raise ClipagError(f"{filename} arrived damaged and was removed: pull it again.")
        with write_beside(digest) as temporary:
            temporary.write_text(sha256(partial) + "\n", encoding="utf-8")
        partial.replace(target)
    return target


def web_file(url: str, target: Path) -> Path:
    """Return `target`; fetch it from a web address if it does not exist.

    An interrupted download resumes. Plain web servers publish no checksum, so only the length is
    checked; the reader of the file must check its content.

    Raises:
        ClipagError: the file cannot be fetched.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        hub_errors(url, f"fetch it on another machine and put it at {target}"),
        FileLock(f"{target}.lock"),
    ):
        if not target.is_file():
            partial = target.with_name(f"{target.name}.part")
            _fetch(url, partial)
            partial.replace(target)
    return target


def _zenodo_entry(record: str, filename: str) -> tuple[int, str, str]:
    """Return a file's size, checksum algorithm and checksum."""
    from huggingface_hub import get_session, hf_raise_for_status

    answer = get_session().get(f"{ZENODO}/api/records/{record}")
    hf_raise_for_status(answer)
    try:
        entry = next(e for e in answer.json()["files"] if e["key"] == filename)
        algorithm, checksum = entry["checksum"].split(":")
        return int(entry["size"]), algorithm, checksum
    except (StopIteration, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ClipagError(
            f"Zenodo's answer lists no file {filename} in record {record}: see "
            f"{ZENODO}/records/{record}."
        ) from error


def _fetch(url: str, partial: Path, size: int | None = None) -> None:
    """Download the rest of a file to `partial`, which may hold its beginning.

    `size` is the number of bytes of the whole file; None takes the server's word.
    """
    from huggingface_hub import errors
    from huggingface_hub.file_download import http_get

    try:
        with partial.open("ab") as file:
            http_get(url, file, resume_size=file.tell(), expected_size=size)
    except errors.HfHubHTTPError as error:
        if error.response.status_code == 416:  # `partial` is as long as the file, or longer
            partial.unlink()
            raise ClipagError(
                f"{partial} was not a part of {url} and has been removed: pull it again."
            ) from error
        raise


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    return _digest(path, "sha256")


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _git_sha1(path: Path) -> str:
    data = path.read_bytes() if path.stat().st_size < 2**24 else b""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
