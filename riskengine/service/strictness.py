"""What JSON text must be looked at for once it has been read: names that are there twice, and depth.

A reader keeps the last of two values of one name and does not say so. To look through the text for it in a
kernel takes 2 us an event, the call included; to write what was read again, and compare quotes, took 6.
"""

from __future__ import annotations

from typing import Final

from riskengine.kernel import jit, stack
from riskengine.packing import Bytes
from riskengine.service.settings import DEPTH_MAX

NAMES_MAX: Final = 64  # of the objects that are open at a place, all together
QUOTE, BACKSLASH, COLON = (ord(mark) for mark in '"\\:')
OPENS: Final = ord("{"), ord("[")
CLOSES: Final = ord("}"), ord("]")
SPACE: Final = ord(" ")  # and what is below it: tabs and ends of lines
SPREAD: Final = 1_000_003
WORD: Final = (1 << 42) - 1


@jit
def is_plain(text: Bytes) -> bool:
    """Whether it is plain to see that no object has a name twice, and that nothing is nested too deep.

    It is not where names have one hash, there are escapes, or more names than there is room for. `text` is
    JSON that has been read before: of anything else the answer says nothing.
    """
    names, outer = stack(NAMES_MAX), stack(DEPTH_MAX)
    known = first = depth = at = 0  # names[first:known] are those of the object that is read
    while at < len(text):
        mark = text[at]
        at += 1
        if mark == QUOTE:
            name = 0
            while at < len(text) and text[at] != QUOTE:
                if text[at] == BACKSLASH:
                    return False
                name = ((name ^ int(text[at])) * SPREAD) & WORD
                at += 1
            at += 1
            while at < len(text) and text[at] <= SPACE:
                at += 1
            if at < len(text) and text[at] == COLON:
                if known == NAMES_MAX:
                    return False
                for k in range(first, known):
                    if names[k] == name:
                        return False
                names[known] = name
                known += 1
        elif mark == OPENS[0] or mark == OPENS[1]:
            if depth == DEPTH_MAX:
                return False
            outer[depth] = first
            depth += 1
            first = known
        elif mark == CLOSES[0] or mark == CLOSES[1]:
            if depth == 0:
                return False
            depth -= 1
            known, first = first, outer[depth]
    return True
