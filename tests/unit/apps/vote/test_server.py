"""The server against what a browser, a neighbour or a foreign page may send it."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from flashbulb.apps.vote import server as server_module
from flashbulb.apps.vote.server import Server
from flashbulb.apps.vote.stage import VoteConfig, run


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """Speaks to one server, by default as its own page does."""

    def __init__(self, server: Server) -> None:
        self.server, self.port = server, server.server_address[1]

    def __call__(self, method: str, path: str, body: object = None, **headers: str | None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {"X-Token": self.server.token, "Content-Type": "application/json"} if method == "POST" else {}
        named |= {"Host": f"127.0.0.1:{self.port}"}
        named |= {k.replace("_", "-").title(): v for k, v in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if method == "POST" and "Content-Length" not in named:
            named["Content-Length"] = str(len(content))
        for name, value in named.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(content if method == "POST" else None)
        answer = connection.getresponse()
        result = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return result

    def raw(self, content: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as stream:
            stream.sendall(content)
            stream.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: stream.recv(65536), b""))


@pytest.fixture
def client(make_session) -> Iterator[Client]:
    with Server(make_session(), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


def vote(client: Client, number: int = 0, choice: str = "left", **headers: str | None) -> Answer:
    return client("POST", "/vote", {"comparison": number, "choice": choice}, **headers)


def done(client: Client) -> int:
    return json.loads(client("GET", "/state").body)["done"]


def test_the_page_and_its_parts_are_served_with_strict_headers(client: Client):
    kinds = {
        "/": "text/html",
        "/style.css": "text/css",
        "/script.js": "text/javascript",
        "/icon.svg": "image/svg",
    }
    for path, kind in kinds.items():
        answer = client("GET", path)
        assert answer.status == 200 and answer.headers["Content-Type"].startswith(kind)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http:" not in policy and "*" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Python" not in answer.headers["Server"]
    assert client.server.token.encode() in client("GET", "/").body
    assert b"{{token}}" not in client("GET", "/").body


def test_nothing_on_the_page_comes_from_elsewhere(client: Client):
    for path in ("/", "/style.css", "/script.js"):
        text = client("GET", path).body.decode()
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    page = client("GET", "/").body.decode()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", page)


def test_it_listens_on_this_machine_only(client: Client):
    assert client.server.server_address[0] == "127.0.0.1"
    assert client.server.address == f"http://127.0.0.1:{client.port}/"


def test_the_state_is_blind(client: Client):
    state = client("GET", "/state").body
    assert b"student" not in state and b"teacher" not in state and b".png" not in state
    asked = json.loads(state)["asked"]
    pair = client.server.session.pairs[0]
    assert asked["prompt"] == pair.prompt and asked["id"] == 0
    for address, picture in zip(asked["pictures"], (pair.left, pair.right), strict=True):
        answer = client("GET", address)
        assert answer.body == picture.file.read_bytes() and answer.headers["Content-Type"] == "image/png"
        assert picture.model not in str(answer.headers)


def test_a_vote_and_its_undo(client: Client):
    state = json.loads(vote(client).body)
    assert (state["done"], state["total"], state["asked"]["id"]) == (1, 4, 1)
    assert vote(client).status == 409  # a second press of the same key
    assert json.loads(client("POST", "/undo", {}).body)["done"] == 0
    assert client("POST", "/undo", {}).status == 409
    for number, choice in enumerate(("left", "right", "equal", "left")):
        assert vote(client, number, choice).status == 200
    assert json.loads(client("GET", "/state").body)["asked"] is None


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/picture/../../../../../etc/passwd",
        "/picture/..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/..\\..\\etc\\passwd",
        "/picture/",
        "/picture/0.png",
        "/page/index.html",
        "/server.py",
        "/style.css/..",
        "/style.css%00.png",
        "http://127.0.0.1/style.css",
        "/vote",
    ],
)
def test_a_path_is_never_a_file(client: Client, path: str):
    answer = client("GET", path)
    assert answer.status == 404 and b"root:" not in answer.body
    assert answer.headers["Content-Security-Policy"]
    assert client("POST", path if path != "/vote" else "/votes", {}).status == 404


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8777",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "evil.example@127.0.0.1",
        "127.0.0.1:80:80",
        "127.0.0.1:x",
        "0.0.0.0",
        "192.168.1.2",
        "",
        None,
    ],
)
def test_a_foreign_host_is_refused(client: Client, host: str | None):
    for path in ("/", "/state", *client.server.pictures):
        answer = client("GET", path, host=host)
        assert answer.status == 403 and client.server.token.encode() not in answer.body
    assert vote(client, host=host).status == 403
    assert done(client) == 0


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1", "[::1]:8777", "[::1]"])
def test_names_of_this_machine_are_welcome_through_any_tunnel(client: Client, host: str):
    assert client("GET", "/state", host=host).status == 200
    assert vote(client, host=host, origin=f"http://{host}").status == 200


def test_two_hosts_are_refused(client: Client):
    answer = client.raw(b"GET /state HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 403")


@pytest.mark.parametrize("token", [None, "", "x", "é"])
def test_a_vote_needs_the_token(client: Client, token: str | None):
    assert vote(client, x_token=token).status == 403
    assert client("POST", "/undo", {}, x_token=token).status == 403
    assert done(client) == 0


def test_a_vote_comes_from_our_page_and_is_json(client: Client):
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{client.port}", "http://127.0.0.1:1"):
        assert vote(client, origin=origin).status == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        assert vote(client, content_type=kind).status == 415
    assert done(client) == 0
    assert vote(client, origin=f"http://127.0.0.1:{client.port}").status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"comparison": 0, "choice": "both"}', 400),
        (b'{"comparison": 0, "choice": "undo"}', 400),
        (b'{"comparison": "0", "choice": "left"}', 400),
        (b'{"comparison": 0, "choice": "left", "voter": "eve"}', 400),
        (b'{"comparison": 0, "choice": "left", "seconds": -1}', 400),
        (b'{"comparison": 0, "choice": "left", "seconds": NaN}', 400),
        (b'{"comparison": 3, "choice": "left"}', 409),
        (b"[" * 4096, 400),
        (b"x" * 4097, 413),
    ],
)
def test_a_body_that_is_no_vote_changes_nothing(client: Client, body: bytes, status: int):
    answer = client("POST", "/vote", body)
    assert answer.status == status and "error" in json.loads(answer.body)
    assert done(client) == 0


def test_lengths_that_lie_are_refused(client: Client):
    for length, status in (("-1", 411), ("1e3", 411), ("²", 411), ("99999999999", 413), (None, 411)):
        assert vote(client, content_length=length).status == status
    assert done(client) == 0


def test_other_methods_and_garbage_are_answered_and_survived(client: Client):
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        answer = client(method, "/")
        assert answer.status == 501 and answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 70000,
    ):
        with contextlib.suppress(ConnectionError):
            client.raw(garbage)
    assert done(client) == 0


def test_a_picture_that_changed_is_not_shown(client: Client):
    address, picture = next(iter(client.server.pictures.items()))
    picture.file.write_bytes(b"\x89PNG\r\n\x1a\nanother")
    assert client("GET", address).status == 410


def test_a_vote_that_cannot_be_saved_says_so(client: Client, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = vote(client)
    assert answer.status == 507 and b"No space left" in answer.body
    monkeypatch.undo()
    assert done(client) == 0 and vote(client).status == 200


def test_a_file_that_somebody_broke_is_spoken_of(client: Client):
    with client.server.session.file.open("a") as file:
        file.write("nonsense\n")
    answer = vote(client)
    assert answer.status == 500 and b"wanted one vote a line" in answer.body


def test_a_taken_port_is_explained(client: Client, make_session):
    with pytest.raises(RuntimeError, match=f"port {client.port} of 127.0.0.1 is taken: say --port 0"):
        Server(make_session(), client.port)


def test_every_file_of_the_page_is_served():
    names = {name for name, _ in server_module.FILES.values()}
    assert names == {file.name for file in server_module.PAGE.iterdir()}


def test_the_stage_ends_with_how_far_the_voter_came(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def one_vote(server: Server) -> None:
        server.session.vote(0, "left")
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", lambda self, poll_interval: one_vote(self))
    out = tmp_path / "deep" / "votes.jsonl"
    record = run(VoteConfig(folders=tuple(folders), out=out, port=0, voter="anna", limit=3))
    assert (record.voter, record.voted, record.comparisons, record.out) == ("anna", 1, 3, str(out))
    assert len(out.read_text().splitlines()) == 1


def start(words: list[str]) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "flashbulb.apps.cli", "vote", *words]
    environment = os.environ | {"PYTHONPATH": ".src", "COLUMNS": "200"}
    root = Path(__file__).parents[4]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"open (http://\S+)", line):
            return process, found[1]
    raise AssertionError("the server did not start")


def speak(address: str) -> Callable[[str, object], dict]:
    page = urllib.request.urlopen(address, timeout=20).read().decode()
    token = re.search(r'name="token" content="([^"]+)"', page)[1]

    def say(path: str, body: object = None) -> dict:
        headers = {"X-Token": token, "Content-Type": "application/json"} if body is not None else {}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{address}{path}", data=data, headers=headers)
        return json.loads(urllib.request.urlopen(request, timeout=20).read())

    return say


def test_a_killed_command_goes_on_where_it_was(folders: list[Path], tmp_path: Path):
    words = [*map(str, folders), "--out", str(tmp_path / "votes.jsonl"), "--port", "0", "--voter", "anna"]
    process, address = start(words)
    say = speak(address)
    for number in (0, 1):
        say("vote", {"comparison": number, "choice": "right"})
    process.kill()
    process.wait()
    process, address = start(words)
    state = speak(address)("state")
    process.kill()
    process.wait()
    assert (state["done"], state["asked"]["id"]) == (2, 2)
