"""litellm: its groq provider, and its openai-compatible one."""

import json
import os

import litellm
from kit import MODEL, QUESTION, URL, WEATHER, run, wanted
from pydantic import BaseModel

os.environ["GROQ_API_BASE"] = f"{URL}/openai/v1"
messages = [{"role": "user", "content": QUESTION}]


class Weather(BaseModel):
    """An answer."""

    city: str
    celsius: int


def chat() -> str:
    answer = litellm.completion(f"groq/{MODEL}", messages, max_tokens=16)
    wanted(answer.choices[0].message.content, answer)
    return str(answer.usage.total_tokens)


def stream() -> str:
    chunks = list(litellm.completion(f"groq/{MODEL}", messages, max_tokens=16, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    wanted(text, chunks)
    return f"{len(chunks)} chunks"


def structured() -> str:
    answer = litellm.completion(f"groq/{MODEL}", messages, response_format=Weather)
    parsed = Weather.model_validate_json(answer.choices[0].message.content)
    return repr(parsed)


def tools() -> str:
    answer = litellm.completion(f"groq/{MODEL}", messages, tools=[WEATHER], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    wanted(set(json.loads(call.function.arguments)) == {"city"}, call)
    return str(call.function.arguments)


def openai_provider() -> str:
    answer = litellm.completion(
        f"openai/{MODEL}", messages, response_format=Weather, api_base=f"{URL}/v1"
    )
    return repr(Weather.model_validate_json(answer.choices[0].message.content))


run(chat, stream, structured, tools, openai_provider, package="litellm")
