"""Fetch files from the Hugging Face Hub and from Zenodo; check them before they are used."""

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from .errors import ClipagError
from .files import write_beside

ZENODO = "https://zenodo.org"
TIMEOUT = 30  # seconds without a byte
BY_HAND = (
    "put its open_clip_config.json and open_clip_model.safetensors into a folder and give that "
    "as the model; clipag-mini works now, without a download"
)
ATTEMPTS = 5  # how often a cut connection is taken up again


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
    from huggingface_hub import errors, hf_hub_download

    try:
        with hub_errors(repo, remedy):
            path = Path(
                hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir, token=token)
            )
    except errors.RemoteEntryNotFoundError:
        return None
    blob = path.resolve()
    (home,) = (folder.parent for folder in path.parents if folder.name == "snapshots")
    if not blob.is_relative_to(home.resolve()):
        raise ClipagError(f"{path} points out of the cache, to {blob}: remove it and pull again.")
    # The cache names a blob after its checksum: SHA-256 for large files, git's for small ones.
    if blob.name not in (sha256(blob), _git_sha1(blob)) and re.fullmatch(
        r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name
    ):
        blob.unlink()
        raise ClipagError(f"{filename} of {repo} was damaged and has been removed: pull it again.")
    return path


def is_cached(repo: str, filename: str, cache_dir: str | Path | None = None) -> bool:
    """Say whether the Hub's cache has a file."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, filename, cache_dir=cache_dir), str)


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{filename}.lock"):
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
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ClipagError(
            f"Zenodo cannot be reached ({getattr(error, 'reason', None) or type(error).__name__}): "
            f"fetch {filename} from record {record} elsewhere and put it at {target}; clipag-mini "
            "works now, without a download."
        ) from error
    return target


def web_file(url: str, target: Path) -> Path:
    """Return `target`, fetched from a plain web address if it is not there.

    The download resumes where it was cut. Such places publish no checksum: what is checked is the
    length that the server tells, and the rest is for whoever reads the file.

    Raises:
        ClipagError: it cannot be had.
    """
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():
                partial = target.with_name(f"{target.name}.part")
                _fetch(url, partial, _length(url))
                partial.replace(target)
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ClipagError(
            f"{url} cannot be reached ({getattr(error, 'reason', None) or type(error).__name__}): "
            f"fetch it elsewhere and put it at {target}."
        ) from error
    return target


def _length(url: str) -> int:
    """Ask a server for a file's length, by way of its first byte."""
    with _open(urllib.request.Request(url, headers={"Range": "bytes=0-0"})) as answer:
        told = answer.headers.get("Content-Range", "").rpartition("/")[2]
        told = told or answer.headers.get("Content-Length", "")
    if not told.isdigit():
        raise urllib.error.URLError("the server does not tell its length")
    return int(told)


def _open(request: urllib.request.Request) -> Any:
    """Ask a server, unless the user has said to stay offline."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise urllib.error.URLError("HF_HUB_OFFLINE is set")
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _zenodo_entry(record: str, filename: str) -> tuple[int, str, str]:
    """Return a file's size, checksum algorithm and checksum."""
    with _open(urllib.request.Request(f"{ZENODO}/api/records/{record}")) as answer:
        try:
            entry = next(e for e in json.load(answer)["files"] if e["key"] == filename)
            algorithm, checksum = entry["checksum"].split(":")
            return int(entry["size"]), algorithm, checksum
        except (StopIteration, LookupError, TypeError, AttributeError, ValueError) as error:
            raise ClipagError(
                f"Zenodo's answer names no file {filename} in record {record}: see "
                f"{ZENODO}/records/{record}."
            ) from error


def _fetch(url: str, partial: Path, size: int) -> None:
    """Download to `partial`, from where it ends, until it has `size` bytes."""
    from tqdm import tqdm

    for attempt in range(ATTEMPTS):
        have = partial.stat().st_size if partial.exists() else 0
        if have >= size:
            return
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
        try:
            with _open(request) as answer:
                if answer.status != 206:  # the server starts over
                    have = 0
                with (
                    partial.open("ab" if have else "wb") as file,
                    tqdm(total=size, initial=have, unit="B", unit_scale=True) as bar,
                ):
                    while have < size and (chunk := answer.read(min(2**20, size - have))):
                        file.write(chunk)
                        have += len(chunk)
                        bar.update(len(chunk))
        except urllib.error.HTTPError:
            raise
        except (HTTPException, OSError):
            if attempt == ATTEMPTS - 1:
                raise
    if partial.stat().st_size < size:
        raise urllib.error.URLError(f"the connection was cut {ATTEMPTS} times")


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
