"""Downloads of checkpoints: whole or not at all, and cached by the whole address."""

import hashlib
import http.client
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

import torch

from .error import CheckpointError, where

__all__ = ["download"]

_TIMEOUT = 30.0  # seconds without an answer, or without a byte
_SLOW_SECONDS, _SLOW_BYTES = 60.0, 2**16  # fewer bytes in this time is a stall
_CHUNK = 2**18
_AS_IT_IS = "%/:?#[]@!$&'()*+,;=~"


def download(url: str) -> Path:
    """The file at an http or https address, from the cache in `torch.hub.get_dir()` if it was fetched before.

    A file is in the cache when it is complete: as long as the server says, with the digest that its name states
    ("model-1a2b3c4d.pth": the first digits of its SHA-256, as PyTorch names files).

    Raises:
        CheckpointError: another kind of address; or the file cannot be had, whole and in time.
    """
    if url.partition("://")[0].lower() not in ("http", "https"):
        raise CheckpointError(f"{where(url)} cannot be downloaded: expected a path, or an http or https address")
    try:
        path = _cached(url)
        if not path.is_file():
            _fetch(url, path)
    except CheckpointError as error:
        problem = str(error)
    except urllib.error.HTTPError as error:
        problem = f"the server answers {error.code} {error.reason}"
    except TimeoutError:
        problem = f"no answer within {_TIMEOUT:.0f} seconds"
    except http.client.IncompleteRead:
        problem = "the connection was cut before its end"
    except urllib.error.URLError as error:
        problem = f"{getattr(error.reason, 'strerror', None) or error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        problem = f"{getattr(error, 'strerror', None) or error or type(error).__name__}"
    else:
        return path
    raise CheckpointError(
        f"{where(url)} cannot be downloaded: {where(problem)}; check the address and the network, or give a file that "
        "you fetched yourself"
    )


def _cached(url: str) -> Path:
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.ASCII)[-100:]
    folder = Path(torch.hub.get_dir()) / "checkpoints" / "vision_ssm"
    return folder / f"{hashlib.sha256(url.encode(errors='surrogateescape')).hexdigest()[:16]}-{name}"


def _fetch(url: str, path: Path) -> None:
    digits = re.search(r"-([0-9a-f]{8,64})\.\w+$", urlsplit(url).path)
    address = quote(url, safe=_AS_IT_IS)  # a letter like é is sent in the form that browsers send it in
    request = urllib.request.Request(address, headers={"User-Agent": "vision-ssm", "Accept-Encoding": "identity"})
    with _opener().open(request, timeout=_TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise CheckpointError("the server sends a web page and no file")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process and thread: only whole files get the name that is looked for.
        handle, temporary = tempfile.mkstemp(prefix=".unfinished-", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                digest = _copy(response, file)
                file.flush()
                os.fsync(file.fileno())
            if digits and not digest.startswith(digits[1]):
                raise CheckpointError(f"its SHA-256 begins with {digest[:8]}, its name says {digits[1]}")
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _opener() -> urllib.request.OpenerDirector:
    """For http and https alone, wherever a server redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _copy(response: http.client.HTTPResponse, file: BinaryIO) -> str:
    """The body to a file, if it is as long as it should be; its SHA-256."""
    length, digest, size = response.length, hashlib.sha256(), 0  # None where the server does not say it, or nonsense
    since, then = time.monotonic(), 0
    while part := response.read1(_CHUNK):
        file.write(part)
        digest.update(part)
        size += len(part)
        if time.monotonic() - since > _SLOW_SECONDS:
            if size - then < _SLOW_BYTES:
                raise CheckpointError(f"{size} bytes came, and hardly any in the last {_SLOW_SECONDS:.0f} seconds")
            since, then = time.monotonic(), size
    if length is not None and size != length:
        raise CheckpointError(f"the connection was cut after {size} of {length} bytes")
    if not size:
        raise CheckpointError("the file is empty")
    return digest.hexdigest()
