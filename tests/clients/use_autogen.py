"""AutoGen: its openai model client and an assistant with a tool."""

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelInfo, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from kit import MODEL, QUESTION, run, wanted
from pydantic import BaseModel

INFO = ModelInfo(
    vision=False, function_calling=True, json_output=True, family="unknown",
    structured_output=True,
)  # fmt: skip


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: int


async def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"21 degrees in {city}"


def client(**options: object) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(model=MODEL, model_info=INFO, **options)


async def chat() -> str:
    answer = await client(max_tokens=16).create([UserMessage(content=QUESTION, source="user")])
    wanted(answer.content, answer)
    return str(answer.usage)


async def stream() -> str:
    question = [UserMessage(content=QUESTION, source="user")]
    pieces = [piece async for piece in client(max_tokens=16).create_stream(question)]
    wanted(len(pieces) > 2, pieces)
    return f"{len(pieces)} pieces"


async def structured() -> str:
    question = [UserMessage(content=QUESTION, source="user")]
    answer = await client().create(question, json_output=Weather)
    return repr(Weather.model_validate_json(str(answer.content)))


async def tools() -> str:
    agent = AssistantAgent("a", client(), tools=[get_weather])
    answer = await agent.run(task=QUESTION)
    return str([type(message).__name__ for message in answer.messages])


run(chat, stream, structured, tools, package="autogen-ext")
