"""An object store small enough for a test: what LanceDB asks of S3, on a real socket."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from _http import Handler, HttpServer


class _Handler(Handler):
    owner: S3

    def _handle(self) -> None:
        address = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with self.owner.lock:
            status, content, header = self._answer(unquote(address.path).strip("/"), asked, body)
        self.answer(status, content, {"last-modified": formatdate(usegmt=True), **header})

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _answer(self, name: str, asked: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if self.owner.refuses:
            return 403, b"<Error><Code>AccessDenied</Code></Error>", {}
        if "list-type" in asked:
            return 200, self._listed(name, asked), {}
        if self.command == "PUT":
            return self._put(name, asked, body)
        if self.command == "POST":
            return self._posted(name, asked, body)
        if self.command == "DELETE":
            self.owner.objects.pop(name, None)
            return 204, b"", {}
        return self._got(name)

    def _got(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        found = self.owner.objects.get(name)
        if found is None:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        header = {"etag": _etag(found), "content-length": str(len(found))}
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if part is None or self.command == "HEAD":
            return 200, found, header
        first, last = part.groups()
        start = int(first) if first else len(found) - int(last)
        end = min(int(last) + 1, len(found)) if first and last else len(found)
        span = {"content-range": f"bytes {start}-{end - 1}/{len(found)}", "content-length": str(end - start)}
        return 206, found[start:end], {**header, **span}

    def _put(self, name: str, asked: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if "uploadId" in asked:
            self.owner.parts[asked["uploadId"]][int(asked["partNumber"])] = body
        elif self.headers.get("if-none-match") == "*" and name in self.owner.objects:
            return 412, b"<Error><Code>PreconditionFailed</Code></Error>", {}
        elif source := self.headers.get("x-amz-copy-source"):
            self.owner.objects[name] = self.owner.objects[unquote(source).strip("/")]
        else:
            self.owner.objects[name] = body
        return 200, b"<CopyObjectResult><ETag>&quot;0&quot;</ETag></CopyObjectResult>", {"etag": _etag(body)}

    def _posted(self, name: str, asked: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if "delete" in asked:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.owner.objects.pop(f"{name}/{key}", None)
            gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return 200, f"<DeleteResult>{gone}</DeleteResult>".encode(), {}
        if "uploads" in asked:
            upload = str(len(self.owner.parts))
            self.owner.parts[upload] = {}
            begun = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return 200, begun.encode(), {}
        self.owner.objects[name] = b"".join(part for _, part in sorted(self.owner.parts[asked["uploadId"]].items()))
        ended = "<CompleteMultipartUploadResult><ETag>&quot;0&quot;</ETag></CompleteMultipartUploadResult>"
        return 200, ended.encode(), {}

    def _listed(self, bucket: str, asked: dict[str, str]) -> bytes:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        keys = sorted(name[len(bucket) + 1 :] for name in self.owner.objects if name.startswith(f"{bucket}/{prefix}"))
        keys = [key for key in keys if key > asked.get("start-after", "")]
        folders = {prefix + key[len(prefix) :].split(delimiter)[0] + delimiter for key in keys if delimiter} - set(keys)
        folders = {folder for folder in folders if any(key.startswith(folder) for key in keys)}
        files = [key for key in keys if not any(key.startswith(folder) for folder in folders)]
        # Written just now: what is old and unknown to LanceDB it removes, be it of a write under way.
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        content = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.owner.objects[f'{bucket}/{key}'])}</Size>"
            f"<LastModified>{now}</LastModified><ETag>&quot;0&quot;</ETag></Contents>"
            for key in files
        )
        content += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{content}</ListBucketResult>".encode()


class S3(HttpServer):
    """``with S3() as store: store.use(monkeypatch)``; then ``s3://any-bucket/folder`` is here."""

    handler = _Handler

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        """By bucket/key."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.refuses = False
        super().__init__()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = {"ENDPOINT": self.url, "ALLOW_HTTP": "true", "REGION": "nowhere"}
        for name, value in {**known, "ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "hunter2"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
