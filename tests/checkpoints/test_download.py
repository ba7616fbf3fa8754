"""Checkpoints by address: the right one, whole, in time, or one line that names the address."""

import hashlib
import http.server
import io
import os
import re
import threading
import time
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
import timm
import torch

from vision_ssm import CheckpointError, load_checkpoint
from vision_ssm.checkpoints import download as module
from vision_ssm.checkpoints import read


def _file(value: float) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.full((2,), value)}, buffer)
    return buffer.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the address's path: what a server may do wrong."""

    asked: ClassVar[list[str]] = []
    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *args):
        pass

    def answer(self, data: bytes, status: int = 200, length: int | None = None, **headers) -> None:
        self.send_response(status)
        if length != -1:
            self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.asked.append(self.path)
        path = urlsplit(self.path).path
        data = self.files.get(self.path, self.files.get(path, b""))
        if path.startswith("/cut"):
            self.answer(data, length=len(data) + 100)
        elif path.startswith("/any"):
            self.answer(data, length=-1, Content_Length="unknown")
        elif path.startswith("/open"):
            self.answer(data[: 99 if "short" in path else None], length=-1)
        elif path.startswith("/chunks"):
            self.answer(b"5\r\nabcde\r\nff\r\nab", length=-1, Transfer_Encoding="chunked")
        elif path.startswith("/page"):
            self.answer(b"<html>log in</html>", Content_Type="text/html; charset=utf-8")
        elif path.startswith("/to/"):
            target = {"file": "file:///etc/passwd", "ftp": "ftp://x/y", "good": "/good/model.pth"}.get(
                path[4:], self.path
            )
            self.answer(b"", 302, Location=target)
        elif path.startswith("/silent"):
            time.sleep(1)
        elif path.startswith("/slow"):
            self.send_response(200)
            self.end_headers()
            for _ in range(6):
                self.wfile.write(b"x")
                time.sleep(0.1)
        elif data:
            self.answer(data)
        else:
            self.answer(b"gone", 500 if path.startswith("/broken") else 404)


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(_Handler, "asked", [])
    monkeypatch.setattr(_Handler, "files", {})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def _kept(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "hub").rglob("*") if path.is_file())


def test_the_whole_address_counts(server, tmp_path):
    paths = ["/a/model.pth", "/b/model.pth", "/a/model.pth?version=2", "/a/model%20b.pth"]
    _Handler.files |= {path: _file(i) for i, path in enumerate(paths)}
    for _ in range(2):
        for i, path in enumerate(paths):
            assert read(server + path)["w"].tolist() == [i, i]
    assert _Handler.asked == paths and len(_kept(tmp_path)) == 4


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing.pth", "the server answers 404"),
        ("/broken.pth", "the server answers 500"),
        ("/cut/model.pth", r"the connection was cut after \d+ of \d+ bytes"),
        ("/chunks/model.pth", "the connection was cut"),
        ("/page/model.pth", "a web page and no file"),
        ("/to/file", "cannot be downloaded: .*file"),
        ("/to/ftp", "cannot be downloaded: .*ftp"),
        ("/to/itself", "cannot be downloaded: .*loop"),
        ("/open/short.pth", "cannot be read as a checkpoint"),
        ("/good/model-00000000.pth", r"its SHA-256 begins with \w{8}, its name says 00000000"),
        ("/text.pth", "cannot be read as a checkpoint"),
    ],
)
def test_what_goes_wrong_leaves_nothing(server, tmp_path, path, words):
    _Handler.files |= {path: b"some text" if "text" in path else _file(1)}
    if "missing" in path or "broken" in path:
        _Handler.files.clear()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(server + path)
        assert server + path in str(caught.value) and "\n" not in str(caught.value)
        assert _kept(tmp_path) == []


def test_other_good_answers(server):
    _Handler.files |= {"/open/model.pth": _file(2), "/good/model.pth": _file(3)}
    digest = hashlib.sha256(_file(4)).hexdigest()[:8]
    _Handler.files |= {f"/model-{digest}.pth": _file(4)}
    _Handler.files |= {"/mod%C3%A8le%20a.pth?x=%20": _file(5), "/any/length.pth": _file(6)}
    good = {"/open/model.pth": 2, "/to/good": 3, f"/model-{digest}.pth": 4, "/modèle a.pth?x=%20#y": 5}
    for path, value in (good | {"/any/length.pth": 6}).items():
        assert read(server + path)["w"].tolist() == [value, value]


def test_time_limits(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    with pytest.raises(CheckpointError, match=r"no answer within|timed out"):
        read(server + "/silent.pth")
    monkeypatch.setattr(module, "_SLOW_SECONDS", 0.3)
    with pytest.raises(CheckpointError, match="hardly any"):
        read(server + "/slow.pth")
    assert _kept(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/model.pth",
        "s3://bucket/model.pth",
        "http://",
        "http://[x/",
        "http://a:b/c",
    ],
)
def test_other_addresses(url, server):
    with pytest.raises(CheckpointError, match=rf"{re.escape(url)} cannot be downloaded: "):
        read(url)


def test_no_server(server):
    with pytest.raises(
        CheckpointError, match=r"http://127\.0\.0\.1:9/model\.pth cannot be downloaded: Connection refused"
    ):
        read("http://127.0.0.1:9/model.pth")


def test_two_at_once(server, tmp_path):
    """Each writes a file of its own; only whole ones get the name that is looked for."""
    _Handler.files |= {"/a.pth": _file(5)}
    found = []
    threads = [threading.Thread(target=lambda: found.append(read(server + "/a.pth")["w"].tolist())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[5, 5]] * 4 and len(_kept(tmp_path)) == 1


def test_pretrained_uses_the_same_door(server):
    """Through timm, whose own downloads are cached by the last part of an address."""
    for name in "ab":
        model, buffer = timm.create_model("vim_test"), io.BytesIO()
        torch.save({"model": model.state_dict()}, buffer)
        _Handler.files[f"/{name}/model.pth"] = buffer.getvalue()
        overlay = dict(url=f"{server}/{name}/model.pth", custom_load=True)
        loaded = timm.create_model("vim_test", pretrained=True, pretrained_cfg_overlay=overlay)
        again = load_checkpoint(timm.create_model("vim_test"), overlay["url"])
        for one in (loaded, again):
            assert all(torch.equal(value, one.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="404"):
        overlay = dict(url=f"{server}/none.pth", custom_load=True)
        timm.create_model("vim_test", pretrained=True, pretrained_cfg_overlay=overlay)
