"""instructor: from_provider's default mode for groq and openai, and JSON modes."""

import groq
import instructor
import openai
from kit import MODEL, QUESTION, run, wanted
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    celsius: int


ask = {
    "model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "response_model": Weather,
}  # fmt: skip


def structured_groq() -> str:
    answer = instructor.from_groq(groq.Groq()).chat.completions.create(**ask)
    wanted(isinstance(answer, Weather), answer)
    return repr(answer)


def structured_openai() -> str:
    answer = instructor.from_openai(openai.OpenAI()).chat.completions.create(**ask)
    wanted(isinstance(answer, Weather), answer)
    return repr(answer)


def structured_json_schema() -> str:
    client = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
    answer = client.chat.completions.create(**ask)
    wanted(isinstance(answer, Weather), answer)
    return repr(answer)


run(structured_groq, structured_openai, structured_json_schema, package="instructor")
