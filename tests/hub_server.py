"""A real HTTP server on loopback with the parts of the Hub's and Zenodo's APIs that models need."""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class HubServer(ThreadingHTTPServer):
    """Serves files, and misbehaves on demand.

    Attributes:
        files: {"owner/name/file": bytes}.
        fault: "" for none; "cut" closes the first download halfway; "slow" pauses between chunks;
            "liar" sends bytes that do not match the checksum; a number is the status of every
            answer.
        token: the token that every request needs; None if none.
        requests: (method, path, Range header) of every request.
        address: the server's root address.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.fault = ""
        self.token = None
        self.requests = []
        self.address = f"http://127.0.0.1:{self.server_port}"
        # A short interval, since shutdown waits for its end.
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self):
        """Answer with the fault's status or refuse a wrong token; return whether it did."""
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.server.fault.isdigit():
            codes = {"404": "RepoNotFound", "401": "RepoNotFound", "403": "GatedRepo"}
            code = codes.get(self.server.fault)
            self.answer(int(self.server.fault), headers={"X-Error-Code": code} if code else None)
            return True
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
            return True
        return False

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.refused():
            return
        if match := re.fullmatch(r"/api/records/(\d+)", self.path):
            return self.record(match[1])
        if match := re.fullmatch(r"/records/(\d+)/files/([^?]+)\?download=1", self.path):
            return self.file(self.server.files[f"{match[1]}/{match[2]}"])
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match and match[2] not in ("main", COMMIT):
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        if match is None or f"{match[1]}/{match[3]}" not in self.server.files:
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        return self.file(self.server.files[f"{match[1]}/{match[3]}"])

    def record(self, number):
        entries = [
            {"key": name.split("/")[1], "size": len(data),
             "checksum": f"md5:{hashlib.md5(data).hexdigest()}"}
            for name, data in self.server.files.items() if name.startswith(f"{number}/")
        ]  # fmt: skip
        self.answer(200, json.dumps({"files": entries}).encode())

    def file(self, data):
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.server.fault == "liar" and self.command == "GET":
            data = data[:-1] + bytes([data[-1] ^ 1])
        total, start = len(data), 0
        wanted_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted_range:
            start, end = int(wanted_range[1]), int(wanted_range[2] or total - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
            data = data[start:end]
        self.send_response(206 if wanted_range else 200)
        for key, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.fault == "cut" and len(data) > 10_000:
            self.server.fault = ""
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        for i in range(0, len(data), 2**16):
            if self.server.fault == "slow":
                time.sleep(0.05)
            self.wfile.write(data[i : i + 2**16])

    def do_POST(self):
        # Read the body before answering: the connection's next request follows it.
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused():
            return
        if self.path == "/api/repos/create":
            repository = json.loads(body)
            owner = repository.get("organization", "me")
            url = f"{self.server.address}/{owner}/{repository['name']}"
            return self.answer(200, json.dumps({"url": url}).encode())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = [{**f, "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, json.dumps({"files": files}).encode())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[f"{match[1]}/{line['value']['path']}"] = content
            url = f"{self.server.address}/{match[1]}/commit/{COMMIT}"
            answer = {"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""}
            return self.answer(200, json.dumps(answer).encode())
        if self.path == "/api/validate-yaml":
            return self.answer(200, b'{"errors": [], "warnings": []}')
        self.answer(404)
