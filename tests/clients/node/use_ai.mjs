// The Vercel AI SDK with its groq, openai and openai-compatible providers.
import { createGroq } from '@ai-sdk/groq';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import * as ai from 'ai';
import { z } from 'zod';
import { MODEL, QUESTION, URL_, run, wanted } from './kit.mjs';

const baseURL = `${URL_}/openai/v1`;
const models = {
  groq: createGroq({ baseURL, apiKey: 'any' })(MODEL),
  openai: createOpenAI({ baseURL, apiKey: 'any' })(MODEL), // over /responses
  compatible: createOpenAICompatible({
    name: 'rack', baseURL, apiKey: 'any', supportsStructuredOutputs: true,
  })(MODEL),
};
const schema = z.object({ city: z.string().max(20), celsius: z.number().int() });
const weather = ai.tool({
  description: 'Get the weather of a city.',
  inputSchema: z.object({ city: z.string().max(20) }),
  execute: async ({ city }) => `21 degrees in ${city}`,
});

const checks = {};
for (const [name, model] of Object.entries(models)) {
  checks[`chat_${name}`] = async () => {
    const answer = await ai.generateText({ model, prompt: QUESTION, maxOutputTokens: 16 });
    wanted(answer.text, answer);
    return JSON.stringify(answer.usage);
  };
  checks[`stream_${name}`] = async () => {
    const answer = ai.streamText({ model, prompt: QUESTION, maxOutputTokens: 16 });
    let pieces = 0;
    for await (const piece of answer.textStream) pieces += piece.length > 0;
    wanted(pieces > 2, pieces);
    return `${pieces} pieces`;
  };
  checks[`structured_${name}`] = async () => {
    const output = ai.Output.object({ schema });
    const answer = await ai.generateText({ model, prompt: QUESTION, output });
    const value = answer.output;
    wanted('city' in value, value);
    return JSON.stringify(value);
  };
  checks[`tools_${name}`] = async () => {
    const answer = await ai.generateText({
      model, prompt: QUESTION, tools: { weather }, toolChoice: 'required',
    });
    wanted('city' in answer.toolCalls[0].input, answer.toolCalls);
    return JSON.stringify(answer.toolResults.map((result) => result.output));
  };
}
await run('ai', checks);
