"""One spelling for every value: kernels that tidy text, addresses, phones, times and money where they lie.

Text lies as UTF-8 in one byte array; a kernel moves the bounds of a string or writes its new spelling
behind all others. What a kernel does not know (rare scripts, most phones) it hands back to Python.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import lru_cache

import numpy as np
import phonenumbers
from numpy.typing import NDArray

from riskengine.hashing import Bytes, load
from riskengine.kernel import jit

Groups = NDArray[np.int64]

NO_TIME = -(2**63)
TIME_MIN_MS = -62_135_596_800_000  # 0001-01-01T00:00:00Z
TIME_MAX_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
MINOR_MAX = 2**43
IP_BYTES_MAX = 40
PHONE_BYTES_MAX = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HIGH_BITS, _NONE = np.uint64(0x8080808080808080), np.uint64(0)  # set in what is not ASCII
_MS = timedelta(milliseconds=1)


# Text.


def tidy_text(value: str) -> str:
    """NFC, without white space around it."""
    return unicodedata.normalize("NFC", value).strip()


@jit
def tidy(text: Bytes, off: int, size: int) -> tuple[int, int, bool]:
    """Offset and size of the string without ASCII white space around it, and whether it is tidy so.

    False where the string may not be NFC yet, or may have other white space around it: see `tidy_text`.
    """
    while size > 0 and _is_space(text[off]):
        off += 1
        size -= 1
    while size > 0 and _is_space(text[off + size - 1]):
        size -= 1
    i = off
    end = off + size
    while end - i >= 8 and (load(text, np.uint64(i)) & _HIGH_BITS) == _NONE:
        i += 8
    while i < end:
        lead = int(text[i])
        if lead < 0x80:
            i += 1
            continue
        if lead < 0xE0:
            point = ((lead & 0x1F) << 6) | (int(text[i + 1]) & 0x3F)
            i += 2
        elif lead < 0xF0:
            point = ((lead & 0x0F) << 12) | ((int(text[i + 1]) & 0x3F) << 6) | (int(text[i + 2]) & 0x3F)
            i += 3
        else:
            return off, size, False
        if not is_settled(point):
            return off, size, False
    return off, size, True


@jit
def _is_space(byte: int) -> bool:
    return byte == 0x20 or (0x09 <= byte <= 0x0D) or (0x1C <= byte <= 0x1F)


@jit
def is_settled(point: int) -> bool:
    """A character beyond ASCII that is NFC in any company and no white space: Latin, Cyrillic, CJK, kana.

    Chinese text takes this path; asking `unicodedata` for each string cost 4 us an event.
    """
    return (
        0x4E00 <= point <= 0x9FFF
        or (0xA1 <= point < 0x300)
        or (0x400 <= point <= 0x482)
        or (0x3001 <= point <= 0x3029)
        or (0x3041 <= point <= 0x3096)
        or (0x309B <= point <= 0x30FF)
        or (0xAC00 <= point <= 0xD7A3)
        or (0xFF01 <= point <= 0xFFEF)
    )


# Addresses.


def ip_text(value: str) -> str:
    """The canonical text (RFC 5952) of an IP address; other text stays what it is.

    An IPv4 address seen through an IPv6 socket (::ffff:1.2.3.4) is that IPv4 address.
    """
    if "%" in value:
        return value
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return value
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def subnet(value: str) -> bytes:
    """The network of an IP address, /24 (IPv4) or /64 (IPv6), as bytes; empty where it is none."""
    try:
        address = ipaddress.ip_address(ip_text(value))
    except ValueError:
        return b""
    if address.version == 4:
        return b"\x04" + address.packed[:3]
    return b"" if "%" in value else b"\x06" + address.packed[:8]


@jit
def parse_ipv4(text: Bytes, off: int, size: int) -> int:
    """The 32 bits of a dotted quad without leading zeros, which is canonical as it stands; else -1."""
    if size < 7 or size > 15:
        return -1
    address = 0
    part = 0
    digits = 0
    dots = 0
    for i in range(off, off + size):
        byte = int(text[i])
        if byte == 0x2E:
            if digits == 0 or dots == 3:
                return -1
            address = address * 256 + part
            part = 0
            digits = 0
            dots += 1
        elif 0x30 <= byte <= 0x39:
            if digits > 0 and part == 0:
                return -1
            part = part * 10 + byte - 0x30
            digits += 1
            if part > 255:
                return -1
        else:
            return -1
    return -1 if dots < 3 or digits == 0 else address * 256 + part


@jit
def parse_ipv6(text: Bytes, off: int, size: int, groups: Groups) -> bool:
    """Read an IPv6 address into its eight 16-bit groups; False where it is none (or has a scope)."""
    if size < 2 or size > 45:
        return False
    i = off
    end = off + size
    count = 0
    gap = -1
    if text[i] == 0x3A:
        if text[i + 1] != 0x3A:
            return False
        gap = 0
        i += 2
    while i < end:
        value = 0
        digits = 0
        start = i
        while i < end and text[i] != 0x3A:
            byte = int(text[i])
            if byte == 0x2E:  # the last 32 bits may be written as IPv4
                quad = parse_ipv4(text, start, end - start)
                if quad < 0 or count > 6:
                    return False
                groups[count] = quad >> 16
                groups[count + 1] = quad & 0xFFFF
                count += 2
                i = end
                digits = 0
                break
            if 0x30 <= byte <= 0x39:
                nibble = byte - 0x30
            elif 0x61 <= (byte | 0x20) <= 0x66:
                nibble = (byte | 0x20) - 0x57
            else:
                return False
            value = value * 16 + nibble
            digits += 1
            i += 1
            if digits > 4 and (i >= end or text[i] != 0x2E):
                return False
        if i >= end and digits == 0:
            break  # after IPv4
        if digits == 0 or count > 7:
            return False
        groups[count] = value
        count += 1
        if i < end:  # at a colon
            i += 1
            if i == end:
                return False
            if text[i] == 0x3A:
                if gap >= 0:
                    return False
                gap = count
                i += 1
    if gap < 0:
        return count == 8
    if count > 7:
        return False
    moved = count - gap
    for j in range(moved):
        groups[7 - j] = groups[count - 1 - j]
    for j in range(gap, 8 - moved):
        groups[j] = 0
    return True


@jit
def format_ip(groups: Groups, text: Bytes, out: int) -> int:
    """Write the canonical text (RFC 5952) at `out`, dotted for an IPv4 address; the bytes it took."""
    at = out
    if (groups[0] | groups[1] | groups[2] | groups[3] | groups[4]) == 0 and groups[5] == 0xFFFF:
        for j in range(4):
            part = (groups[6 + j // 2] >> (8 - 8 * (j % 2))) & 0xFF
            if j:
                text[at] = 0x2E
                at += 1
            at = _write_number(part, 10, text, at)
        return at - out
    best = -1
    best_size = 1
    run = 0
    for j in range(8):
        run = run + 1 if groups[j] == 0 else 0
        if run > best_size:
            best_size = run
            best = j - run + 1
    j = 0
    while j < 8:
        if j == best:
            text[at] = 0x3A
            text[at + 1] = 0x3A
            at += 2
            j += best_size
            continue
        if j and j != best + best_size:
            text[at] = 0x3A
            at += 1
        at = _write_number(groups[j], 16, text, at)
        j += 1
    return at - out


@jit
def _write_number(value: int, base: int, text: Bytes, at: int) -> int:
    unit = 1
    while value // unit >= base:
        unit *= base
    while unit:
        digit = (value // unit) % base
        text[at] = digit + (0x30 if digit < 10 else 0x57)
        at += 1
        unit //= base
    return at


# Phones.


@lru_cache(maxsize=65_536)  # a phone takes 40 us to read, and callers come back
def phone_text(value: str, country: str | None) -> str:
    """E.164 of a phone number, local ones read as of `country`; text that is no phone stays what it is."""
    try:
        number = phonenumbers.parse(value, country)
    except phonenumbers.NumberParseException:
        return value
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


@jit
def mobile(text: Bytes, off: int, size: int, china: bool, out: int) -> int:
    """Spell a Chinese mobile number in E.164: -1 is none, 0 is E.164 already, 14 bytes were written at `out`.

    179 is left to `phone_text`: it may be the prefix of a carrier.
    """
    if size < 11 or size > PHONE_BYTES_MAX + 4:
        return -1
    plus = text[off] == 0x2B
    if not plus and not china:
        return -1
    digits = 0
    for i in range(off + 1 if plus else off, off + size):
        byte = text[i]
        if 0x30 <= byte <= 0x39:
            if digits == 13:
                return -1
            text[out + 1 + digits + (0 if plus else 2)] = byte
            digits += 1
            if digits == 12 and not plus:
                return -1
        elif not ((byte == 0x20 or byte == 0x2D) and digits > 0 and i + 1 < off + size):
            return -1
    if digits != (13 if plus else 11):
        return -1
    text[out] = 0x2B
    if not plus:
        text[out + 1] = 0x38
        text[out + 2] = 0x36
    if text[out + 1] != 0x38 or text[out + 2] != 0x36 or text[out + 3] != 0x31 or text[out + 4] < 0x33:
        return -1
    if text[out + 4] == 0x37 and text[out + 5] == 0x39:
        return -1
    return 0 if plus and size == 14 else 14


# Times.


def time_ms(value: datetime) -> int:
    """Epoch ms of a datetime with a time zone, rounded down."""
    return (value - _EPOCH) // _MS


@jit
def parse_time(text: Bytes, off: int, size: int) -> int:
    """Epoch ms of an RFC 3339 time, rounded down; NO_TIME where it is none. The offset must be there."""
    if size < 20 or size > 64:
        return NO_TIME
    for j in range(19):
        byte = text[off + j]
        if j == 4 or j == 7:
            good = byte == 0x2D
        elif j == 10:
            good = byte == 0x54 or byte == 0x74 or byte == 0x20
        elif j == 13 or j == 16:
            good = byte == 0x3A
        else:
            good = 0x30 <= byte <= 0x39
        if not good:
            return NO_TIME
    year = _two(text, off) * 100 + _two(text, off + 2)
    month, day = _two(text, off + 5), _two(text, off + 8)
    hour, minute, second = _two(text, off + 11), _two(text, off + 14), _two(text, off + 17)
    if year < 1 or month < 1 or month > 12 or day < 1 or hour > 23 or minute > 59 or second > 59:
        return NO_TIME
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = 30 + ((month + month // 8) % 2)
    if month == 2:
        days = 29 if leap else 28
    if day > days:
        return NO_TIME
    i = off + 19
    end = off + size
    ms = 0
    if text[i] == 0x2E:
        i += 1
        unit = 100
        first = i
        while i < end and 0x30 <= text[i] <= 0x39:
            ms += (int(text[i]) - 0x30) * unit
            unit //= 10
            i += 1
        if i in (first, end):
            return NO_TIME
    zone = text[i]
    shift_min = 0
    if zone == 0x5A or zone == 0x7A:
        if i + 1 != end:
            return NO_TIME
    elif zone == 0x2B or zone == 0x2D:
        if i + 6 != end or text[i + 3] != 0x3A:
            return NO_TIME
        for j in (1, 2, 4, 5):
            if text[i + j] < 0x30 or text[i + j] > 0x39:
                return NO_TIME
        zone_hour, zone_minute = _two(text, i + 1), _two(text, i + 4)
        if zone_hour > 23 or zone_minute > 59:
            return NO_TIME
        shift_min = zone_hour * 60 + zone_minute
        if zone == 0x2D:
            shift_min = -shift_min
    else:
        return NO_TIME
    return (
        ((_day_number(year, month, day) * 24 + hour) * 60 + minute - shift_min) * 60_000 + second * 1000 + ms
    )


@jit
def _two(text: Bytes, at: int) -> int:
    return (int(text[at]) - 0x30) * 10 + int(text[at + 1]) - 0x30


@jit
def _day_number(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar (Hinnant, "chrono-Compatible Date Algorithms")."""
    y = year - (1 if month <= 2 else 0)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


# Money.


def quantise(value: float, digits: int) -> int:
    """The decimal that `value` prints as, in minor units of 10 ** -digits, half to even."""
    with localcontext(prec=700):  # every finite float, and every int that JSON reasonably has
        return int(Decimal(repr(value)).scaleb(digits).to_integral_value(ROUND_HALF_EVEN))


@jit
def to_minor(value: float, digits: int) -> int:
    """The exact minor units of a value of `Batch.numbers` whose unit is 10 ** -digits."""
    return int(np.rint(value * 10.0**digits))


@jit
def is_near_half(scaled: float) -> bool:
    """Whether the decimal might stand exactly between two minor units, where binary arithmetic cannot tell.

    Printing and scaling each err by at most half a unit in the last place; this allows four times that.
    """
    return bool(abs(abs(scaled - np.rint(scaled)) - 0.5) <= abs(scaled) * 2.0**-51)
