"""What OpenAPI promises, held against a running sidecar by schemathesis: no 5xx, no undeclared answer."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from test_service import Served, claim, sidecar

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

SETTINGS = settings(  # examples of each operation and mode
    max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with sidecar(tmp_path_factory.mktemp("openapi")) as served:
        yield served
    assert not [line for line in served.told if "failed" in line], served.told


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_nothing_is_answered_that_openapi_does_not_tell(server: Served, mode: GenerationMode) -> None:
    """Bodies, names and headers as the document has them, and as it has them not."""
    assert server.score(claim("e1")).status == 200  # so that some events are known
    document = server.ask("GET", "/openapi.json").value
    schema: Any = schemathesis.openapi.from_dict(document)
    base = f"http://127.0.0.1:{server.port}"
    tried: Counter[str] = Counter()

    def ask(case: Any) -> None:
        tried[f"{case.operation.method} {case.operation.path}"] += 1
        case.call_and_validate(base_url=base, checks=CHECKS, headers={"connection": "close"})

    for found in schema.get_all_operations():
        operation: Any = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or _parameters(operation)):
            continue  # there is nothing to say wrongly
        drawn: Any = given(operation.as_strategy(generation_mode=mode))
        SETTINGS(drawn(ask))()
    operations = sum(len(methods) for methods in document["paths"].values())
    assert len(tried) >= operations - 1


def _parameters(operation: Any) -> list[Any]:
    return [*operation.path_parameters, *operation.query, *operation.headers]
