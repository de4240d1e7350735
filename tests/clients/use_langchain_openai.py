"""LangChain's ChatOpenAI."""

from kit import MODEL, QUESTION, run, wanted
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

model = ChatOpenAI(model=MODEL)


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: int


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"21 degrees in {city}"


def chat() -> str:
    answer = model.bind(max_tokens=16).invoke(QUESTION)
    wanted(answer.content, answer)
    return str(answer.usage_metadata)


def stream() -> str:
    pieces = [chunk.content for chunk in model.bind(max_tokens=16).stream(QUESTION)]
    wanted("".join(pieces), pieces)
    return f"{len(pieces)} chunks"


def structured() -> str:
    answer = model.with_structured_output(Weather).invoke(QUESTION)
    wanted(isinstance(answer, Weather), answer)
    return repr(answer)


def structured_function_calling() -> str:
    answer = model.with_structured_output(Weather, method="function_calling").invoke(QUESTION)
    wanted(isinstance(answer, Weather), answer)
    return repr(answer)


def tools() -> str:
    answer = model.bind_tools([get_weather], tool_choice="any").invoke(QUESTION)
    wanted(answer.tool_calls and set(answer.tool_calls[0]["args"]) == {"city"}, answer)
    return str(answer.tool_calls)


def responses() -> str:
    answer = ChatOpenAI(model=MODEL, use_responses_api=True, max_tokens=16).invoke(QUESTION)
    wanted(answer.text, answer)
    return str(answer.usage_metadata)


run(
    chat, stream, structured, structured_function_calling, tools, responses,
    package="langchain-openai",
)  # fmt: skip
