"""HTTP/1.1 on one connection: uvicorn's protocol, with limits and answers for what is no HTTP.

uvicorn (seen in 0.54) lacks what a server that strangers reach needs, so this is added:

- A request's head may have 64 KiB and must arrive within 30 seconds; uvicorn keeps any head, for ever.
- What is no HTTP gets an error in JSON with an id, as every other error. After it the connection is read for a moment
  more, because closing it at once would reset it and take the answer away from a client that still sends.
- A request that is complete is answered before the garbage behind it, and also if the client has closed its half.
- A client may offer an upgrade (`Upgrade: h2c`, as Java's client does) with a body; the offer is passed over, and the
  body is not lost.
"""

import asyncio
from typing import Any
from uuid import uuid4

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
_LINGER_SECONDS = 2.0
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
#: Headers of an offer to speak another protocol.
_OFFER = frozenset({b"upgrade", b"connection", b"http2-settings"})


class _HeadTooLargeError(Exception):
    pass


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options)
        self._refused = False
        self._in_head = False
        self._read_bytes = 0
        self._header_bytes = 0
        self._is_offer = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; it may stay silent as long as one between two requests."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep a half-closed connection open while its last request is answered."""
        cycle = self.cycle
        if self._refused or cycle is None or cycle.response_complete or cycle.more_body:
            return None
        cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Read bytes of requests."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLargeError):
                self._refuse_head()
            else:
                self._refuse(400, "not HTTP/1.1", "a request with correct framing is needed", "check client and proxy")
            return
        if not self._in_head:
            self._stop_timer()
            return
        # The parser tells of a header when it is complete, so bytes are counted too.
        self._read_bytes += len(data)
        if self._read_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse_late)

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = True
        self._is_offer = False
        self._read_bytes = 0
        self._header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes + len(self.url) > MAX_HEAD_BYTES:
            raise _HeadTooLargeError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request, unless it has to be read again without its offer."""
        if self.parser.should_upgrade():
            self._is_offer = True
            return
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        if not self._is_offer:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if not self._is_offer:
            super().on_message_complete()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            method = self.parser.get_method()
            if method == b"CONNECT":
                raise httptools.HttpParserError("CONNECT") from None
            # The parser passes over the body of such a request.
            first = method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()
            kept = [name + b": " + value for name, value in self.headers if name not in _OFFER]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._feed(b"\r\n".join([first, *kept, b"", b""]) + data[stopped.args[0] :])

    def _refuse_head(self) -> None:
        self._refuse(431, f"a head of more than {MAX_HEAD_BYTES} bytes", "a shorter one is needed", "send less headers")

    def _refuse_late(self) -> None:
        needed = f"the whole head is needed within {HEAD_SECONDS:.0f} seconds"
        self._refuse(408, "a head that does not end", needed, "send it faster")

    def _refuse(self, status: int, seen: str, needed: str, fix: str) -> None:
        self._refused = True
        self._stop_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                # A complete request is before it; its answer ends the connection.
                cycle.keep_alive = False
                self.flow.resume_reading()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        body = orjson.dumps({"error": f"request: {seen}; {needed}. Fix: {fix}."})
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {uuid4().hex}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
