"""LlamaIndex: its Groq model."""

from kit import MODEL, QUESTION, URL, run, wanted
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.groq import Groq
from pydantic import BaseModel

model = Groq(model=MODEL, api_base=f"{URL}/openai/v1", api_key="any", max_tokens=None)
messages = [ChatMessage(role="user", content=QUESTION)]


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: int


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"21 degrees in {city}"


def chat() -> str:
    answer = model.chat(messages, max_tokens=16)
    wanted(answer.message.content, answer)
    return str(answer)


def stream() -> str:
    pieces = [chunk.delta for chunk in model.stream_chat(messages, max_tokens=16)]
    wanted("".join(map(str, pieces)), pieces)
    return f"{len(pieces)} chunks"


def structured() -> str:
    answer = model.as_structured_llm(Weather).chat(messages)
    wanted(isinstance(answer.raw, Weather), answer)
    return repr(answer.raw)


def tools() -> str:
    tool = FunctionTool.from_defaults(get_weather)
    answer = model.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    calls = model.get_tool_calls_from_response(answer)
    wanted(set(calls[0].tool_kwargs) == {"city"}, calls)
    return str(calls)


run(chat, stream, structured, tools, package="llama-index-llms-groq")
