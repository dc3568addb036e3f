"""An S3 server on the loopback, and a proxy before it that fails as networks and servers do."""

import contextlib
import http.client
import logging
import math
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import pytest

BUCKET = "bucket"
_DRIP_SECONDS = 0.02

Kind = Literal["none", "status", "hang", "reset", "lost", "break", "drip", "flip", "weak"]


@dataclass(slots=True)
class Fault:
    """One way to fail, for as many requests as said.

    ``none``: only call ``first`` and ``then``; ``status``: answer with it; ``hang``: no answer; ``reset``: close
    without an answer; ``lost``: let the server act, but close without an answer; ``break``: half of the body;
    ``drip``: the body byte by byte; ``flip``: a bit of the body, up or down; ``weak``: conditions are not passed on.
    """

    kind: Kind
    method: str = "GET"
    key: str = ""
    times: float = math.inf
    status: int = 503
    header: str = ""
    first: Callable[[], Any] = lambda: None
    then: Callable[[], Any] = lambda: None
    hits: int = 0

    def meets(self, request: BaseHTTPRequestHandler) -> bool:
        """Whether this request fails."""
        return (
            self.times > 0
            and request.command in self.method.split()
            and self.key in request.path
            and (not self.header or self.header in request.headers)
        )


@dataclass(slots=True)
class Proxy:
    """What the proxy does, and what it has seen."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)
    open: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Fail for the time of the block."""
        self.faults[:] = faults
        self.open.clear()
        try:
            yield
        finally:
            self.faults.clear()
            self.open.set()

    def next_fault(self, request: BaseHTTPRequestHandler) -> Fault | None:
        """The first fault that meets a request; counted."""
        with self.mutex:
            self.authorizations.append(request.headers.get("Authorization", ""))
            for fault in self.faults:
                if fault.meets(request):
                    fault.times -= 1
                    fault.hits += 1
                    return fault
        return None


@contextlib.contextmanager
def serve_s3() -> Iterator[str]:
    """Run moto's server with an empty bucket and yield its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for path, method in (("moto-api/reset", "POST"), (BUCKET, "PUT")):
        request = urllib.request.Request(f"http://{host}:{port}/{path}", method=method)
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def fill(keys: Iterable[str]) -> None:
    """Put many empty objects into the server of this process, past its door."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    for key in keys:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(BUCKET, key, b"")


@contextlib.contextmanager
def proxy_to(upstream: str) -> Iterator[Proxy]:
    """Run a proxy to a server."""

    class Handler(_Handler):
        pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
        Handler.upstream, Handler.proxy = upstream.removeprefix("http://"), proxy
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.open.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def environment(endpoint: str, **more: str) -> Iterator[pytest.MonkeyPatch]:
    """Point S3's tools to an endpoint, by the variables of the environment that all of them read."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        values = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        for name, value in (values | {"AWS_ENDPOINT_URL": endpoint, "NO_PROXY": "127.0.0.1"} | more).items():
            patch.setenv(name, value)
        yield patch


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients hang up on a server that fails."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: str
    proxy: Proxy

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.next_fault(self)
        kind = fault.kind if fault else None
        if fault:
            fault.first()
        if fault and kind == "status":
            return self._send(fault.status, [], b"<Error/>")
        if kind == "hang":
            self.proxy.open.wait()
        if kind in ("hang", "reset"):
            return self._hang_up()
        if kind == "flip" and self.command == "PUT":
            body = _flipped(body)
        headers = {k: v for k, v in self.headers.items() if kind != "weak" or not k.lower().startswith("if-")}
        connection = http.client.HTTPConnection(self.upstream)
        connection.request(self.command, self.path, body or None, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        if fault:
            fault.then()
        if kind == "lost":
            return self._hang_up()
        if kind == "flip" and self.command == "GET":
            data = _flipped(data)
        dropped = {"content-length", "transfer-encoding", "connection", "server", "date"}
        kept = [(k, v) for k, v in response.getheaders() if k.lower() not in dropped]
        length = response.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        return self._send(response.status, [*kept, ("Content-Length", length)], data, kind)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, kind: Kind | None = None) -> None:
        self.send_response(status)
        for name, value in headers or [("Content-Length", str(len(data)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "break":
            self.wfile.write(data[: len(data) // 2])
            self._hang_up()
        elif kind == "drip":
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                time.sleep(_DRIP_SECONDS)
        else:
            self.wfile.write(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data
