"""aisuite: its groq and openai providers."""

import aisuite
from kit import MODEL, QUESTION, URL, WEATHER, run, wanted

client = aisuite.Client({"openai": {"base_url": f"{URL}/openai/v1", "api_key": "any"}})
messages = [{"role": "user", "content": QUESTION}]


def chat() -> str:
    answer = client.chat.completions.create(f"groq:{MODEL}", messages, max_tokens=16)
    wanted(answer.choices[0].message.content, answer)
    return str(answer.choices[0].message.content)


def chat_openai() -> str:
    answer = client.chat.completions.create(f"openai:{MODEL}", messages, max_tokens=16)
    wanted(answer.choices[0].message.content, answer)
    return str(answer.choices[0].message.content)


def tools() -> str:
    answer = client.chat.completions.create(f"groq:{MODEL}", messages, tools=[WEATHER])
    return str(answer.choices[0].message.tool_calls or answer.choices[0].message.content)


run(chat, chat_openai, tools, package="aisuite")
