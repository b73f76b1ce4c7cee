"""The web server of one voting session: the standard library's, on 127.0.0.1 only.

A browser may be asked by any page in the world to talk to this server, so every request is looked at:

- the Host must be a name of this machine, or a foreign name that resolves to it could read the answers;
- what changes something must come from our own page: its origin, and a token that only that page was given;
- a path is looked up in a table made at the start and never becomes a file name;
- the page may load nothing from elsewhere, and no page may frame it.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import re
import secrets
import socket
import socketserver
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from flashbulb.apps.vote.folders import Picture, digest
from flashbulb.apps.vote.plan import Pair
from flashbulb.apps.vote.session import NotAsked, Session
from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/script.js": ("script.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
"""Names of this machine; the port may be another one, of a tunnel."""
MOST_BYTES = 4096
PATIENCE_S = 15
DRAIN_S, DRAIN_READS = 0.5, 32
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Ballot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page sends for a vote."""

    comparison: int
    choice: Literal["left", "right", "equal"]
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Serves one session.

    Raises:
        RuntimeError: when the port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int) -> None:
        self.session, self.token = session, secrets.token_urlsafe(24)
        self.files = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        pictures = {picture for pair in session.pairs for picture in (pair.left, pair.right)}
        self.pictures = {f"/picture/{secrets.token_urlsafe(12)}": picture for picture in pictures}
        self.paths = {picture: path for path, picture in self.pictures.items()}
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise RuntimeError(f"port {port} of 127.0.0.1 is taken: say --port 0 for any free one") from error
        self.address = f"http://127.0.0.1:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Bind without asking a name server who we are."""
        socketserver.TCPServer.server_bind(self)

    def shutdown_request(self, request: Any) -> None:
        """Close after reading what a refused request still sends: else the answer to it is cut off."""
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(DRAIN_S)
            for _ in range(DRAIN_READS):
                if not request.recv(MOST_BYTES):
                    break
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a fault; a browser that went away is none."""
        expected = isinstance(sys.exception(), ConnectionError | TimeoutError)
        log.log(logging.DEBUG if expected else logging.ERROR, "a request failed", exc_info=True)

    def serve_until_stopped(self) -> None:
        """Answer requests until Ctrl-C or `shutdown`."""
        try:
            self.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            log.info("stopped; the same command goes on from here")

    def state(self) -> dict[str, Any]:
        """Return what the page shows; nothing in it tells which model drew which picture."""
        session, number = self.session, self.session.current()
        asked = None if number is None else {"id": number, **self._shown(session.pairs[number])}
        return {
            "question": session.question,
            "voter": session.voter,
            "equal": session.equal,
            "out": str(session.file),
            "done": session.done,
            "total": len(session.pairs),
            "asked": asked,
            "ahead": [path for pair in session.ahead() for path in self._shown(pair)["pictures"]],
        }

    def _shown(self, pair: Pair) -> dict[str, Any]:
        return {"prompt": pair.prompt, "pictures": [self.paths[pair.left], self.paths[pair.right]]}


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    server_version = "flashbulb"
    sys_version = ""
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        """Answer with the page, its parts, a picture, or the state."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Take a vote, or take one back, and answer with the state."""
        self._answer(self._post)

    def _answer(self, function: Any) -> None:
        try:
            self._check_host()
            function()
        except Refusal as refusal:
            self._refuse(refusal.status, str(refusal))
        except NotAsked as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except ValueError as error:  # somebody else wrote into the file of votes
            log.error("%s", error)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise  # the browser went away
            log.error("%s", error)
            self._refuse(
                HTTPStatus.INSUFFICIENT_STORAGE, f"the vote was not saved: {error.strerror or error}"
            )

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/state":
            self._send_json(self.server.state())
        elif path in self.server.files:
            content, kind = self.server.files[path]
            self._send(content.replace(b"{{token}}", self.server.token.encode()), kind)
        elif path in self.server.pictures:
            self._send_picture(self.server.pictures[path])
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self) -> None:
        self._check_sender()
        body = self._body()
        if self.path == "/vote":
            ballot = _decode(body)
            self.server.session.vote(ballot.comparison, ballot.choice, ballot.seconds)
        elif self.path == "/undo":
            self.server.session.undo()
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")
        self._send_json(self.server.state())

    def _check_host(self) -> None:
        """Refuse a Host that is not this machine: a foreign name was made to resolve to it."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or HOST.fullmatch(hosts[0]) is None:
            raise Refusal(HTTPStatus.FORBIDDEN, "wanted the address that flashbulb vote shows")

    def _check_sender(self) -> None:
        """Refuse what does not come from our own page."""
        origin, host = self.headers.get("Origin"), self.headers["Host"]
        token = self.headers.get("X-Token", "")
        if origin is not None and origin != f"http://{host}":
            raise Refusal(HTTPStatus.FORBIDDEN, "wanted a request of this page itself")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise Refusal(HTTPStatus.FORBIDDEN, "wanted this page's token; reload the page")

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "wanted application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "wanted a Content-Length")
        if int(length) > MOST_BYTES:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"wanted at most {MOST_BYTES} bytes")
        return self.rfile.read(int(length))

    def _send_picture(self, picture: Picture) -> None:
        """Send a picture, if it still is the one that the votes will name."""
        content = picture.file.read_bytes() if picture.file.is_file() else b""
        if digest(content) != picture.sha256:
            log.error("%s has changed since the start: start again", picture.file)
            raise Refusal(HTTPStatus.GONE, "the picture has changed since the start")
        self._send(content, picture.media_type, cache="private, max-age=3600, immutable")

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(msgspec.json.encode(value), "application/json", status=status)

    def _send(
        self, content: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, cache: str = "no-store"
    ) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": cache}
        for name, value in {**headers, **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with an error."""
        self._send_json({"error": message}, status)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the standard library refuses, unknown methods for example, as we do."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep requests out of the way, except when debugging."""
        log.debug(format, *args)


def _decode(body: bytes) -> Ballot:
    try:
        return decode(body, Ballot)
    except UntrustedError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
