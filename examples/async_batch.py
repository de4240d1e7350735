"""A batch of prompts through asyncio, with a semaphore so that only some are under way at once."""

import argparse
import asyncio
import time

import groq


async def ask(
    client: groq.AsyncGroq, gate: asyncio.Semaphore, model: str, prompt: str, max_tokens: int
) -> str:
    """Return one answer, once the gate lets it through."""
    async with gate:
        answer = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=max_tokens,
            temperature=0,
        )
    return answer.choices[0].message.content or ""


async def batch(model: str, prompts: list[str], at_once: int, max_tokens: int) -> list[str]:
    """Return the answers in the order of the prompts."""
    gate = asyncio.Semaphore(at_once)
    async with groq.AsyncGroq() as client:
        return await asyncio.gather(
            *(ask(client, gate, model, prompt, max_tokens) for prompt in prompts)
        )


def main() -> None:
    """Run the batch and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b-instant")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=8, help="below the server's --max-queue")
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()

    prompts = [f"Name a use of the number {number}." for number in range(options.prompts)]
    started = time.perf_counter()
    answers = asyncio.run(batch(options.model, prompts, options.at_once, options.max_tokens))
    seconds = time.perf_counter() - started
    print(f"{len(answers)} answers in {seconds:.2f} s, {len(answers) / seconds:.1f} a second")
    print(f"first: {answers[0][:60]!r}")


if __name__ == "__main__":
    main()
