"""rack.text.chat_template: what transformers renders, in a sandbox, on a fixed day."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import ModelError
from rack.text.chat_template import ChatTemplate, PromptError, read_template

# The shape of Llama 3's template: it writes BOS itself and uses a clock.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- raise_exception('no tools here') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'system' %}
        {{- 'Today: ' + date_string + '\\n' }}
    {%- endif %}
    {{- message['content'] | trim + eos_token }}
{%- endfor %}
{%- if tools %}{{- tools | tojson }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHAT = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": " Hé 🙂 "},
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, where="here", tokens={"bos_token": "<BOS>", "eos_token": "<EOT>"})


def test_a_chat_renders_as_in_transformers_but_for_the_date() -> None:
    assert template(LLAMA3).render(CHAT) == (
        "<BOS><|start_header_id|>system<|end_header_id|>\n\n"
        "Today: 26 Jul 2024\nBe <brief> & 'kind'.<EOT>"
        "<|start_header_id|>user<|end_header_id|>\n\nHé 🙂<EOT>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_tools_are_written_as_transformers_writes_them() -> None:
    text = template(LLAMA3).render(CHAT, tools=[{"name": "<é>'"}])
    assert """<EOT>[{"name": "<é>'"}]<|start""" in text


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    source = "{% for m in messages %}\n  {% if loop.index > 1 %}\n  {% break %}\n  {% endif %}\nx\n"
    assert template(source + "{% endfor %}").render(CHAT) == "x\n"


def test_tojson_has_transformers_options() -> None:
    tool = {"b": ["é", 1], "a": "<"}
    for options, text in (
        ("", '{"b": ["é", 1], "a": "<"}'),
        ("ensure_ascii=true", '{"b": ["\\u00e9", 1], "a": "<"}'),
        ("separators=(',', ':'), sort_keys=true", '{"a":"<","b":["é",1]}'),
        ("indent=2", '{\n  "b": [\n    "é",\n    1\n  ],\n  "a": "<"\n}'),
    ):
        source = f"{{{{ tools[0] | tojson({options}) }}}}" if options else "{{ tools[0] | tojson }}"
        assert template(source).render(CHAT, [tool]) == text


def test_generation_marks_are_no_text() -> None:
    source = (
        "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% if loop.last %}"
        "{% continue %}{% endif %},{% endgeneration %}{% endfor %}{{ x is defined }}"
    )
    assert template(source).render(CHAT) == "system,userFalse"


def test_a_template_with_tools_is_its_own() -> None:
    named = {"default": "D{{ documents }}", "tool_use": "T{{ tools }}", "rag": "R"}
    chat = ChatTemplate(named, where="here")
    assert chat.render(CHAT) == "DNone"
    assert chat.render(CHAT, [{"a": 1}]) == "T[{'a': 1}]"
    assert chat.render(CHAT, documents=[{"a": 1}]) == "D[{'a': 1}]"
    assert ChatTemplate({"default": "D"}, where="here").render(CHAT, [{}]) == "D"


def test_messages_are_given_as_transformers_gives_them() -> None:
    chat = [{"role": "assistant", "content": None, "name": "n", "reasoning": "r"}]
    assert template("{{ messages }}").render(chat) == str(
        [{"thinking": "r", "role": "assistant", "name": "n", "reasoning": "r",
          "reasoning_content": "r"}]
    )  # fmt: skip
    assert chat[0]["content"] is None
    assert template("{{ messages[0].content is defined }}").render(chat) == "False"


def test_a_token_that_there_is_not_is_undefined() -> None:
    source = "{{ bos_token }}|{{ pad_token }}|{{ pad_token is defined }}"
    assert template(source).render(CHAT) == "<BOS>||False"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% if 0 %}{{ 'x' * 10**12 }}{% endif %}",
        "{{ 1 | center(10**12) }}",
    ],
)
def test_nothing_is_computed_at_load(source: str) -> None:
    assert not template(source).is_plain


def test_the_plain_template_is_one_line_a_message() -> None:
    plain = ChatTemplate(None, where="here")
    assert plain.is_plain
    chat = [*CHAT, {"role": "assistant", "content": None}]
    text = "system: Be <brief> & 'kind'.\nuser:  Hé 🙂 \nassistant: \nassistant:"
    assert plain.render(chat) == text


def test_its_own_file_wins_over_the_config(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    for config, text in (({"chat_template": named}, "D"), ({"chat_template": "S"}, "S")):
        assert read_template(tmp_path, config, {}).render(CHAT) == text
    assert read_template(tmp_path, {}, {}).is_plain
    (tmp_path / "chat_template.json").write_text('{"chat_template": "P"}')
    assert read_template(tmp_path, {}, {}).render(CHAT) == "P"
    assert read_template(tmp_path, {"chat_template": "S"}, {}).render(CHAT) == "S"
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}{{ bos_token }}")
    found = read_template(tmp_path, {"chat_template": named}, {"bos_token": "B"})
    assert found.render(CHAT) == "2B"
    assert found.render(CHAT, []) == "2B"  # a file replaces all of the config's
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("F")
    (tmp_path / "additional_chat_templates" / "notes.txt").write_text("{% nonsense")
    assert read_template(tmp_path, {}, {}).render(CHAT, []) == "F"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"wanted one named 'default', got \['tool_use'\]"):
        read_template(tmp_path, {"chat_template": "S"}, {})


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        (LLAMA3, [{"role": "tool", "content": ""}], "no tools here"),
        ("{{ messages[0].content + 1 }}", CHAT, "can only concatenate str"),
        ("{{ messages.append(1) }}", CHAT, "access to attribute 'append' of"),
        ("{{ no.such }}", CHAT, "'no' is undefined"),
        ("{{ 1 / 0 }}", CHAT, "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", CHAT, "maximum recursion depth"),
    ],
)
def test_chats_that_are_refused(source: str, messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(PromptError) as caught:
        template(source).render(messages)
    wanted = f"the model's chat template refuses these messages: {message}"
    assert str(caught.value).startswith(wanted)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_empty_chat_is_refused() -> None:
    with pytest.raises(PromptError) as caught:
        template(LLAMA3).render([])
    assert str(caught.value) == "messages: wanted at least one message, got none"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "wanted a string, got int"),
        ([{"name": "rag", "template": ""}], "wanted one named 'default', got ['rag']"),
        ([{"name": "x"}], "wanted a name and a template in each entry, got {'name': 'x'}"),
        ([["default", "x"]], "wanted a name and a template in each entry, got ['default', 'x']"),
        ({"default": 7}, "wanted strings by name, got {'default': 7}"),
        ("{{ x | no }}", "wanted a Jinja chat template, got No filter named 'no' in line 1"),
        (
            "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
            "wanted a Jinja chat template, got SyntaxError: too many statically nested blocks",
        ),
        ("{{" + "(" * 5000, "wanted a Jinja chat template, got RecursionError: maximum recursion"),
        (
            "a\n{% if %}",
            "wanted a Jinja chat template, got Expected an expression, "
            "got 'end of statement block' in line 2",
        ),
    ],
)
def test_templates_that_are_refused(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_template(tmp_path, {"chat_template": source}, {})
    where = f"{tmp_path / 'tokenizer_config.json'}: chat_template"
    assert str(caught.value).startswith(f"{where}: {message}")
