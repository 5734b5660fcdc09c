"""Rooms: one memory for the batches of a thread, whatever their size, and nobody else's."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from stage import Stage, claim, policy

from riskengine.fibers import Fibers, mine
from riskengine.rooms import ALIGNED, ROOM_MAX, Arena, Empty, Rooms

SECTIONS = policy(
    features={
        "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
        "devices": {"distinct": "device", "on": "coupon_claim", "by": "user", "over": "1h"},
    },
    limits={"few": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 3, "then": "deny"}},
)

shapes = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 40), st.tuples(st.integers(0, 9), st.integers(0, 9))),
        st.sampled_from((np.uint8, np.int32, np.int64, np.float64, np.bool_)),
    ),
    max_size=12,
)


@given(wanted=shapes, size=st.integers(0, 4_000))
def test_arrays_of_an_arena_are_apart(wanted: list[tuple[Any, Any]], size: int) -> None:
    arena = Arena(size)
    made = [arena.empty(shape, kind) for shape, kind in wanted]
    for number, ((shape, kind), array) in enumerate(zip(wanted, made, strict=True)):
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
        assert array.dtype == kind
        assert array.flags.c_contiguous
        array.fill(number)
    for number, ((_, kind), array) in enumerate(zip(wanted, made, strict=True)):
        assert (array == np.full(1, number).astype(kind)).all()
    sure = Arena(arena.used)
    for shape, kind in wanted:
        array = sure.empty(shape, kind)
        assert array.ctypes.data % ALIGNED == 0 or array.size == 0
        assert array.size == 0 or np.shares_memory(array, sure._memory), (
            "all that was asked for finds a place"
        )


class Kept(Rooms[Any, Any]):
    def make(self, policy: Any, n: int, empty: Empty) -> Any:
        return empty((n, 3))


def test_a_room_is_found_again_until_the_policy_is_another() -> None:
    first: Any = object()
    second: Any = object()
    rooms = Kept()
    lone, small, large = (rooms.of(first, n) for n in (1, 2, ROOM_MAX))
    assert rooms.of(first, 2) is small
    assert np.shares_memory(small, large)
    assert not np.shares_memory(lone, large)
    assert rooms.of(second, 2) is not small
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(rooms.of(second, 2)))
    thread.start()
    thread.join()
    assert not np.shares_memory(found[0], rooms.of(second, 2))


def test_fibers_have_rooms_of_their_own() -> None:

    async def both() -> list[Any]:
        rooms, found = Kept(), []
        some: Any = object()
        fibers = Fibers(asyncio.get_running_loop())
        own = rooms.of(some, 2)
        fibers.run(lambda: mine(rooms).of(some, 2), lambda room, _: found.append(room))
        return [own, *found]

    own, other = asyncio.run(both())
    assert not np.shares_memory(own, other)


def test_batches_of_all_sizes_in_turns_are_judged_as_one_by_one(tmp_path: Path) -> None:
    """Also where some are refused, or come again, and rooms are left for another size."""
    sizes = (2, 64, 1, 3, 65, 2, 0, 63, 1, 5, 64, 200, 2)
    with (
        Stage(tmp_path / "rooms", SECTIONS) as rooms,
        Stage(tmp_path / "alone", SECTIONS) as alone,
    ):
        number = 0
        for size in sizes:
            events: list[dict[str, Any]] = []
            for _ in range(size):
                number += 1
                event = claim(
                    f"e{number - number % 7 // 6}", user_id=f"u{number % 5}", device_id=f"d{number % 11}"
                )
                events.append({**event, "user_id": 7} if number % 13 == 0 else event)
            together = rooms.engine.score_many(events, features=bool(size % 2))
            one_by_one = [alone.engine.score_many([e], features=bool(size % 2))[0] for e in events]
            assert [str(answer) for answer in together] == [str(answer) for answer in one_by_one]
