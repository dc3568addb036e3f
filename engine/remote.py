"""Images from the web: fetched over http(s) alone, bounded in time and size, and tried again where that may help."""

from __future__ import annotations

import http.client
import string
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from typing import IO
from urllib.parse import quote, urlsplit
from urllib.request import Request

from sonde.errors import InputError

MAX_BYTES = 64 * 2**20
"""Most that is taken of one address."""
TIMEOUT_S = 20.0
"""Longest wait for the other side's next word."""
DEADLINE_S = 120.0
"""Longest that one try may take, however steadily the bytes drip."""
WAITS_S = (0.5, 2.0)
"""Pauses between the tries."""

_CHUNK = 2**16
# "Try again later": the other side's word for it, or that of a proxy between.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def check_url(url: object) -> None:
    """Raise InputError unless an address is one of http or https, with a host."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        known = parts is not None and parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise InputError(f"image {url!r} is no address of an image: give one that begins with http:// or https://")


def fetch(url: str) -> bytes:
    """Return what is at an address.

    What may pass (a connection that breaks, a busy server) is tried again; a refusal is not.

    Raises
    ------
    InputError
        If it cannot be had, leads anywhere but to http(s), or is larger than `MAX_BYTES`.
    """
    check_url(url)
    reason = ""
    for wait in (*WAITS_S, None):
        try:
            return _fetch_once(url)
        except InputError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server says {error.code} {error.reason}"
            if error.code not in _PASSING:
                break
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
        if wait is not None:
            time.sleep(wait)
    raise InputError(f"the image {url} cannot be fetched: {reason}")


def _fetch_once(url: str) -> bytes:
    # As a browser does with letters and spaces that an address must not hold as they are.
    quoted = quote(url, safe=string.punctuation)
    request = Request(quoted, headers={"User-Agent": f"sonde/{version('sonde')}", "Accept": "image/*"})
    deadline = time.monotonic() + DEADLINE_S
    with _opener().open(request, timeout=TIMEOUT_S) as response:
        stated = response.headers.get("Content-Length")
        size = int(stated) if stated and stated.isdigit() else None
        _check_size(url, size or 0)
        data = bytearray()
        while chunk := response.read1(_CHUNK):
            data += chunk
            _check_size(url, len(data))
            if time.monotonic() > deadline:
                raise TimeoutError(f"it is not whole after {DEADLINE_S:g} s")
    if size is not None and len(data) < size:
        raise ConnectionError(f"it ended after {len(data):,} of {size:,} bytes")
    return bytes(data)


def _check_size(url: str, size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(f"the image {url} is larger than {MAX_BYTES >> 20} MiB: download it and make it smaller")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to http(s), and nowhere else: the ready-made one would follow to ftp."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> Request | None:
        check_url(newurl)
        # What stands beside a redirection would be read to its end, however long it is.
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Make an opener that knows http and https, and proxies of the environment, but no files and no ftp."""
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _Redirects,
    )
    for handler in handlers:
        opener.add_handler(handler())
    return opener
