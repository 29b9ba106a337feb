"""Drives an ASGI application by hand: no server, no HTTP library."""

import asyncio
import json


class Reply:
    def __init__(self, sent):
        self.sent = sent
        starts = [m for m in sent if m["type"] == "http.response.start"]
        assert len(starts) <= 1
        self.status = starts[0]["status"] if starts else None
        self.raw_headers = starts[0]["headers"] if starts else []
        self.headers = dict(self.raw_headers)
        self.body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")

    @property
    def problem(self):
        assert self.headers[b"content-type"] == b"application/problem+json"
        return json.loads(self.body)

    @property
    def reason(self):
        found = self.problem
        assert found["status"] == self.status
        return found["reason"]


class Client:
    """Gives the messages of a body; counts the bytes and calls that the application asked for."""

    def __init__(self, pieces, *, endless=False, hang=False, gone=False):
        self.pieces = iter(pieces)
        self.hang, self.gone = hang, gone
        self.num_bytes = self.num_calls = 0
        self._done = endless

    async def receive(self):
        self.num_calls += 1
        piece = next(self.pieces, None)
        if piece is None and self.hang:
            await asyncio.Event().wait()
        if piece is None and (self.gone or self._done):
            return {"type": "http.disconnect"}
        if piece is None:
            self._done = True
            return {"type": "http.request", "body": b"", "more_body": False}
        self.num_bytes += len(piece)
        return {"type": "http.request", "body": piece, "more_body": True}


def scope_of(method="GET", path="/v1/models", headers=(), query=b"", client=("10.0.0.1", 5)):
    return {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query, "headers": list(headers), "client": client, "root_path": "",
        "scheme": "http", "http_version": "1.1",
    }  # fmt: skip


def call(app, scope, client=None):
    client = client or Client([])
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, client.receive, send))
    return Reply(sent)


def body_of(data, *, size=65536):
    return [data[i : i + size] for i in range(0, len(data), size)]
