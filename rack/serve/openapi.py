"""The OpenAPI document of a server, made from the models that check its requests and answers."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from rack.serve import answers, bodies
from rack.serve.identity import Identity
from rack.serve.neutral import CHAT, ECHOED, MESSAGE, NO_CALLS, RESPONSES, TEXT, TOKENIZE, Neutral
from rack.serve.responses_api.answers import ResponseObject
from rack.serve.responses_api.bodies import ResponsesRequest

_REF = "#/components/schemas/{model}"
_EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """One path and method."""

    path: str
    summary: str
    answer: type[BaseModel] | str  # a media type where the answer is not JSON
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    open: bool = False  # to everyone, with or without a key
    streams: bool = False


_BODY_ERRORS = (400, 404, 408, 413)
_COMPLETION_ERRORS = (*_BODY_ERRORS, 429, 500, 503)
_API = (
    _Operation(
        path="/chat/completions", summary="Answer a chat", body=bodies.ChatRequest,
        answer=answers.ChatCompletion, errors=_COMPLETION_ERRORS, streams=True,
    ),
    _Operation(
        path="/completions", summary="Continue a text", body=bodies.TextRequest,
        answer=answers.TextCompletion, errors=_COMPLETION_ERRORS, streams=True,
    ),
    _Operation(
        path="/responses", summary="Answer a chat, as items", body=ResponsesRequest,
        answer=ResponseObject, errors=_COMPLETION_ERRORS, streams=True,
    ),
    _Operation(path="/models", summary="List the names of the model", answer=answers.Models),
    _Operation(
        path="/models/{id}", summary="Describe a model", answer=answers.Model, errors=(404,)
    ),
)  # fmt: skip
_BESIDE = (
    _Operation(
        path="/tokenize", summary="Text to token ids", body=bodies.TokenizeRequest,
        answer=answers.Tokens, errors=_BODY_ERRORS,
    ),
    _Operation(
        path="/detokenize", summary="Token ids to text", body=bodies.DetokenizeRequest,
        answer=answers.Text, errors=_BODY_ERRORS,
    ),
    _Operation(path="/health", summary="The server runs", answer=answers.Status, open=True),
    _Operation(
        path="/health/ready", summary="A rack takes requests", answer=answers.Ready,
        errors=(503,), open=True,
    ),
    _Operation(path="/version", summary="What answers", answer=answers.Version, open=True),
    _Operation(path="/metrics", summary="Prometheus text", answer="text/plain", open=True),
)  # fmt: skip
_NEUTRAL: dict[type[BaseModel], Neutral] = {
    bodies.ChatRequest: CHAT,
    bodies.TextRequest: TEXT,
    ResponsesRequest: RESPONSES,
    bodies.TokenizeRequest: TOKENIZE,
    bodies.SystemMessage: MESSAGE | NO_CALLS,
    bodies.UserMessage: MESSAGE | NO_CALLS,
    bodies.AssistantMessage: MESSAGE,
    bodies.ToolMessage: MESSAGE,
}


def document(identity: Identity, *, prefixes: tuple[str, ...], keyed: bool) -> dict[str, Any]:
    """Return the document; `prefixes` are where the API is mounted, `keyed` if keys are wanted."""
    mounted = [(prefix + one.path, one) for prefix in prefixes for one in _API]
    mounted += [(one.path, one) for one in _BESIDE]
    paths = {
        path: {"get" if one.body is None else "post": _operation(one, keyed)}
        for path, one in mounted
    }
    components: dict[str, Any] = {"schemas": _schemas(identity)}
    if keyed:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lpu-rack", "version": identity.version()["version"]},
        "paths": paths,
        "components": components,
    }


def _operation(one: _Operation, keyed: bool) -> dict[str, Any]:
    if isinstance(one.answer, str):
        content: dict[str, Any] = {one.answer: {"schema": {"type": "string"}}}
    else:
        content = _json(one.answer)
    if one.streams:
        data = {"data": {"type": "string"}}
        content[_EVENTS] = {"schema": {"type": "object", "properties": data, "required": ["data"]}}
    errors = (*one.errors, *((401,) if keyed and not one.open else ()))
    described: dict[str, Any] = {
        "summary": one.summary,
        "responses": {"200": {"description": "OK", "content": content}}
        | {
            str(status): {
                "description": HTTPStatus(status).phrase, "content": _json(answers.ErrorBody),
            }
            for status in sorted(errors)
        },
    }  # fmt: skip
    if one.body is not None:
        described["requestBody"] = {"required": True, "content": _json(one.body)}
    if "{id}" in one.path:
        described["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if keyed and not one.open:
        described["security"] = [{"key": []}]
    return described


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _schemas(identity: Identity) -> dict[str, Any]:
    """Return every model's schema, with the names of this server's model."""
    operations = (*_API, *_BESIDE)
    both: list[tuple[type[BaseModel], JsonSchemaMode]] = [(answers.ErrorBody, "serialization")]
    both += [(one.body, "validation") for one in operations if one.body is not None]
    both += [(o.answer, "serialization") for o in operations if not isinstance(o.answer, str)]
    _, made = models_json_schema(both, ref_template=_REF)
    schemas: dict[str, Any] = made["$defs"]
    for model, neutral in _NEUTRAL.items():
        for name, allowed in neutral.items():
            schemas[model.__name__]["properties"][name] = {
                "enum": [None, *allowed],
                "description": "Not supported: only what asks for nothing.",
            }
    echoed = {"description": "Taken back with an answer, and not read."}
    schemas["AssistantMessage"]["properties"] |= dict.fromkeys(sorted(ECHOED), echoed)
    for one in operations:
        if one.body is not None:
            required = one.body.model_fields["model"].is_required()
            names = [*identity.names, *([] if required else [None])]
            schemas[one.body.__name__]["properties"]["model"] = {"enum": names}
    return schemas
