"""Azurite, Microsoft's emulator of Azure Blob Storage, on the loopback: an npm package.

`make test-cloud` installs it in `.azurite`. Without it, tests that need it are skipped.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
from email.utils import formatdate
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import requests

from tests.waiting import wait_until

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account and the key that every Azurite has; no secrets."""
_INSTALLED = Path(__file__).parents[1] / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
_VERSION = "2021-08-06"


@cache
def azurite() -> str:
    """Start Azurite, once for all tests of a process, and give the address of its blobs."""
    program = os.environ.get("AZURITE") or shutil.which("azurite-blob") or str(_INSTALLED)
    if not Path(program).exists():
        pytest.skip("Azurite is not installed: make test-cloud installs it, with npm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    words += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    folder = mkdtemp()
    process = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(process.terminate)
    wait_until(lambda: _answers(port))
    return f"http://127.0.0.1:{port}/{ACCOUNT}"


def make_container(url: str, name: str, *, public: bool = False) -> None:
    """Make a container; obstore makes none."""
    date = formatdate(usegmt=True)
    access = "x-ms-blob-public-access:container\n" if public else ""
    signed = f"{access}x-ms-date:{date}\nx-ms-version:{_VERSION}\n"
    text = "PUT" + "\n" * 12 + signed + f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": _VERSION,
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
    }
    headers |= {"x-ms-blob-public-access": "container"} if public else {}
    answer = requests.put(f"{url}/{name}?restype=container", headers=headers, timeout=10)
    assert answer.status_code == 201, answer.text


def _answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0
