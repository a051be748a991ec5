"""A proxy on the loopback interface that passes bytes on and keeps what the client says."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import h11


@dataclass(frozen=True)
class Request:
    """One HTTP request: its path, and its body as it was before any coding."""

    path: str
    body: bytes


class RecordingProxy:
    """Listens on ``port``; what comes in goes to 127.0.0.1:``target`` and is kept, byte for byte."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._said: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening; what was recorded stays."""
        self._server.close()

    @property
    def raw(self) -> list[bytes]:
        """Everything that clients have said, one item a connection, headers too."""
        return [bytes(said) for said in self._said]

    def requests(self) -> list[Request]:
        """What clients have said, as HTTP; raises where it is none."""
        return [request for said in self.raw for request in parsed(said)]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                self._said.append(bytearray())
                with contextlib.suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self.target), 5)
                    for way in ((client, server, self._said[-1]), (server, client, bytearray())):
                        threading.Thread(target=_pass_on, args=way, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            kept += data
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def parsed(said: bytes) -> Iterator[Request]:
    """The requests of one connection; chunked and compressed bodies are put together."""
    while said:
        reader = h11.Connection(h11.SERVER)
        reader.receive_data(said)
        path, coding, body = "", b"", b""
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return  # the connection ended within a request
            if isinstance(event, h11.Request):
                path, coding = event.target.decode(), dict(event.headers).get(b"content-encoding", b"")
            if isinstance(event, h11.Data):
                body += event.data
        yield Request(path, _decoded(body, coding))
        said = reader.trailing_data[0]


def _decoded(body: bytes, coding: bytes) -> bytes:
    if coding == b"gzip":
        return gzip.decompress(body)
    if coding == b"deflate":
        return zlib.decompress(body)
    assert coding in (b"", b"identity"), coding
    return body
