"""How functions are offered to a model, and the grammar of the calls it must make."""

import json
from pathlib import Path
from typing import Any

import pytest

from rack.text.chat_template import ChatTemplate, PromptError
from rack.text.tokens import StreamDecoder, Tokenizer
from rack.text.tools import LLAMA, TAGGED, Tool, Tools, chat_tokens, form_of

# The parts of Meta's template for Llama 3.1 and of Qwen 2.5's that have to do with functions.
LLAMA_TEMPLATE = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + ']' }}
        {%- if tools is not none and loop.first %}
            {%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}
        {%- endif %}
        {{- message['content'] | trim + '[eot]' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '[assistant]{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- '}[eot]' }}
    {%- else %}
        {{- '[ipython]' + message.content + '[eot]' }}
    {%- endif %}
{%- endfor %}"""
QWEN_TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- "\\n" + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\nwithin <tool_call></tool_call> XML tags<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}"""


class Texts(Tokenizer):
    """Stands in for a model's tokenizer: ids are characters, so that prompts can be read."""

    kind = "characters"

    def __init__(self, template: str | None) -> None:
        made = ChatTemplate(template, where="test", tokens={"bos_token": "<s>"})
        super().__init__(
            vocab_size=1 << 21,
            bos_id=None,
            eos_ids=(),
            template=made,
            notice=None,
            longest_token=None,
        )

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    _encode_rendered = encode

    def decode(self, ids: Any) -> str:
        raise NotImplementedError

    def stream(self, context: Any = ()) -> StreamDecoder:
        raise NotImplementedError

    def vocabulary(self) -> str | list[bytes]:
        raise NotImplementedError

    def _plain_ids(self) -> list[int]:
        raise NotImplementedError


def prompt(template: str | None, messages: list[dict[str, Any]], tools: Tools | None = None) -> str:
    return "".join(map(chr, chat_tokens(Texts(template), messages, tools)))


def call(identity: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = Tools(
    offered=(
        Tool(name="weather", description="Look up “now”", parameters=SCHEMA, param="tools[0]"),
        Tool(name="stop", strict=True, param="tools[1]"),
    )
)
USER = {"role": "user", "content": "Hi"}
ONE_CALL = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [call("1", "weather", '{"city":"Å"}')]},
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
]
TWO_CALLS = [
    USER,
    {
        "role": "assistant",
        "content": "Wait.",
        "tool_calls": [call("1", "weather", '{"city": "A"}'), call("2", "stop", "")],
    },
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
    {"role": "tool", "tool_call_id": "2", "content": "done"},
    USER,
]


def test_llamas_template_gets_tools_and_arguments_as_objects() -> None:
    wire = json.dumps(TOOLS.offered[0].wire(), ensure_ascii=False, indent=4)
    stop = json.dumps(TOOLS.offered[1].wire(), indent=4)
    assert prompt(LLAMA_TEMPLATE, ONE_CALL, TOOLS) == (
        f'<s>[user]{wire}{stop}Hi[eot][assistant]{{"name": "weather", "parameters": '
        '{"city": "Å"}}[eot][ipython]rain[eot]'
    )
    assert TOOLS.offered[1].wire() == {
        "type": "function", "function": {"name": "stop", "strict": True},
    }  # fmt: skip


def test_several_calls_are_parted_for_a_template_that_takes_one() -> None:
    assert prompt(LLAMA_TEMPLATE, TWO_CALLS) == (
        '<s>[user]Hi[eot][assistant]{"name": "weather", "parameters": {"city": "A"}}[eot]'
        '[ipython]rain[eot][assistant]{"name": "stop", "parameters": {}}[eot][ipython]done[eot]'
        "[user]Hi[eot]"
    )
    refusing = "{{ raise_exception('no') }}{{ tools }}"
    with pytest.raises(PromptError, match="refuses these messages: no"):
        prompt(refusing, TWO_CALLS)
    with pytest.raises(PromptError, match="refuses these messages: no"):
        prompt(refusing, ONE_CALL)


def test_qwens_template() -> None:
    text = prompt(QWEN_TEMPLATE, TWO_CALLS, TOOLS)
    assert text.startswith("<|im_start|>system\n# Tools\n<tools>\n" + '{"type": "function"')
    assert text.endswith(
        '<|im_start|>assistant\nWait.\n<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "A"}}\n</tool_call>\n<tool_call>\n{"name": "stop", "arguments": {}}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nrain\n</tool_response>"
        "<|im_end|>\n<|im_start|>user\n<tool_response>\ndone\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_arguments_that_are_no_object_stay_as_they_are() -> None:
    chat = [{"role": "assistant", "tool_calls": [call("1", "f", "{oops")]}]
    assert '"arguments": "{oops"' in prompt(QWEN_TEMPLATE, chat)


def test_the_plain_form() -> None:
    assert prompt(None, TWO_CALLS, TOOLS) == (
        "user: You can call these functions:\n"
        '{"name": "weather", "description": "Look up “now”", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}\n'
        '{"name": "stop", "strict": true}\n'
        'To call one, answer only with {"name": NAME, "parameters": {ARGUMENTS}}\n\nHi\n'
        'assistant: Wait.\n{"name": "weather", "parameters": {"city": "A"}}\n'
        '{"name": "stop", "parameters": {}}\n'
        "user: Result of weather: rain\nResult of stop: done\nuser: Hi\nassistant:"
    )


def test_a_chat_without_tools_is_as_it_was() -> None:
    chat = [{"role": "system", "content": "Be."}, USER]
    assert prompt(None, chat) == "system: Be.\nuser: Hi\nassistant:"
    assert prompt("{{ messages[0].content }}", chat) == "Be."
    with pytest.raises(PromptError, match="at least one message"):
        prompt(None, [], TOOLS)


def test_the_form_is_the_templates() -> None:
    assert form_of(ChatTemplate(None, where="t")) == LLAMA
    assert form_of(ChatTemplate(LLAMA_TEMPLATE, where="t")) == LLAMA
    assert form_of(ChatTemplate(QWEN_TEMPLATE, where="t")) == TAGGED
    assert form_of(ChatTemplate("<tool_call>", where="t")) == LLAMA  # takes none
    assert TAGGED.call("f", "{}") == '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


def test_the_grammar_of_calls() -> None:
    lines = TOOLS.grammar(LLAMA).text.splitlines()
    assert lines[:3] == [
        'start: call ("\\n" call){0,15}', "call: call0 | call1",
        'call0: "{\\"name\\": \\"weather\\", \\"parameters\\": " arguments0 "}"',
    ]  # fmt: skip
    held_to = json.loads(lines[3].removeprefix("arguments0: %json "))
    del held_to["x-guidance"]
    assert held_to == SCHEMA | {"additionalProperties": False}
    assert [one.param for one in TOOLS.grammar(LLAMA).parts] == ["tools[0]", "tools[1]"]


def test_one_call_where_one_is_named_or_several_are_not_wanted() -> None:
    named = Tools(offered=TOOLS.offered, required=True, named="stop")
    assert named.names == ("stop",)
    assert named.grammar(LLAMA).text.splitlines()[:2] == ["start: call", "call: call0"]
    single = Tools(offered=TOOLS.offered, parallel=False)
    assert single.grammar(TAGGED).text.splitlines()[:2] == ["start: call", "call: call0 | call1"]


def test_random_calls_have_no_lists_of_different_items() -> None:
    schema = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools = Tools(offered=(Tool(name="f", parameters=schema),))
    assert '"uniqueItems": true' in tools.grammar(LLAMA).text
    assert '"maxItems": 1' in tools.grammar(LLAMA, random=True).text


def test_the_models_own_template_takes_none(stories260k: Path) -> None:
    config = json.loads((stories260k / "tokenizer_config.json").read_text())
    assert not ChatTemplate(config.get("chat_template"), where="t").takes_tools
