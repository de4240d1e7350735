"""openai-agents: over /responses, which is its default, and over chat completions."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from kit import MODEL, QUESTION, run, wanted
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: int


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"21 degrees in {city}"


def chat() -> str:
    agent = Agent("a", instructions="Be brief.", model=MODEL)
    answer = Runner.run_sync(agent, QUESTION)
    wanted(answer.final_output, answer)
    return str(answer.context_wrapper.usage.total_tokens)


async def stream() -> str:
    agent = Agent("a", instructions="Be brief.", model=MODEL)
    answer = Runner.run_streamed(agent, QUESTION)
    kinds = [event.data.type async for event in answer.stream_events() if hasattr(event, "data")]
    wanted("response.output_text.delta" in kinds, kinds)
    return f"{len(kinds)} events"


def structured() -> str:
    answer = Runner.run_sync(Agent("a", model=MODEL, output_type=Weather), QUESTION)
    wanted(isinstance(answer.final_output, Weather), answer)
    return repr(answer.final_output)


def tools() -> str:
    agent = Agent(
        "a", model=MODEL, tools=[get_weather], tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(tool_choice="required"),
    )  # fmt: skip
    answer = Runner.run_sync(agent, QUESTION)
    wanted(answer.final_output.startswith("21 degrees in "), answer)
    return str(answer.final_output)


def tools_chat() -> str:
    model = OpenAIChatCompletionsModel(MODEL, AsyncOpenAI())
    agent = Agent(
        "a", model=model, tools=[get_weather], tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(tool_choice="required"),
    )  # fmt: skip
    answer = Runner.run_sync(agent, QUESTION)
    wanted(answer.final_output.startswith("21 degrees in "), answer)
    return str(answer.final_output)


run(chat, stream, structured, tools, tools_chat, package="openai-agents")
