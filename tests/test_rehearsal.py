"""Who asks a shared store first waits for no kernel, and a rehearsal leaves nothing in anybody's store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import redis
from clusters import cluster
from servers import apart, valkey
from stage import KEY, T0, claim, policy, write

from riskengine import warming
from riskengine.engine import Engine
from riskengine.stores.address import begin

COUNTS = {
    "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
    "devices": {"distinct": "device", "on": "coupon_claim", "by": "user", "over": "1h"},
    "frauds": {"count": "fraud", "on": "coupon_claim", "by": "user", "over": "1h"},
}
LIMITS = {"one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "review"}}
SECTIONS = policy(
    features=COUNTS,
    limits=LIMITS,
    lists={"blocked": {"of": ["user"]}},
    rules={"known": {"on": "any", "when": "listed('blocked', user)", "then": "deny", "mode": "live"}},
)

# Everything that a kernel is called with for the first time is either compiled then or read from the cache.
PLAY = """
import json, sys
from riskengine.engine import Engine
from riskengine.service.rehearsal import rehearse

folder, other, store, start = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
now = start

def ready():
    kernels = {}
    for module in [m for name, m in sys.modules.items() if name.startswith("riskengine.")]:
        for kernel in vars(module).values():
            if hasattr(kernel, "nopython_signatures"):
                name = f"{kernel.py_func.__module__}.{kernel.py_func.__name__}"
                kernels[name] = [str(signature) for signature in kernel.nopython_signatures]
    return kernels

def event(id, **more):
    return {"event_id": id, "type": "coupon_claim", "user_id": "u1", "device_id": f"d-{id}", **more}

engine = Engine.open(folder, store=store, key=b"a key of the stage", clock=lambda: now)
rehearse(engine.definition, engine.scratch)
before, called = ready(), {}

def done(what):
    global before
    after = ready()
    called[what] = [name for name in after if after[name] != before.get(name)]
    before = after

engine.score(event("e1"))
done("a first event")
engine.score(event("e1"))
done("a retry")
engine.score_many([event(f"b{n}", device_id="d") for n in range(20)])
done("a batch")
engine.score(event("f1", follows="b3"))
done("a follow-up")
assert engine.release("f1") or engine.release("b0")
done("a release")
engine.label("b1", "fraud")
done("a label")
engine.list_put("blocked", "user", "u2")
engine.score(event("l1", user_id="u2"))
done("a list")
made = [event("d1", user_id="u2", device_id="again"), event("d2", device_id="again")]
actions = [decision.action for decision in engine.score_many(made)]
assert actions == ["deny", "allow"], actions
done("a limit that is asked again, as who held it was denied")
for n in range(3):
    engine.score_many([event(f"c{n}-{i}") for i in range(64)])
done("a compaction")
with Engine.open(other, store=store, key=b"a key of the stage", clock=lambda: now) as second:
    for n in range(3):
        second.score_many([event(f"o{n}-{i}") for i in range(64)])
        engine.score_many([event(f"p{n}-{i}") for i in range(64)])
done("another policy's records")
engine._store._link.tell = engine._store._link.tell_all = lambda *_: None
engine.score_many([event(f"x{n}", device_id="x") for n in range(3)])
done("a crash")
del engine._store._link.tell, engine._store._link.tell_all
now += 1000
engine.score_many([event(f"x{n}", device_id="x") for n in range(3)])
done("what a crash left")
print(json.dumps(called))
"""

LITTLE = """
import sys
from riskengine import warming
from riskengine.engine import Engine
from riskengine.service.rehearsal import rehearse

asked = {}
is_cached = warming.is_cached

def noted(kernel):
    asked[kernel.py_func.__name__] = kernel
    return is_cached(kernel)

warming.is_cached = noted
with Engine.open(sys.argv[1], store=sys.argv[2], key=b"a key of the stage") as engine:
    rehearse(engine.definition, engine.scratch)
warming.is_cold(engine.policy, True)
print(sorted(asked), all(kernel.nopython_signatures for kernel in asked.values()))
"""


@pytest.fixture(scope="module", params=["valkey", "cluster"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Valkey, and of a cluster."""
    with ExitStack() as stack:
        if request.param == "cluster":
            yield stack.enter_context(cluster(replicas=False)).url
        else:
            yield stack.enter_context(valkey())


def test_no_kernel_is_called_for_the_first_time_by_a_caller(server: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "one", SECTIONS)
    other = write(tmp_path / "two", {**SECTIONS, "features": {"claims": COUNTS["claims"]}})
    store = apart(server)
    begin(store, "stage")
    words = [sys.executable, "-c", PLAY, str(folder), str(other), store, str(T0)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    called = json.loads(done.stdout)
    assert len(called) == 12
    assert {what: kernels for what, kernels in called.items() if kernels} == {}


def test_no_policy_is_rehearsed_twice(server: str, tmp_path: Path) -> None:
    """However little a policy has, the kernels by which one is known to be rehearsed are called for it."""
    folder, store = write(tmp_path, policy()), apart(server)
    begin(store, "stage")
    words = [sys.executable, "-c", LITTLE, str(folder), store]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "['settle', 'settle_given'] True\n"), done.stderr


@pytest.mark.parametrize("shared", [False, True])
def test_no_kernel_leaves_the_arrays_of_a_batch_of_none(shared: bool) -> None:
    """Compiled kernels ask nobody whether an index is in an array: as plain Python they do."""
    words = [sys.executable, "-c", f"from riskengine import warming; warming.main({shared})"]
    plain = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=plain)
    assert done.returncode == 0, done.stderr


def test_an_engine_that_opens_without_kernels_rehearses_where_nobody_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def is_cold(_: object, shared: bool) -> bool:
        asked.append(shared)
        return True

    monkeypatch.setattr(warming, "is_cold", is_cold)
    monkeypatch.setattr(warming, "store_elsewhere", lambda _: nullcontext())
    with valkey() as url, redis.Redis.from_url(url) as client:
        store = apart(url)
        begin(store, "stage")
        with Engine.open(write(tmp_path, SECTIONS), store=store, key=KEY, clock=lambda: T0 + 1000) as engine:
            assert asked == [True, True], "of the engine's own store, and of the one that it rehearses on"
            names = [name.rpartition(b":")[2].partition(b".")[0] for name in client.scan_iter()]
            assert sorted(names) == [b"epoch", b"hashkey", b"plan"]
            assert engine.score(claim("e1"), features=True).features == {
                "claims": 1, "devices": 0, "frauds": 0
            }  # fmt: skip
