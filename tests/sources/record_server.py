"""A server on this machine that plays Zenodo, Hugging Face or a mirror, with all their bad days."""

import hashlib
import json
import re
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class RecordServer(ThreadingHTTPServer):
    """Content by path; ``faults`` of a path are used up one a request, ``log`` holds (path, Range)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.content = {}
        self.faults = defaultdict(list)
        self.log = []
        self.knows_ranges = True

    def handle_error(self, request, client_address):
        """Clients that hang up are what is tested."""

    def put(self, path, content):
        self.content[path] = content

    def record(self, number, files, **change):
        """A record with its files; ``change`` replaces what it says of all of them."""
        listed = []
        for name, content in files.items():
            self.put(f"/records/{number}/files/{name}", content)
            entry = {
                "key": name,
                "size": len(content),
                "checksum": "md5:" + md5(content),
                "links": {"self": f"{self.url}/records/{number}/files/{name}"},
            }
            listed.append(entry | change)
        self.put(f"/api/records/{number}", json.dumps({"id": number, "files": listed}).encode())

    def asked(self, ending):
        """The ranges with which a file was asked for."""
        return [asked for path, asked in self.log if path.endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        page = f"{path}?{parts.query}" if f"{path}?{parts.query}" in server.content else path
        asked = self.headers.get("Range")
        server.log.append((path, asked))
        fault = server.faults[path].pop(0) if server.faults[path] else {}
        if "status" in fault:
            return self.answer(fault["status"], b"busy", fault.get("headers", {}))
        if page not in server.content:
            return self.answer(404, b"no such file", {})
        content = server.content[page]
        headers = fault.get("headers", {})
        start = 0
        if asked and server.knows_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            start = fault.get("start", start)
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self.answer(206 if "Content-Range" in headers else 200, content[start:], headers, fault)

    def answer(self, status, body, headers, fault=None):
        fault = fault or {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "stop_after" in fault:
            self.wfile.write(body[: fault["stop_after"]])
            self.wfile.flush()
            if "hold" in fault:
                fault["hold"].wait(20)
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def running():
    server = RecordServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()
