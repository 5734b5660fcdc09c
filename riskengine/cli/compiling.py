"""The first run on a machine compiles the kernels: this says what people wait for, and where it goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from riskengine.cli.terminal import count, say


@contextmanager
def compiling_told() -> Iterator[None]:
    """While inside, tell on standard error when kernels have to be compiled: once, and on a terminal each.

    It goes round the imports of the engine too, because some kernels are compiled when they are imported.
    """
    from numba.core import event

    from riskengine.kernel import cache_folder

    events: Any = event  # it has no types
    listener = _teller(str(cache_folder()))
    events.register("numba:compile", listener)
    try:
        yield
    finally:
        events.unregister("numba:compile", listener)
        listener.finish()


def _teller(folder: str) -> Any:
    from numba.core.event import Event, Listener

    class Teller(Listener):
        """Hears of every kernel that is compiled; those that come from the cache make no event."""

        def __init__(self) -> None:
            self.compiled: set[str] = set()
            self.began = 0.0

        def on_start(self, event: Event) -> None:
            kernel = event.data["dispatcher"].py_func
            if not kernel.__module__.startswith("riskengine."):
                return
            if not self.compiled:
                self.began = time.monotonic()
                say(
                    f"first use of some kernels: compiling them, once, into {folder} "
                    "(up to a minute or so; later runs start at once)"
                )
            self.compiled.add(f"{kernel.__module__}.{kernel.__qualname__}")
            if sys.stderr.isatty():
                done, known = len(self.compiled), max(_kernels(), len(self.compiled))
                print(
                    f"\r  kernel {done} of {known}: {kernel.__name__[:30]:30}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )

        def on_end(self, event: Event) -> None:
            pass

        def finish(self) -> None:
            if self.compiled:
                if sys.stderr.isatty():
                    print(f"\r{'':60}\r", end="", file=sys.stderr)
                say(
                    f"compiled {count(len(self.compiled), 'kernel')} in {time.monotonic() - self.began:.0f} s"
                )

    return Teller()


def _kernels() -> int:
    """How many kernels the modules hold that are imported by now; a run may not need them all."""
    from numba.core.dispatcher import Dispatcher

    modules = [module for name, module in sys.modules.items() if name.startswith("riskengine.")]
    return sum(
        isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__
        for module in modules
        for value in vars(module).values()
    )
