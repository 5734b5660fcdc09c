"""How a command ends: its exit codes, and what a person reads when it fails. No traceback reaches a user."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from riskengine.cli.terminal import say
from riskengine.errors import EventError, PolicyError, RiskEngineError

GOOD: Final = 0
FINDINGS: Final = 1  # a bad policy, a failed test, a rejected line
USAGE: Final = 2  # it could not be done as it was given
BUG: Final = 70
INTERRUPTED: Final = 130
AGAIN_SECONDS: Final = 0.01


def heed_interrupts() -> None:
    """Lose no Ctrl-C: what is raised in a callback of C code (numba's, as it loads a kernel) goes nowhere."""
    otherwise = sys.unraisablehook

    def hook(lost: Any) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt) or sys.platform == "win32":
            otherwise(lost)
            return
        main = threading.main_thread().ident
        assert main is not None, "it has begun"
        again = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def ended(command: Callable[[], object]) -> int:
    """Run a command and return its exit code. Everything that can be raised becomes a message here."""
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else GOOD if end.code is None else USAGE
        if code == INTERRUPTED:
            say("interrupted")
        return code
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINDINGS
    except (PolicyError, EventError) as error:
        return _fail(error, FINDINGS)
    except RiskEngineError as error:
        return _fail(error, USAGE)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(error, USAGE, f"{name}{error.strerror or error}")
    except Exception as error:  # the last line of defence: a bug, told in one line
        kind = type(error).__name__
        return _fail(
            error,
            BUG,
            f"this is a bug in riskengine ({kind}: {_first_line(error)}). Please report it to its "
            "maintainers, with the command and what it prints when RISKENGINE_DEBUG=1 is set.",
        )
    return GOOD


def _fail(error: BaseException, code: int, message: str | None = None) -> int:
    if os.environ.get("RISKENGINE_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    say(f"error: {message or error}")
    return code


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
