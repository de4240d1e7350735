"""The openai SDK: chat completions and responses."""

import json

import openai
from kit import MODEL, QUESTION, UNITS, WEATHER, run, wanted
from pydantic import BaseModel

client = openai.OpenAI()
ask = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}


class Weather(BaseModel):
    """An answer."""

    celsius: int
    units: UNITS


def chat() -> str:
    answer = client.chat.completions.create(**ask, max_completion_tokens=16)
    wanted(answer.choices[0].message.content, answer)
    return f"{answer.usage.total_tokens} tokens"


def stream() -> str:
    chunks = client.chat.completions.create(
        **ask, max_completion_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    seen = list(chunks)
    wanted(seen[-1].usage.completion_tokens == 16, seen[-1])
    return f"{len(seen)} chunks"


def structured() -> str:
    answer = client.chat.completions.parse(**ask, response_format=Weather)
    wanted(isinstance(answer.choices[0].message.parsed, Weather), answer)
    return repr(answer.choices[0].message.parsed)


def tools() -> str:
    tool = openai.pydantic_function_tool(Weather, name="report")
    answer = client.chat.completions.parse(**ask, tools=[tool], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    wanted(isinstance(call.function.parsed_arguments, Weather), call)
    return f"{call.function.name} {call.function.parsed_arguments!r}"


def responses() -> str:
    answer = client.responses.create(
        model=MODEL, input=QUESTION, instructions="Be brief.", max_output_tokens=16
    )
    wanted(answer.output_text and answer.usage.output_tokens == 16, answer)
    return f"{answer.status}, {answer.usage.total_tokens} tokens"


def responses_stream() -> str:
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=16) as events:
        kinds = [event.type for event in events]
    wanted("response.output_text.delta" in kinds, kinds)
    return ", ".join(dict.fromkeys(kinds))


def responses_structured() -> str:
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Weather)
    wanted(isinstance(answer.output_parsed, Weather), answer)
    return repr(answer.output_parsed)


def responses_tools() -> str:
    tool = {"type": "function", **WEATHER["function"], "strict": True}
    answer = client.responses.create(
        model=MODEL, input=QUESTION, tools=[tool], tool_choice="required"
    )
    call = next(item for item in answer.output if item.type == "function_call")
    wanted(set(json.loads(call.arguments)) == {"city"}, call)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    history = [{"role": "user", "content": QUESTION}, call, result]
    second = client.responses.create(
        model=MODEL, input=history, tools=[tool], tool_choice="none", max_output_tokens=8
    )
    wanted(second.output_text, second)
    return f"{call.name}({call.arguments})"


run(
    chat, stream, structured, tools, responses, responses_stream, responses_structured,
    responses_tools, package="openai",
)  # fmt: skip
