"""The event vocabulary that ships with the engine: fields a policy may use without declaring them.

A declaration under `events.TYPE.fields` wins over what stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from riskengine.definition import Field, FieldType

# Names that mean something else in an event: they cannot be fields.
ENVELOPE: Final = frozenset({"event_id", "type", "time", "follows"})


# Fields that name things and businesses, not people: an alert shows them as they are.
THINGS: Final = frozenset(
    {
        "campaign_id", "coupon_type", "batch_id", "terminal_id", "merchant_id", "region", "channel", "funder",
        "phone_kind", "currency",
    }
)  # fmt: skip


def _fields(kinds: Mapping[str, tuple[FieldType, int | None]]) -> Mapping[str, Field]:
    return MappingProxyType({name: Field(name, kind, digits) for name, (kind, digits) in kinds.items()})


def _pick(names: Iterable[str]) -> Mapping[str, Field]:
    return MappingProxyType({name: FIELDS[name] for name in names})


# Every field of the vocabulary. A name has one type wherever it stands.
FIELDS: Final = _fields(
    {
        # who and where: any event
        "user_id": ("string", None),
        "device_id": ("string", None),
        "ip": ("ip", None),
        "phone": ("phone", None),
        "phone_verified": ("bool", None),
        "phone_kind": ("string", None),  # mobile, virtual or voip
        "account_created": ("time", None),
        "id_verified": ("bool", None),
        "channel": ("string", None),
        "region": ("string", None),
        "location": ("location", None),
        "user_agent": ("string", None),
        # campaigns
        "campaign_id": ("string", None),
        "coupon_type": ("string", None),
        "funder": ("string", None),  # platform or store
        "captcha_passed": ("bool", None),
        "code_id": ("string", None),
        "batch_id": ("string", None),
        "terminal_id": ("string", None),
        # money
        "order_id": ("string", None),
        "payment_account": ("string", None),
        "merchant_id": ("string", None),
        "recipient": ("string", None),
        "address": ("string", None),
        "currency": ("string", None),
        "amount": ("number", 2),
        "discount": ("number", 2),
        "list_price": ("number", 2),
        "pages_viewed": ("number", 0),
        "dwell_s": ("number", 3),
    }
)

COMMON: Final = _pick(
    (
        "user_id", "device_id", "ip", "phone", "phone_verified", "phone_kind", "account_created",
        "id_verified", "channel", "region", "location", "user_agent",
    )
)  # fmt: skip

BY_TYPE: Final[Mapping[str, Mapping[str, Field]]] = MappingProxyType(
    {
        "coupon_claim": _pick(
            (
                "campaign_id", "coupon_type", "funder", "merchant_id", "amount", "captcha_passed", "address",
            )
        ),
        "qr_scan": _pick(("code_id", "batch_id", "campaign_id", "terminal_id", "region", "amount")),
        "payment": _pick(
            (
                "order_id", "payment_account", "merchant_id", "amount", "currency", "recipient", "address",
                "coupon_type", "discount", "pages_viewed", "dwell_s", "list_price",
            )
        ),
    }
)  # fmt: skip
