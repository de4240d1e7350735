"""The groq SDK."""

import json

import groq
from kit import MODEL, QUESTION, WEATHER, run, wanted

client = groq.Groq()
ask = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}


def chat() -> str:
    answer = client.chat.completions.create(**ask, max_completion_tokens=16)
    wanted(answer.choices[0].message.content, answer)
    return f"{answer.usage.completion_tokens} tokens in {answer.usage.completion_time} s"


def stream() -> str:
    chunks = list(client.chat.completions.create(**ask, max_completion_tokens=16, stream=True))
    usage = chunks[-1].x_groq.usage
    wanted(usage.completion_tokens == 16, chunks[-1])
    return f"{len(chunks)} chunks"


def structured() -> str:
    schema = WEATHER["function"]["parameters"]
    answer = client.chat.completions.create(
        **ask,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "strict": True, "schema": schema},
        },
    )
    text = answer.choices[0].message.content
    wanted(set(json.loads(text)) == {"city"}, text)
    return text


def tools() -> str:
    answer = client.chat.completions.create(**ask, tools=[WEATHER], tool_choice="required")
    message = answer.choices[0].message
    wanted(answer.choices[0].finish_reason == "tool_calls", answer)
    call = message.tool_calls[0]
    wanted(set(json.loads(call.function.arguments)) == {"city"}, call)
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'}
    history = [*ask["messages"], message, result]
    second = client.chat.completions.create(
        model=MODEL, messages=history, tools=[WEATHER], tool_choice="none", max_tokens=8
    )
    wanted(second.choices[0].message.content, second)
    return f"{call.function.name}({call.function.arguments})"


def tools_stream() -> str:
    chunks = client.chat.completions.create(
        **ask, tools=[WEATHER], tool_choice="required", stream=True
    )
    calls: dict[int, list[str]] = {}
    reason = None
    for chunk in chunks:
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or []:
            parts = calls.setdefault(call.index, ["", ""])
            parts[0] += call.function.name or ""
            parts[1] += call.function.arguments or ""
    wanted(reason == "tool_calls" and calls, (reason, calls))
    for _, arguments in calls.values():
        wanted(set(json.loads(arguments)) == {"city"}, calls)
    return str(calls)


run(chat, stream, structured, tools, tools_stream, package="groq")
