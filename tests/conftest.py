"""What tests share: how long hypothesis searches, a hash key that is not the machine's, a shared store."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from servers import apart, valkey

from riskengine.stores.address import begin

# `ci` draws the same examples every time, so that a red run can be repeated by anyone; it is the default.
# `dev` searches anew each time: HYPOTHESIS_PROFILE=dev python -m pytest tests/test_x.py
# No deadlines: the first call of a kernel compiles it.
settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True, print_blob=True)
settings.register_profile("dev", deadline=None, max_examples=200, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# A shell starts what it runs in the background deaf to Ctrl-C, and children inherit that: tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_hash_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on, or shows, the hash key of the machine it runs on."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", "00112233445566778899aabbccddeeff")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a Valkey server for the tests of a module."""
    with valkey() as url:
        yield url


@pytest.fixture
def store(server: str) -> str:
    """The URL of a store on it, begun for the policy of `stage` and apart from those of other tests."""
    url = apart(server)
    begin(url, "stage")
    return url
