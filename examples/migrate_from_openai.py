"""A program written for OpenAI, which knows nothing of racks. To move it, change its environment:

OPENAI_BASE_URL=http://127.0.0.1:8000/openai/v1 OPENAI_API_KEY=any python migrate_from_openai.py
"""

import os

from openai import OpenAI

MODEL = os.environ.get("OPENAI_MODEL", "llama-3.1-8b-instant")


def main() -> None:
    """Ask once for a whole answer and once for a stream."""
    client = OpenAI()
    print("models:", ", ".join(model.id for model in client.models.list()))
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is a systolic array?"},
    ]
    whole = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=32, temperature=0.7, seed=42
    )
    text = whole.choices[0].message.content
    print("whole: ", repr(text))
    pieces = []
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=32, temperature=0.7, seed=42,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in stream:
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
        if chunk.usage:
            print("usage: ", chunk.usage.prompt_tokens, "+", chunk.usage.completion_tokens)
    print("same seed, same text:", "".join(pieces) == text)


if __name__ == "__main__":
    main()
