"""The OpenAPI document is true: schemathesis makes requests from it, every answer conforms."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import AcceptedNegativeData, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serve_kit import serving, tiny

from rack.serve.app import PREFIXES
from rack.serve.identity import identify
from rack.serve.openapi import document

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
DOCUMENT = document(identify(tiny()), prefixes=PREFIXES, keyed=False)
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with asyncio.Runner() as runner:
        context = serving(tiny("timing"))
        served = runner.run(context.__aenter__())
        yield schemathesis.openapi.from_asgi("/openapi.json", served.app)
        runner.run(context.__aexit__(None, None, None))


def meets(path: str, method: str, body: Any) -> bool:
    """Tell whether a body meets its schema: a change that breaks one choice may make another."""
    content = DOCUMENT["paths"][path][method]["requestBody"]["content"]["application/json"]
    whole = {**content["schema"], "components": DOCUMENT["components"]}
    return bool(Draft202012Validator(whole).is_valid(body))


def test_a_body_meets_its_schema_or_not() -> None:
    good = {"messages": [{"role": "developer", "content": "hi"}]}
    assert meets("/tokenize", "post", good)
    assert not meets("/tokenize", "post", {"messages": [{"role": "nobody", "content": "hi"}]})


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_conforms(schema: Any, path: str, method: str) -> None:
    operation = schema[path][method.upper()]
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    cases = good
    if method == "post":
        cases = st.one_of(good, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    statuses = []

    @settings(
        max_examples=40 if method == "post" else 5, deadline=None, database=None,
        derandomize=True, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def ask(case: Any) -> None:
        try:
            statuses.append(case.call_and_validate(checks=CHECKS).status_code)
        except FailureGroup as group:
            accepted = [isinstance(one, AcceptedNegativeData) for one in group.exceptions]
            if not all(accepted) or not meets(path, method, case.body):
                raise

    ask()
    assert 200 in statuses or "{id}" in path  # whose name is not to be guessed
