"""pydantic-ai: agents with an output type and tools, over its groq and openai models."""

from kit import MODEL, QUESTION, URL, run, wanted
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.groq import GroqModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.groq import GroqProvider
from pydantic_ai.providers.openai import OpenAIProvider

groq = GroqModel(MODEL, provider=GroqProvider(base_url=URL, api_key="any"))
openai = OpenAIProvider(base_url=f"{URL}/openai/v1", api_key="any")


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: int


def chat() -> str:
    answer = Agent(groq).run_sync(QUESTION, model_settings={"max_tokens": 16})
    wanted(answer.output, answer)
    return str(answer.usage)


async def stream() -> str:
    agent = Agent(groq)
    async with agent.run_stream(QUESTION, model_settings={"max_tokens": 16}) as answer:
        pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
    wanted("".join(pieces), pieces)
    return f"{len(pieces)} pieces"


def structured() -> str:
    answer = Agent(groq, output_type=Weather).run_sync(QUESTION)
    wanted(isinstance(answer.output, Weather), answer)
    return repr(answer.output)


def structured_openai() -> str:
    model = OpenAIChatModel(MODEL, provider=openai)
    answer = Agent(model, output_type=Weather).run_sync(QUESTION)
    wanted(isinstance(answer.output, Weather), answer)
    return repr(answer.output)


def structured_responses() -> str:
    model = OpenAIResponsesModel(MODEL, provider=openai)
    answer = Agent(model, output_type=Weather).run_sync(QUESTION)
    wanted(isinstance(answer.output, Weather), answer)
    return repr(answer.output)


run(
    chat, stream, structured, structured_openai, structured_responses, package="pydantic-ai-slim"
)  # fmt: skip
