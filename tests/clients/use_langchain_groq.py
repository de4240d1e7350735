"""LangChain's ChatGroq."""

from kit import MODEL, QUESTION, run, wanted
from langchain_core.tools import tool
from langchain_groq import ChatGroq
from pydantic import BaseModel

model = ChatGroq(model=MODEL)


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


def structured_json_schema() -> str:
    answer = model.with_structured_output(Weather, method="json_schema").invoke(QUESTION)
    wanted(isinstance(answer, Weather), answer)
    return repr(answer)


def structured_json_mode() -> str:
    kind = model.with_structured_output(Weather, method="json_mode", include_raw=True)
    answer = kind.invoke(QUESTION + " Answer in JSON.")
    wanted(answer["raw"].content, answer)
    return str(answer["raw"].content)


def tools() -> str:
    answer = model.bind_tools([get_weather], tool_choice="any").invoke(QUESTION)
    wanted(answer.tool_calls and set(answer.tool_calls[0]["args"]) == {"city"}, answer)
    result = get_weather.invoke(answer.tool_calls[0])
    last = model.bind_tools([get_weather], tool_choice="none")
    second = last.invoke([("user", QUESTION), answer, result], max_tokens=8)
    wanted(second.content, second)
    return str(answer.tool_calls)


run(
    chat, stream, structured, structured_json_schema, structured_json_mode, tools,
    package="langchain-groq",
)  # fmt: skip
