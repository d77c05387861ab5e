"""Fetch files from the Hugging Face Hub and from Zenodo; check them before they are used."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ClipagError
from .files import write_beside

ZENODO = "https://zenodo.org"
BY_HAND = (
    "put its open_clip_config.json and open_clip_model.safetensors into a folder and give that "
    "as the model; clipag-mini works now, without a download"
)


def cache_folder(root: str | Path | None = None) -> Path:
    """Return where files go that are not the Hub's own, `~/.cache/clipag` by default."""
    if root is not None:
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clipag"


@contextmanager
def hub_errors(repo: str, remedy: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence, which ends in the remedy.

    Raises:
        ClipagError: any of it, but for a file that the repository does not have.
    """
    from huggingface_hub import errors

    # The base error of whichever HTTP client the Hub's library uses.
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except errors.RemoteEntryNotFoundError:
        raise
    except errors.GatedRepoError as error:
        raise ClipagError(
            f"{repo} is gated: ask for access at its page on the Hub, then run `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ClipagError(f"{repo} has no such revision: see its history on the Hub.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ClipagError(
            f"There is no repository {repo!r} on the Hub, or it is private: check the name, or "
            "set HF_TOKEN."
        ) from error
    except (errors.LocalEntryNotFoundError, transport, ConnectionError, TimeoutError) as error:
        reason = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        raise ClipagError(
            f"{repo} cannot be reached ({_reason(reason or error)}): {remedy}."
        ) from error
    except OSError as error:
        # The Hub's client raises this where a download stays shorter than promised.
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
    """Return a file of a Hub repository, fetched if need be; None where it has no such file.

    `remedy` is what to do where the Hub cannot be reached.

    Raises:
        ClipagError: it cannot be had, or is not what its checksum says.
    """
    from huggingface_hub import constants, errors, get_session, hf_hub_download

    try:
        with hub_errors(repo, remedy):
            if not is_cached(repo, filename, cache_dir, revision):
                # Where there is no network, its client would try again for half a minute.
                get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            path = Path(
                hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir, token=token)
            )
    except errors.RemoteEntryNotFoundError:
        return None
    blob = path.resolve()
    home = next(folder.parent for folder in path.parents if folder.name == "snapshots")
    if not blob.is_relative_to(home.resolve()):
        raise ClipagError(f"{path} points out of the cache, to {blob}: remove it and pull again.")
    # The cache names a blob after its checksum: SHA-256 for large files, git's for small ones.
    if blob.name not in (sha256(blob), _git_sha1(blob)) and re.fullmatch(
        r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name
    ):
        blob.unlink()
        raise ClipagError(f"{filename} of {repo} was damaged and has been removed: pull it again.")
    return path


def is_cached(
    repo: str, filename: str, cache_dir: str | Path | None = None, revision: str | None = None
) -> bool:
    """Say whether the Hub's cache has a file."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision)
    return isinstance(found, str)


def zenodo_file(record: str, filename: str, folder: Path) -> Path:
    """Return a file of a Zenodo record, fetched into `folder` if need be.

    The download resumes where it was cut, is checked against the record's checksum and only
    then gets its name. A file that somebody put there by hand is taken as it is.

    Raises:
        ClipagError: it cannot be had, or is not what its checksum says.
    """
    from filelock import FileLock

    target = folder / filename
    note = folder / f"{filename}.sha256"
    if target.is_file():
        if note.is_file() and note.read_text(encoding="utf-8").strip() != sha256(target):
            raise ClipagError(f"{target} is damaged: remove it and pull again.")
        return target
    remedy = (
        f"fetch {filename} from record {record} elsewhere and put it at {target}; clipag-mini "
        "works now, without a download"
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
            raise ClipagError(f"{filename} arrived damaged and was thrown away: pull again.")
        with write_beside(note) as temporary:
            temporary.write_text(sha256(partial) + "\n", encoding="utf-8")
        partial.replace(target)
    return target


def web_file(url: str, target: Path) -> Path:
    """Return `target`, fetched from a plain web address if it is not there.

    The download resumes where it was cut. Such places publish no checksum: what is checked is the
    length that the server tells, and the rest is for whoever reads the file.

    Raises:
        ClipagError: it cannot be had.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        hub_errors(url, f"fetch it elsewhere and put it at {target}"),
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
            f"Zenodo's answer names no file {filename} in record {record}: see "
            f"{ZENODO}/records/{record}."
        ) from error


def _fetch(url: str, partial: Path, size: int | None = None) -> None:
    """Download to `partial`, from where it ends; `size` is what it should have in the end."""
    from huggingface_hub import errors
    from huggingface_hub.file_download import http_get

    try:
        with partial.open("ab") as file:
            http_get(url, file, resume_size=file.tell(), expected_size=size)
    except errors.HfHubHTTPError as error:
        if error.response.status_code == 416:  # nothing follows where it ends
            partial.unlink()
            raise ClipagError(
                f"{partial} was no part of {url} and has been removed: pull it again."
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
